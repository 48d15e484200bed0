"""Shapes of equal cost: which width makes a SegNet as large, or in ONNX Runtime as fast, as a U-Net."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from petseg.config import ModelConfig
from petseg.errors import PetsegError
from petseg.evaluation.cost import count_macs, latency_of, on_meta, take_turns
from petseg.experiments.study.plan import MatchQuestion, cost_key
from petseg.experiments.study.recipe import TOLERANCE
from petseg.export.onnx import as_onnx
from petseg.export.openvino import drawn_images
from petseg.models import model_options
from petseg.predict.runtimes import RUNTIMES
from petseg.schema import CostMatch, LatencyInfo
from petseg.threads import OtherWork
from petseg.training.device import choose_hardware
from petseg.training.inference import build_network

Shapes = Mapping[str, tuple[ModelConfig, int]]  # a shape's name -> model and side in pixels
Measure = Callable[[Sequence[ModelConfig]], Sequence[float]]  # costs of shapes, the reference first, measured together
MACS_RANGE = (0.6, 1.7)  # shares of the reference's arithmetic within which widths are candidates for its latency
NEAREST = 3  # widths, nearest first, whose stages may take one convolution more or less where no width alone fits
UNDISTURBED = 0.1  # the quantile of a shape's times that is matched: what else runs makes the others longer
REPEATS = 60  # passes a candidate, after five to warm up
MATCHED = "ONNX Runtime, one thread"  # the setting whose latency shapes are matched by
SETTINGS = {  # where latencies are measured: runtime, as `petseg predict` runs it, and threads of a call
    MATCHED: ("onnxruntime", 1),
    "ONNX Runtime, all threads": ("onnxruntime", None),
    "OpenVINO, one thread": ("openvino", 1),
    "OpenVINO, all threads": ("openvino", None),
}


def find_shape(question: MatchQuestion, num_classes: int, measure: Measure | None = None) -> CostMatch:
    """Returns the options by which a model must differ to cost as much as the reference, and both costs.

    The fewest changes win: none, another width, then (as in SegNet) one convolution more or less in one stage too.
    """
    measure = measure or _measure(question, num_classes)
    tolerance, both = TOLERANCE[question.quantity], question.quantity == "parameters_and_macs"
    known: list[tuple[float, float, float, ModelConfig]] = []  # off by, wanted, cost, shape
    shapes = [question.model]
    for more in (_scaled, _tilted, None) if both else (_widths, _convs, None):
        wanted, *costs = measure([question.reference, *shapes])
        known += [(abs(cost / wanted - 1), wanted, cost, shape) for cost, shape in zip(costs, shapes, strict=True)]
        known.sort(key=lambda entry: entry[0])
        shapes = more([shape for *_, shape in known]) if more else []
        if known[0][0] <= tolerance or not shapes:
            break
    off, wanted, cost, shape = known[0]
    if off > tolerance:
        raise PetsegError(
            f"study: no {shape.name} has the {question.quantity} of {cost_key(question.reference, question.size)} "
            f"within {100 * tolerance:.0f} %; the nearest is {100 * off:.1f} % off: give its shape by hand"
        )
    before = question.model.options
    changed = {name: value for name, value in shape.options.items() if before.get(name) != value}
    return CostMatch(options=changed, quantity=question.quantity, wanted=wanted, reached=cost)


def _measure(question: MatchQuestion, num_classes: int) -> Measure:
    """Returns how a question's quantity is measured; of parameters and MACs together the share that is further off."""
    if question.quantity == "latency":
        return time_shapes(num_classes, question.size)
    parameters = count_parameters(num_classes)

    def macs(shapes: Sequence[ModelConfig]) -> list[float]:
        return [count_macs(shape, num_classes, question.size) for shape in shapes]

    def both(shapes: Sequence[ModelConfig]) -> list[float]:
        shares = [[cost / costs[0] for cost in costs] for costs in (parameters(shapes), macs(shapes))]
        return [max(of_shape, key=lambda share: abs(share - 1)) for of_shape in zip(*shares, strict=True)]

    return {"parameters": parameters, "macs": macs, "parameters_and_macs": both}[question.quantity]


SCALES = np.exp(np.linspace(np.log(0.6), np.log(1.67), 52)).tolist()  # of all stages' channels, steps of 2 %
TILTS = (0.97, 1.03, 0.94, 1.06, 0.91, 1.09, 0.88, 1.12)  # of each stage's channels to the stage's before


def _scaled(known: Sequence[ModelConfig], tilts: Sequence[float] = (1.0,)) -> list[ModelConfig]:
    """Returns the first known shape with the channels of all stages scaled, and of each further one tilted."""
    model, options = known[0], model_options(known[0])
    name = "decoder_channels" if "decoder_channels" in options else "channels"
    own: Any = options[name] or getattr(on_meta(model, 2), name)
    lists = {
        tuple(max(1, round(width * scale * tilt ** (place - len(own) / 2))) for place, width in enumerate(own))
        for scale in SCALES
        for tilt in tilts
    }
    return [_changed(model, name, list(widths)) for widths in sorted(lists)]


def _tilted(known: Sequence[ModelConfig]) -> list[ModelConfig]:
    """Returns the same around the nearest known shape: what it adds to one stage is taken from the others."""
    return [shape for tilt in TILTS for shape in _scaled(known, (tilt,))]


def _changed(model: ModelConfig, option: str, value: object) -> ModelConfig:
    return ModelConfig(name=model.name, **{**model.options, option: value})


def _widths(known: Sequence[ModelConfig]) -> list[ModelConfig]:
    """Returns the only known shape in other widths, from half of its own to twice."""
    (model,) = known
    width = model_options(model).get("base_channels", 0)
    return [_changed(model, "base_channels", w) for w in range(max(1, width // 2), 2 * width + 1) if w != width]


def _convs(known: Sequence[ModelConfig]) -> list[ModelConfig]:
    """Returns the nearest shapes with one convolution more or less in one stage, at least one and at most eight."""
    found = []
    for shape in known[:NEAREST]:
        convs: Any = getattr(on_meta(shape, 2), "convs", ())
        for at in range(len(convs) if isinstance(convs, tuple) else 0):
            counts = [convs[at] + more for more in (1, -1) if 1 <= convs[at] + more <= 8]
            found += [_changed(shape, "convs", [*convs[:at], count, *convs[at + 1 :]]) for count in counts]
    return found


def count_parameters(num_classes: int) -> Measure:
    """Returns the measure of `parameters`."""
    return lambda shapes: [sum(each.numel() for each in on_meta(one, num_classes).parameters()) for one in shapes]


def time_shapes(num_classes: int, size: int) -> Measure:
    """Returns the measure of `latency` in milliseconds; shapes far from the reference in arithmetic are not timed."""

    def measure(shapes: Sequence[ModelConfig]) -> list[float]:
        macs = [count_macs(shape, num_classes, size) for shape in shapes]
        low, high = (share * macs[0] for share in MACS_RANGE)
        near = {str(at): (shape, size) for at, shape in enumerate(shapes) if not at or low <= macs[at] <= high}
        times = take_turns(_passes(near, _files(near, num_classes), MATCHED), REPEATS)
        return [float(np.quantile(times.get(str(at), [np.inf]), UNDISTURBED)) for at in range(len(shapes))]

    return measure


def measure_latencies(shapes: Shapes, num_classes: int, repeats: int = 200) -> dict[str, dict[str, LatencyInfo]]:
    """Returns shape -> setting -> its latency there; without OpenVINO those of ONNX Runtime alone."""
    files = _files(shapes, num_classes)
    found: dict[str, dict[str, LatencyInfo]] = {key: {} for key in shapes}
    for setting, (runtime, _) in SETTINGS.items():
        if runtime == "onnxruntime" or find_spec(runtime):
            others, times = OtherWork(), take_turns(_passes(shapes, files, setting), repeats)
            for key, taken in times.items():
                found[key][setting] = latency_of(taken, shapes[key][1], others)
    return found


def _files(shapes: Shapes, num_classes: int) -> dict[str, bytes]:
    hardware = choose_hardware("fp32", "cpu")
    return {key: as_onnx(build_network(config, num_classes, hardware), size) for key, (config, size) in shapes.items()}


def _passes(shapes: Shapes, files: Mapping[str, bytes], setting: str) -> dict[str, Callable[[], object]]:
    """Returns what computes one image of each shape."""
    runtime, threads = SETTINGS[setting]
    images = {size: drawn_images(size)[:1] for _, size in shapes.values()}
    return {
        key: partial(RUNTIMES[runtime](file, threads, False), images[shapes[key][1]]) for key, file in files.items()
    }
