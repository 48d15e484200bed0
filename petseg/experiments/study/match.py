"""Shapes of equal cost: which width makes a SegNet as large, or as fast, as a U-Net.

Parameters are counted. Latency is measured in ONNX Runtime, where a model is used: one picture, one thread, the
candidates taking turns, so that a busy machine hits all alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch

from petseg.config import ModelConfig
from petseg.errors import PetsegError
from petseg.evaluation.cost import Latency, count_macs
from petseg.experiments.study.plan import cost_key
from petseg.experiments.study.recipe import TOLERANCE, Quantity
from petseg.export.onnx import as_onnx
from petseg.export.openvino import drawn_images
from petseg.models import SegNet, build_model, model_options
from petseg.training.device import choose_hardware
from petseg.training.inference import build_network

Measure = Callable[[Sequence[ModelConfig]], Sequence[float]]
"""Costs of shapes, the reference first, measured together."""

MACS_RANGE = (0.6, 1.7)
"""Widths whose multiply-accumulates are within these shares of the reference's are candidates for its latency."""

NEAREST = 3
"""Widths, nearest first, whose stages may take one convolution more or less where no width alone fits."""

UNDISTURBED = 0.1
"""Of a shape's times, the quantile that is matched: what else runs on the machine makes the others longer."""

REPEATS = 60
"""Passes a candidate, after five to warm up."""


def find_shape(arm: ModelConfig, reference: ModelConfig, quantity: Quantity, measure: Measure) -> dict[str, Any]:
    """Returns the fields by which `arm` must differ to cost as much as `reference`, and both costs.

    The fewest changes win: the arm as it is, then another width, then (SegNet only) also one convolution more or less
    in one stage. Among equals the nearest in cost.

    Args:
        arm: the shape to change.
        reference: the shape to equal.
        quantity: what is to be equal, within `TOLERANCE`.
        measure: gives it.

    Raises:
        PetsegError: no candidate is near enough.
    """
    known: list[tuple[float, float, float, ModelConfig]] = []  # off by, wanted, cost, shape
    shapes = [arm]
    for more in (_widths, _convs, None):
        wanted, *costs = measure([reference, *shapes])
        known += [(abs(cost / wanted - 1), wanted, cost, shape) for cost, shape in zip(costs, shapes, strict=True)]
        known.sort(key=lambda entry: entry[0])
        if known[0][0] <= TOLERANCE[quantity] or more is None:
            break
        shapes = more([shape for *_, shape in known])
        if not shapes:
            break
    off, wanted, cost, shape = known[0]
    if off > TOLERANCE[quantity]:
        raise PetsegError(
            f"study: no {arm.name} has the {quantity} of {cost_key(reference, 0).removesuffix(' 0px')} within "
            f"{100 * TOLERANCE[quantity]:.0f} %; the nearest is {100 * off:.1f} % off: give its shape by hand"
        )
    given = shape.model_dump(mode="json", exclude_none=True)
    before = arm.model_dump(mode="json", exclude_none=True)
    return {
        "model": {name: value for name, value in given.items() if before.get(name) != value},
        "quantity": quantity,
        "wanted": wanted,
        "found": cost,
    }


def _width(config: ModelConfig) -> int:
    return int(model_options(config)["base_channels"])


def _widths(known: Sequence[ModelConfig]) -> list[ModelConfig]:
    """Returns the only known shape in other widths, from half of its own to twice."""
    (arm,) = known
    width = _width(arm)
    return [
        ModelConfig(**{**arm.model_dump(), "base_channels": other})
        for other in range(max(1, width // 2), 2 * width + 1)
        if other != width
    ]


def _convs(known: Sequence[ModelConfig]) -> list[ModelConfig]:
    """Returns the nearest shapes with one convolution more or less in one stage, at least one and at most eight."""
    found = []
    for shape in known[:NEAREST]:
        if "segnet" not in shape.name:
            continue
        with torch.device("meta"):
            model = build_model(shape, 2)
        assert isinstance(model, SegNet), "its class was asked for"
        for stage in range(len(model.convs)):
            for change in (1, -1):
                convs = [*model.convs]
                convs[stage] += change
                if 1 <= convs[stage] <= 8:
                    found.append(ModelConfig(**{**shape.model_dump(), "convs": convs}))
    return found


def count_parameters(num_classes: int) -> Measure:
    """Returns the measure of `parameters`."""

    def counted(config: ModelConfig) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build_model(config, num_classes).parameters())

    return lambda shapes: [counted(shape) for shape in shapes]


def time_shapes(num_classes: int, size: int) -> Measure:
    """Returns the measure of `latency` in milliseconds; shapes far from the reference in arithmetic are not timed."""

    def macs(shape: ModelConfig) -> int:
        return count_macs(shape, num_classes, size)

    def measure(shapes: Sequence[ModelConfig]) -> list[float]:
        reference = macs(shapes[0])
        low, high = (share * reference for share in MACS_RANGE)
        near = {place: shape for place, shape in enumerate(shapes) if not place or low <= macs(shape) <= high}
        found = _onnx_times({str(place): (shape, size) for place, shape in near.items()}, num_classes, REPEATS)
        return [
            float(np.quantile(found[str(place)], UNDISTURBED)) if place in near else float("inf")
            for place in range(len(shapes))
        ]

    return measure


def measure_onnx_latencies(
    shapes: Mapping[str, tuple[ModelConfig, int]], num_classes: int, *, repeats: int = 200
) -> dict[str, Latency]:
    """Returns each shape's latency in ONNX Runtime for one picture on one thread, probabilities out.

    Weights are random: what they are changes nothing in the time.

    Args:
        shapes: key -> model and side in pixels.
        num_classes: C.
        repeats: counted passes a shape, taken in turn.
    """
    return {
        key: Latency(float(np.quantile(taken, 0.5)), float(np.quantile(taken, 0.95)), repeats)
        for key, taken in _onnx_times(shapes, num_classes, repeats).items()
    }


def _onnx_times(
    shapes: Mapping[str, tuple[ModelConfig, int]], num_classes: int, repeats: int
) -> dict[str, list[float]]:
    """Returns the milliseconds of each pass of each shape; arguments as `measure_onnx_latencies`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {}
    for key, (config, size) in shapes.items():
        content = as_onnx(build_network(config, num_classes, choose_hardware("fp32", "cpu")), size)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        sessions[key] = (session, {"image": drawn_images(size)[:1]})
    times: dict[str, list[float]] = {key: [] for key in sessions}
    for turn in range(-5, repeats):
        for key, (session, given) in sessions.items():
            started = time.perf_counter()
            session.run(None, given)
            if turn >= 0:
                times[key].append(1000 * (time.perf_counter() - started))
    return times
