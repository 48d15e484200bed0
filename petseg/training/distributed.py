"""One training over several processes, as torchrun starts them: each takes an even part of every batch.

What is added up is added up over all ranks, so a step's gradient and an epoch's scores are those of the whole batch and
the whole split, never means of means. Without torchrun there is one rank, and nothing here does anything.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from petseg.errors import PetsegError

Value = TypeVar("Value")


def started() -> bool:
    """Returns whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank_started() -> int:
    """Returns this process's number before it has joined the others; 0 without torchrun."""
    return int(os.environ.get("RANK", 0)) if started() else 0


def local_rank() -> int:
    """Returns this process's number on its host, which is also its GPU's; 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", 0)) if started() else 0


def local_count() -> int:
    """Returns how many processes torchrun started on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if started() else 1


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Joins the other ranks for the block: by NCCL on GPUs, by Gloo elsewhere."""
    if not started():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif device.type == "cpu":
        _take_cores()
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        # a wrapped model in a cycle still holds the group, whose threads would crash at the interpreter's end
        gc.collect()
        distributed.destroy_process_group()


def _take_cores() -> None:
    """Keeps this process on its even part of the host's cores: 5 % of a step for two ranks on two cores."""
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if own := np.array_split(cores, local_count())[local_rank()].tolist():
        os.sched_setaffinity(0, own)


def rank() -> int:
    """Returns this process's number; 0 writes files and talks."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """Returns the number of ranks."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def part(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Returns this rank's rows of some, the sizes of the parts differing by at most one."""
    return rows[rank() :: count()]


def total(value: Tensor) -> Tensor:
    """Returns the sum of a tensor over ranks, without gradient, where it was."""
    return value if count() == 1 else every(value).sum(0)


def every(value: Tensor) -> Tensor:
    """Returns the ranks' tensors of one shape as [R, ...], without gradient, where they were.

    Gloo gathers few numbers in a third of the time that it takes to reduce them (.35 and 1.2 ms, 2 processes).
    """
    place = value.device
    value = value.detach().to("cuda" if distributed.get_backend() == "nccl" else place)
    rows = [torch.empty_like(value) for _ in range(count())]
    distributed.all_gather(rows, value.contiguous())
    return torch.stack(rows).to(place)


def summed(value: Tensor) -> Tensor:
    """Returns the sum of a tensor over ranks, with its gradient."""
    summation: Tensor = value if count() == 1 else _Sum.apply(value)  # type: ignore[no-untyped-call]
    return summation


class _Sum(torch.autograd.Function):
    """A sum over ranks; each rank's value counts in every rank's result, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return total(gradients[0])


def weight(own: Callable[[], Tensor | int]) -> Tensor | float:
    """Returns what a mean over `own()` of this rank is multiplied by, so that the ranks' mean is the mean over all."""
    if count() == 1:
        return 1.0
    mine = torch.as_tensor(own(), dtype=torch.float32)
    return mine * count() / total(mine).clamp(min=1e-12)


def shared(value: Value) -> Value:
    """Returns the first rank's value; of others it is not looked at."""
    if count() == 1:
        return value
    box: list[Any] = [value if rank() == 0 else None]
    distributed.broadcast_object_list(box, src=0)
    received: Value = box[0]
    return received


def share_buffers(module: nn.Module) -> None:
    """Gives every rank the first one's statistics of batch normalisation, which are those that are kept."""
    if count() > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, src=0)


def parallel(module: nn.Module) -> nn.Module:
    """Returns a module whose gradients are averaged over ranks after each backward pass."""
    if count() == 1:
        return module
    layers = [inner for inner in module.modules() if isinstance(inner, _BatchNorm)]
    alike = all(isinstance(inner, SummedBatchNorm | nn.SyncBatchNorm) for inner in layers)  # else the first rank's hold
    wrapped = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = not alike  # its argument is deprecated for another name in torch 2.13
    return wrapped


def check_batch(size: int) -> None:
    """Refuses more ranks than images a batch."""
    if size < count():
        raise PetsegError(
            f"train.batch_size is {size} for {count()} ranks; wanted one image a rank or more: raise it, or start fewer"
        )


def synchronised(module: nn.Module) -> nn.Module:
    """Returns a module whose batch normalisation takes its statistics over all ranks, in place where it can."""
    if count() == 1:
        return module
    layers = [inner for inner in module.modules() if isinstance(inner, nn.BatchNorm2d)]
    if distributed.get_backend() == "nccl":
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        if any(map(_is_timm, layers)):
            from timm.layers.norm_act import convert_sync_batchnorm as convert  # torch's drops the activation
        return convert(module)
    for inner in layers:
        if _is_timm(inner):
            inner.__class__ = SummedBatchNormAct
        elif type(inner) is nn.BatchNorm2d:
            inner.__class__ = SummedBatchNorm
    return module


def _is_timm(layer: nn.Module) -> bool:
    """Returns whether a batch normalisation is timm's, which holds what follows it: dropout and an activation."""
    return hasattr(layer, "drop") and hasattr(layer, "act")


class SummedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over all ranks; torch's own SyncBatchNorm takes GPU tensors only."""

    def forward(self, image: Tensor) -> Tensor:
        """Returns [N, D, H, W] normalised with mean and variance over N, H and W of all ranks."""
        if not self.training:
            return super().forward(image)
        assert self.running_mean is not None, "our models track statistics"
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            own = torch.batch_norm_update_stats(image, self.running_mean, self.running_var, 0.0)
            pixels, mean, variance = over_ranks(*own, pixels=image.numel() // image.shape[1])
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * (pixels / (pixels - 1)), self.momentum or 0.0)
        statistics = (mean, variance, pixels, self.eps)
        normalised: Tensor = _Normalised.apply(image, self.weight, self.bias, *statistics)  # type: ignore[no-untyped-call]
        return normalised


class SummedBatchNormAct(SummedBatchNorm):
    """The same of timm's BatchNormAct2d."""

    drop: nn.Module
    act: nn.Module

    def forward(self, image: Tensor) -> Tensor:
        """Returns [N, D, H, W], normalised and through the activation."""
        activated: Tensor = self.act(self.drop(super().forward(image)))
        return activated


def over_ranks(mean: Tensor, variance: Tensor, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the number of pixels of all ranks, and their mean and variance [D], from those of this rank's pixels."""
    rows = every(torch.cat([mean.new_tensor([pixels]), mean, variance]))
    parts, (means, variances) = rows[:, 0], rows[:, 1:].chunk(2, dim=1)
    share = (parts / parts.sum())[:, None]  # no matrix product, which autocast would make in bf16
    mean = (share * means).sum(0)
    return parts.sum(), mean, (share * (variances + (means - mean).square())).sum(0)


class _Normalised(torch.autograd.Function):
    """Batch normalisation by statistics over all ranks, on which each rank's image counts in the gradient."""

    @staticmethod
    def forward(context: Any, image: Tensor, weight: Tensor, bias: Tensor, *statistics: Any) -> Tensor:
        mean, variance, pixels, context.eps = statistics
        context.save_for_backward(image, weight, mean, variance, pixels)
        return nn.functional.batch_norm(image, mean, variance, weight, bias, eps=context.eps)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        image, weight, mean, variance, pixels = context.saved_tensors
        inverse = (variance + context.eps).rsqrt()
        # torch's kernel takes this rank's two sums for those of the batch; `more` puts all ranks' in their place
        ours, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], image, weight, None, None, mean, inverse, True, context.eps, [True, True, True]
        )
        sums = torch.stack([by_weight, by_bias])
        slope, offset = weight * inverse * (sums / (image.numel() // image.shape[1]) - total(sums) / pixels)
        more = nn.functional.batch_norm(image, mean, variance, slope, offset, eps=context.eps)
        return ours.add_(more), by_weight, by_bias, None, None, None, None
