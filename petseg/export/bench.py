"""`petseg bench`: how long one image takes and how much memory, for every runtime at hand, on this machine.

Each contender has a process of its own; those of one size and number of threads take turns.
"""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from petseg import environment as machine
from petseg.data.dataset import UInt8
from petseg.errors import PetsegError, first_line, unknown_name
from petseg.predict.runtimes import OnnxRuntime, OpenVino
from petseg.predict.segmenter import Segmenter
from petseg.schema import EnvironmentInfo, Record
from petseg.shipped import model_file

K = TypeVar("K")
T = TypeVar("T")
Run = Callable[[UInt8], object]

CONTENDERS = {  # name -> title, what the light install lacks for it, and the extra that brings that
    "torch": ("torch, fp32", ("torch",), "train"),
    "torch-bf16": ("torch, bf16", ("torch",), "train"),
    "onnxruntime": ("ONNX Runtime, fp32", (), ""),
    "onnxruntime-int8": ("ONNX Runtime, int8", ("onnx", "torch"), "export"),
    "openvino": ("OpenVINO, fp32", ("openvino",), "openvino"),
    "openvino-bf16": ("OpenVINO, bf16", ("openvino",), "openvino"),
    "openvino-int8": ("OpenVINO, int8", ("openvino", "onnx", "torch"), "openvino,export"),
}
LIBRARIES = {"timm": "timm", "smp": "segmentation_models_pytorch"}  # what torch needs for networks of these prefixes

WARM_UP = 10  # runs before the first that counts
TURN_SECONDS = 0.25  # what a turn lasts, about
# what decides which runtime is fast, where the processor has it
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    models: Sequence[str]  # shipped models, or ONNX files that `petseg export` wrote
    sizes: Sequence[int] = ()  # sides in pixels that each level of the network halves evenly; empty: each model's own
    threads: Sequence[int] = (1,)  # of one call
    runtimes: Sequence[str] = ()  # of `CONTENDERS`; empty: all
    turns: int = 7  # how often each contender is measured
    data: Path | None = None  # whose training images set the scales of int8; None: synthetic pets, as fast


class BenchRow(Record):
    """One contender's figures; the interval is that of the turns' medians."""

    model: str
    size: int
    threads: int
    runtime: str
    title: str
    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p95_ms: float
    images_per_second: float
    peak_mb: float | None  # beyond what importing the runtime takes; None: the system does not say
    repeats: int
    turn_medians_ms: tuple[float, ...]


class BenchResult(Record):
    """What was measured, on what, and what was not: one image at a time, from bytes on."""

    kind: str = "benchmark"
    command: str = ""
    environment: EnvironmentInfo
    versions: dict[str, str]
    instructions: tuple[str, ...]
    turns: int
    calibration: str
    rows: tuple[BenchRow, ...]
    not_measured: dict[str, str]  # runtime -> what to install


@dataclass(frozen=True)
class Contender:
    """A model at a size, on a runtime, with some threads of one call."""

    model: str
    size: int
    threads: int
    runtime: str
    file: bytes  # ONNX
    network: Mapping[str, Any]  # of `ModelConfig`, for torch, which draws weights: time does not depend on them
    num_classes: int


def bench(plan: Plan, on_progress: Callable[[int, int], None] = lambda done, total: None) -> BenchResult:
    """Returns the figures of every contender that can be measured here; progress is (done, total) turns."""
    missing: dict[str, str] = {}
    for name in plan.runtimes or CONTENDERS:
        if name not in CONTENDERS:
            raise unknown_name("--runtime", name, CONTENDERS)
        _, needed, extra = CONTENDERS[name]
        if lacking := [package for package in needed if find_spec(package) is None]:
            missing[name] = f"needs {' and '.join(lacking)}; pip install 'petseg[{extra}]'"
    runtimes = [name for name in dict.fromkeys(plan.runtimes or CONTENDERS) if name not in missing]
    models = [Segmenter(model, threads=1, runtime="onnxruntime") for model in dict.fromkeys(plan.models)]
    for model in models if plan.sizes else ():
        _check_sizes(model, plan.sizes)
    contenders = []
    for each in (one for model in models for one in _contenders(plan, model, runtimes)):
        library = LIBRARIES.get(each.network.get("name", "").partition(":")[0])
        if each.runtime.startswith("torch") and library and find_spec(library) is None:
            missing[f"{each.model}, {each.runtime}"] = f"needs {library}; pip install 'petseg[models]'"
        else:
            contenders.append(each)
    groups: dict[tuple[int, int], list[Contender]] = defaultdict(list)
    for contender in contenders:  # at their own sizes all models take turns
        groups[contender.size if plan.sizes else 0, contender.threads].append(contender)
    rows: list[BenchRow] = []

    def report(done: int) -> None:
        on_progress(len(rows) * plan.turns + done, len(contenders) * plan.turns)

    for group in groups.values():
        rows += _measure(group, plan.turns, report)
    about = machine.environment(device="cpu", precision="as listed", threads=max(plan.threads))
    flags = _proc("cpuinfo").split()
    return BenchResult(
        environment=EnvironmentInfo.model_validate(about),
        versions={name: version(name) for name in ("onnxruntime", "openvino") if find_spec(name)},
        instructions=tuple(name for name in INSTRUCTIONS if name in flags),
        turns=plan.turns,
        calibration="training images" if plan.data else "synthetic pets",
        rows=tuple(rows),
        not_measured=missing,
    )


def take_turns(contenders: Mapping[K, Callable[[], T]], turns: int) -> Iterator[tuple[K, T]]:
    """Yields each contender's result, turn after turn; every second turn goes backwards, so that drift hits all alike.

    >>> "".join(name for name, _ in take_turns({"a": int, "b": int, "c": int}, 3))
    'abccbaabc'
    """
    for turn in range(turns):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            yield name, contenders[name]()


def _check_sizes(model: Segmenter, sizes: Sequence[int]) -> None:
    """Refuses a size that the model does not take."""
    network = OnnxRuntime(model_file(model.name), 1)
    fixed, step = network.takes[2][1], network.step
    for size in sizes:
        if fixed not in (None, size):
            raise PetsegError(f"--size {size}: {model.name} takes {fixed} px alone; leave --size out")
        if size % step:
            near = [str(side) for side in (size // step * step, (size // step + 1) * step) if side]
            raise PetsegError(f"--size {size}: {model.name} takes multiples of {step}; give {' or '.join(near)}")


def _contenders(plan: Plan, loaded: Segmenter, runtimes: Sequence[str]) -> list[Contender]:
    """Returns what is to be measured of one model."""
    file = model_file(loaded.name)
    files = dict.fromkeys(runtimes, file)
    if in_int8 := [name for name in runtimes if name.endswith("-int8")]:
        from petseg.config import RunConfig
        from petseg.data.cache import prepare
        from petseg.data.geometry import Geometry
        from petseg.data.sources import open_dataset
        from petseg.export.openvino import drawn_images
        from petseg.export.quantise import calibration_images, quantised

        images = drawn_images(loaded.size)
        if plan.data is not None:
            config = RunConfig.model_validate(loaded.card["config"])
            images = calibration_images(prepare(open_dataset(plan.data, config.data), Geometry.of(config.data)))
        files |= dict.fromkeys(in_int8, quantised(file, images))
    network, classes = loaded.card["config"]["model"], len(loaded.classes)
    return [
        Contender(loaded.name, size, count, runtime, content, network, classes)
        for size in dict.fromkeys(plan.sizes or (loaded.size,))
        for count in dict.fromkeys(plan.threads)
        for runtime, content in files.items()
    ]


def _measure(group: Sequence[Contender], turns: int, report: Callable[[int], None]) -> list[BenchRow]:
    """Returns the rows of contenders that take turns, each in a process of its own."""
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for _ in group]
        before = [pool.submit(_load, contender).result() for pool, contender in zip(pools, group, strict=True)]
        seconds: list[list[list[float]]] = [[] for _ in group]
        contenders = {place: lambda pool=pool: pool.submit(_turn).result() for place, pool in enumerate(pools)}
        for done, (place, taken) in enumerate(take_turns(contenders, turns), start=1):
            seconds[place].append(taken)
            report(done)
        highest = [pool.submit(_resident, "VmHWM").result() for pool in pools]
    peaks = [None if high is None or low is None else high - low for high, low in zip(highest, before, strict=True)]
    return [_row(*each) for each in zip(group, seconds, peaks, strict=True)]


_runs: list[Callable[[], object]] = []  # the one of a contender's own process


def _load(contender: Contender) -> float | None:
    """Warms the model up; returns the memory in MB that its runtime takes without it."""
    images = np.random.default_rng(0).integers(0, 256, (1, contender.size, contender.size, 3), np.uint8)
    try:
        run, before = (_torch if contender.runtime.startswith("torch") else _file)(contender)
        _runs.append(partial(run, images))
        for _ in range(WARM_UP):
            _runs[0]()
    except Exception as error:  # each runtime has its own kinds
        name = f"{contender.model} on {contender.runtime}"
        raise PetsegError(f"{name}: {first_line(error)}; leave it out with --runtime") from None
    return before


def _turn() -> list[float]:
    """Returns the seconds of each run of one turn."""
    _runs[0]()  # the others had the caches
    seconds: list[float] = []
    while len(seconds) < 5 or (sum(seconds) < TURN_SECONDS and len(seconds) < 100):
        started = time.perf_counter()
        _runs[0]()
        seconds.append(time.perf_counter() - started)
    return seconds


def _file(contender: Contender) -> tuple[Run, float | None]:
    precision = {"openvino": "f32", "openvino-bf16": "bf16", "openvino-int8": "f32"}.get(contender.runtime)
    if precision:
        import openvino  # noqa: F401 - counted before the model
    before = _resident("VmRSS")
    if precision:
        return OpenVino(contender.file, contender.threads, precision=precision), before
    return OnnxRuntime(contender.file, contender.threads), before


def _torch(contender: Contender) -> tuple[Run, float | None]:
    import torch

    from petseg.config import ModelConfig
    from petseg.models import build_model, model_input, to_unit_range

    before = _resident("VmRSS")
    torch.set_num_threads(contender.threads)
    config, layout = ModelConfig(**contender.network), torch.channels_last
    normalise = model_input(config).normalise
    network = build_model(config, contender.num_classes).eval().to(memory_format=layout)  # type: ignore[call-overload]

    def run(images: UInt8) -> object:
        batch = normalise(to_unit_range(torch.from_numpy(images))).contiguous(memory_format=layout)
        bf16 = contender.runtime == "torch-bf16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return network(batch).float().softmax(dim=1).numpy()

    return run, before


def _row(contender: Contender, turns: Sequence[Sequence[float]], peak: float | None) -> BenchRow:
    milliseconds = 1000 * np.concatenate(turns)
    medians = tuple(round(1000 * float(np.median(turn)), 3) for turn in turns)
    p50, p95 = (round(float(quantile), 3) for quantile in np.quantile(milliseconds, (0.5, 0.95)))
    return BenchRow(
        **{name: getattr(contender, name) for name in ("model", "size", "threads", "runtime")},
        title=CONTENDERS[contender.runtime][0],
        p50_ms=p50,
        p50_low_ms=min(medians),
        p50_high_ms=max(medians),
        p95_ms=p95,
        images_per_second=round(1000 / float(milliseconds.mean()), 1),
        peak_mb=None if peak is None else round(peak, 1),
        repeats=len(milliseconds),
        turn_medians_ms=medians,
    )


def _resident(field: str) -> float | None:
    """Returns a field of this process's memory in MB, VmRSS now or VmHWM the highest; None where there is no /proc."""
    match = re.search(rf"{field}:\s+(\d+)", _proc("self/status"))
    return None if match is None else 1024 * int(match[1]) / 1e6


def _proc(name: str) -> str:
    path = Path("/proc") / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""
