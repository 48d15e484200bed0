"""What a model costs: parameters, multiply-accumulates, activation memory, latency."""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from petseg.config import ModelConfig, RunConfig
from petseg.errors import PetsegError, first_line
from petseg.models import build_model
from petseg.schema import CostInfo, LatencyInfo
from petseg.threads import OtherWork
from petseg.training.device import Hardware
from petseg.training.inference import build_network
from petseg.training.loop import Objective, make_optimiser, train_step

ROUNDS = 20  # turns of some passes, whose medians give a ratio its interval
STEP_PIXELS = 2**18  # of a step that is timed
TRAINING_BATCH = 32  # images beside which a further one is counted: of few, the weights' gradients would hide its need


def count_cost(config: ModelConfig, num_classes: int, size: int) -> CostInfo:
    """Returns the cost of a model for one image [1, 3, size, size], counted on the meta device: it needs no machine."""
    model, image = on_meta(config, num_classes), torch.empty(1, 3, size, size, device="meta")
    try:
        with torch.no_grad(), LiveBytes() as inference:
            model(image)
        skip_bytes, training = _count_skips(model, image), _count_training(model, image)
    except Exception as error:  # of a network that needs values, or cannot be trained
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise PetsegError(
            f"model {config.name!r}: its cost cannot be counted on torch's meta device, where tensors have shapes and "
            f"no values ({reason}); mend the network"
        ) from None
    return CostInfo(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=count_macs(config, num_classes, size),
        activation_bytes=inference.peak,
        skip_bytes=skip_bytes,
        training_activation_bytes_per_image=training,
    )


def _count_training(model: nn.Module, image: Tensor) -> int:
    """Returns the bytes that a further image of a batch needs in a training step; leaves the model in training mode."""
    model.train()
    peaks: list[int] = []
    for count in (TRAINING_BATCH, 2 * TRAINING_BATCH):
        labels = torch.zeros(count, *image.shape[2:], dtype=torch.int64, device="meta")
        with LiveBytes() as batch:
            F.cross_entropy(model(image.expand(count, -1, -1, -1)), labels).backward()
        peaks.append(batch.peak)
        model.zero_grad(set_to_none=True)
    return (peaks[1] - peaks[0]) // TRAINING_BATCH


def _count_skips(model: nn.Module, image: Tensor) -> int | None:
    """Returns the bytes alive beside the deepest map, at the layer where they are fewest."""
    kept: dict[int, int] = {}  # pixels of a layer's input -> fewest bytes alive beside it

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 4:
            pixels = inputs[0].shape[-2] * inputs[0].shape[-1]
            beside = live.live - inputs[0].nbytes
            kept[pixels] = min(beside, kept.get(pixels, beside))

    leaves = [module for module in model.modules() if not list(module.children())]
    with torch.no_grad(), LiveBytes(index_bits=2) as live:
        hooks = [module.register_forward_pre_hook(look) for module in leaves]
        model(image)
        for hook in hooks:
            hook.remove()
    deepest = min(kept, default=image.shape[-2] * image.shape[-1])
    return kept[deepest] if deepest < image.shape[-2] * image.shape[-1] else None


def count_macs(config: ModelConfig, num_classes: int, size: int) -> int:
    """Returns the multiply-accumulates alone, in a tenth of the time."""
    model, image = on_meta(config, num_classes), torch.empty(1, 3, size, size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops()) // 2


def on_meta(config: ModelConfig, num_classes: int) -> nn.Module:
    """Returns a model whose tensors have shapes and no values, for evaluation."""
    try:
        with torch.device("meta"):
            return build_model(config, num_classes).eval()
    except (PetsegError, RuntimeError):  # some networks read values while they are built; else the next line tells why
        return build_model(config, num_classes).eval().to("meta")


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make under it; `peak` is the most bytes alive, an int64 of `index_bits`."""

    def __init__(self, *, index_bits: int = 64) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index_bits = index_bits
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs the operation and counts each new storage among its outputs until that is freed."""
        result = func(*args, **(kwargs or {}))
        before = {_storage_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if not isinstance(leaf, Tensor):
                continue
            key = _storage_key(leaf)
            if key in before or key in self.known:
                continue
            storage = leaf.untyped_storage()
            size = storage.nbytes() * self.index_bits // 64 if leaf.dtype == torch.int64 else storage.nbytes()
            self.known.add(key)
            self.live += size
            weakref.finalize(storage, self._freed, key, size)
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def _storage_key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - the address of the storage


def take_turns(passes: Mapping[str, Callable[[], object]], repeats: int, *, warm: int = 5) -> dict[str, list[float]]:
    """Returns the milliseconds of `repeats` passes of each contender, after some to warm up.

    They take `ROUNDS` turns. The first pass of each does not count: others had the caches, and their threads spin on.
    """
    times: dict[str, list[float]] = {name: [] for name in passes}
    for run in passes.values():
        for _ in range(warm):
            run()
    for turn in np.array_split(range(repeats), min(ROUNDS, repeats)):
        for name, run in passes.items():
            run()
            for _ in turn:
                started = time.perf_counter()
                run()
                times[name].append(1000 * (time.perf_counter() - started))
    return times


def latency_of(times: Sequence[float], size: int, others: OtherWork) -> LatencyInfo:
    """Returns the latency from passes over an image of `size` pixels a side, during which others worked too."""
    p50, p95 = map(float, np.quantile(times, [0.5, 0.95]))
    rounds = tuple(float(np.median(part)) for part in np.array_split(times, min(ROUNDS, len(times))))
    return LatencyInfo(p50=p50, p95=p95, rounds=rounds, repeats=len(times), size=size, others=others.cores())


def image_seconds(config: RunConfig, num_classes: int, hardware: Hardware) -> float:
    """Returns what a training image takes, loading apart: the median of three steps on at most `STEP_PIXELS`."""
    side = config.data.size
    images = torch.rand(max(1, min(config.train.batch_size, STEP_PIXELS // side**2)), 3, side, side)
    images, labels = images.to(hardware.device), torch.zeros(len(images), side, side, device=hardware.device)
    network = build_network(config.model, num_classes, hardware)
    network.module.train()
    optimiser = make_optimiser(network.module, config.train)

    def step() -> None:
        train_step(network, optimiser, images, labels, Objective(config.train))
        if hardware.device.type != "cpu":
            torch.accelerator.synchronize()

    return float(np.median(take_turns({"": step}, 3, warm=1)[""])) / 1000 / len(images)


def measure_latencies(
    models: Mapping[str, nn.Module], size: int, hardware: Hardware, *, repeats: int = 40
) -> dict[str, LatencyInfo]:
    """Returns each model's latency for one image, logits out, of passes in turn."""
    image = torch.zeros(1, 3, size, size, device=hardware.device).contiguous(memory_format=torch.channels_last)

    def run(model: nn.Module) -> None:
        with torch.inference_mode(), hardware.context():
            model(image)
        if hardware.device.type != "cpu":
            torch.accelerator.synchronize()

    others = OtherWork()
    times = take_turns({name: partial(run, model.eval()) for name, model in models.items()}, repeats)
    return {name: latency_of(taken, size, others) for name, taken in times.items()}
