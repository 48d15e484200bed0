"""What a model costs: parameters, multiply-accumulates, activation memory, latency."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from petseg.config import ModelConfig
from petseg.models import build_model
from petseg.train import Hardware


@dataclass(frozen=True)
class Cost:
    """Figures that do not depend on the machine, for one square image."""

    parameters: int
    macs: int
    """Multiply-accumulates of all convolutions."""
    activation_bytes: int
    """Largest sum of tensors alive at once in a forward pass without gradients, float32, weights not counted."""
    crossing_bytes: int
    """What the encoder keeps for the decoder beside its deepest map: skips, or indices of the 2 bits that one needs."""
    training_activation_bytes_per_image: int
    """What each further image of a batch adds to the same, for a forward and backward pass."""


TRAINING_BATCH = 32
"""Images from which a further one is counted: with few, the weights' gradients would hide what an image needs."""


def count_cost(config: ModelConfig, num_classes: int, size: int) -> Cost:
    """Returns the cost of a model for one image [1, 3, size, size], found without computing a single pixel.

    The model runs on torch's meta device, where tensors have shapes and no values; operations are counted by torch's
    own flop counter (two operations a multiply-accumulate), memory by following each tensor's life.

    Args:
        config: the model.
        num_classes: C.
        size: side in pixels.
    """
    model, image = _on_meta(config, num_classes, size)
    deepest = cast(nn.Module, model.dropout)
    with torch.no_grad(), LiveBytes() as inference:
        model(image)
    with torch.no_grad(), LiveBytes(index_bits=2) as crossing:
        kept: list[int] = []
        hook = deepest.register_forward_pre_hook(lambda module, inputs: kept.append(crossing.live - inputs[0].nbytes))
        model(image)
        hook.remove()
    model.train()
    training = []
    for count in (TRAINING_BATCH, 2 * TRAINING_BATCH):
        labels = torch.zeros(count, size, size, dtype=torch.int64, device="meta")
        with LiveBytes() as batch:
            F.cross_entropy(model(image.expand(count, -1, -1, -1)), labels).backward()
        training.append(batch.peak)
        model.zero_grad(set_to_none=True)
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=count_macs(config, num_classes, size),
        activation_bytes=inference.peak,
        crossing_bytes=kept[0],
        training_activation_bytes_per_image=(training[1] - training[0]) // TRAINING_BATCH,
    )


def count_macs(config: ModelConfig, num_classes: int, size: int) -> int:
    """Returns `Cost.macs` alone, in a tenth of the time; arguments as `count_cost`."""
    model, image = _on_meta(config, num_classes, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops()) // 2


def _on_meta(config: ModelConfig, num_classes: int, size: int) -> tuple[nn.Module, Tensor]:
    with torch.device("meta"):
        return build_model(config, num_classes).eval(), torch.empty(1, 3, size, size)


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make under it; `peak` is the most bytes alive at once.

    Args:
        index_bits: bits that an int64 value counts.
    """

    def __init__(self, *, index_bits: int = 64) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index_bits = index_bits
        self.live = 0
        self.peak = 0
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
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass in milliseconds."""

    p50: float
    p95: float
    repeats: int


def measure_latencies(
    models: Mapping[str, nn.Module], size: int, hardware: Hardware, *, repeats: int = 40
) -> dict[str, Latency]:
    """Returns each model's latency for one image, logits out; models take turns, so that a busy machine hits all alike.

    Args:
        models: name -> model on the device.
        size: side in pixels.
        hardware: where and how precisely.
        repeats: counted passes a model, after five to warm up.
    """
    image = torch.zeros(1, 3, size, size, device=hardware.device).contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(-5, repeats):
            for name, model in models.items():
                model.eval()
                _wait(hardware)
                started = time.perf_counter()
                with hardware.context():
                    model(image)
                _wait(hardware)
                if turn >= 0:
                    times[name].append(1000 * (time.perf_counter() - started))
    return {
        name: Latency(float(np.quantile(taken, 0.5)), float(np.quantile(taken, 0.95)), repeats)
        for name, taken in times.items()
    }


def _wait(hardware: Hardware) -> None:
    if hardware.device.type != "cpu":
        torch.accelerator.synchronize()
