"""`petseg bench`: how long one picture takes and how much memory, for every runtime at hand, on this machine.

Each contender (a model at a size, on a runtime, with some threads) has a process of its own. Those of one size and
number of threads take turns, every second turn in reverse order, so that a busy moment of the machine hits all alike.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from petseg import runs
from petseg.data.oxford_pets import UInt8
from petseg.errors import PetsegError, unknown_name
from petseg.predict import Segmenter, model_file

K = TypeVar("K")
T = TypeVar("T")

CONTENDERS = {
    "torch": ("torch, fp32", ("torch",), "train"),
    "torch-bf16": ("torch, bf16", ("torch",), "train"),
    "onnxruntime": ("ONNX Runtime, fp32", (), ""),
    "onnxruntime-int8": ("ONNX Runtime, int8", ("onnx", "torch"), "export"),
    "openvino": ("OpenVINO, fp32", ("openvino",), "openvino"),
    "openvino-bf16": ("OpenVINO, bf16", ("openvino",), "openvino"),
}
"""Name -> title, what the light install lacks for it, and the extra that brings that."""

WARM_UP = 10
"""Runs before the first that counts."""

TURN_SECONDS = 0.25
"""What a turn lasts, about."""

INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""What decides which runtime is fast, where the processor has it."""


@dataclass(frozen=True)
class Contender:
    """What one process measures."""

    model: str
    size: int
    threads: int
    runtime: str
    file: bytes
    """ONNX; empty for torch."""
    network: dict[str, Any]
    """Fields of `ModelConfig`, for torch, which draws weights at random: time does not depend on them."""
    num_classes: int


def bench(
    models: Sequence[str],
    sizes: Sequence[int] = (),
    threads: Sequence[int] = (1,),
    runtimes: Sequence[str] = (),
    *,
    turns: int = 7,
    data: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Returns what was measured, on what, and what was not, ready for JSON: one picture at a time, from bytes on.

    Args:
        models: shipped models, or ONNX files that `petseg export` wrote.
        sizes: sides in pixels, in steps that each level of the network halves evenly; empty: each model's own.
        threads: of one call.
        runtimes: of `CONTENDERS`; empty: all.
        turns: how often each contender is measured.
        data: the data set, whose training pictures set the scales of int8; None: drawn pets, which take the same time.
        on_progress: called with (done, total) turns.

    Raises:
        PetsegError: an unknown model or runtime.
    """
    for name in runtimes:
        if name not in CONTENDERS:
            raise unknown_name("--runtime", name, CONTENDERS)
    wanted = tuple(dict.fromkeys(runtimes)) or tuple(CONTENDERS)
    missing = {name: told for name in wanted if (told := _missing(name))}
    contenders = []
    for model in dict.fromkeys(models):
        contenders += _contenders(model, sizes, threads, [name for name in wanted if name not in missing], data)
    groups: dict[tuple[int, int], list[Contender]] = defaultdict(list)
    for contender in contenders:
        groups[contender.size if sizes else 0, contender.threads].append(contender)  # own sizes: models take turns
    rows, done = [], 0
    for group in groups.values():
        with _processes(group) as measured:
            found: dict[int, list[list[float]]] = {place: [] for place in range(len(group))}
            for place, seconds in take_turns({place: each.turn for place, each in enumerate(measured)}, turns):
                found[place].append(seconds)
                done += 1
                if on_progress is not None:
                    on_progress(done, turns * len(contenders))
            rows += [_row(each, found[place], measured[place].peak()) for place, each in enumerate(group)]
    versions = {name: version(name) for name in ("onnxruntime", "openvino") if find_spec(name)}
    return {
        "environment": runs.environment(device="cpu", precision="as told", threads=max(threads)),
        "versions": versions,
        "instructions": _instructions(),
        "turns": turns,
        "calibration": "training pictures" if data else "drawn pets",
        "rows": rows,
        "not_measured": missing,
    }


def take_turns(contenders: Mapping[K, Callable[[], T]], turns: int) -> Iterator[tuple[K, T]]:
    """Yields each contender's result, turn after turn; every second turn goes backwards, so that drift hits all alike.

    >>> "".join(name for name, _ in take_turns({"a": int, "b": int, "c": int}, 3))
    'abccbaabc'
    """
    for turn in range(turns):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            yield name, contenders[name]()


def _missing(runtime: str) -> str:
    """Returns what to do before a runtime can be measured; empty: nothing."""
    _, needed, extra = CONTENDERS[runtime]
    lacking = [name for name in needed if find_spec(name) is None]
    return f"needs {' and '.join(lacking)}; pip install 'petseg[{extra}]'" if lacking else ""


def _contenders(
    model: str, sizes: Sequence[int], threads: Sequence[int], wanted: Sequence[str], data: Path | None
) -> list[Contender]:
    """Returns what is to be measured of one model; no sizes: its own."""
    file = model_file(model)
    loaded = Segmenter(model, threads=1, runtime="onnxruntime")
    files = dict.fromkeys(wanted, file) | {name: b"" for name in wanted if name.startswith("torch")}
    if "onnxruntime-int8" in files:
        files["onnxruntime-int8"] = _int8(file, loaded.card, data)
    network, classes = loaded.card["config"]["model"], len(loaded.classes)
    return [
        Contender(loaded.name, size, count, runtime, made, network, classes)
        for size in dict.fromkeys(sizes or (loaded.size,))
        for count in dict.fromkeys(threads)
        for runtime, made in files.items()
    ]


def _int8(file: bytes, card: Mapping[str, Any], data: Path | None) -> bytes:
    """Returns the file in int8, its scales set by training pictures where there are any."""
    from petseg.config import RunConfig
    from petseg.convert import drawn_pictures
    from petseg.data.cache import prepare
    from petseg.quantise import calibration_pictures, quantised

    if data is None:
        return quantised(file, drawn_pictures(card["size"]))
    prepared = prepare(data, card["size"])
    return quantised(file, calibration_pictures(prepared, RunConfig.model_validate(card["config"])))


# --- processes -------------------------------------------------------------------------------------------------------


class _Measured:
    """A contender's process, loaded and warm."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def turn(self) -> list[float]:
        """Returns the seconds of each run of one turn."""
        self._pipe.send("turn")
        return self._answer()  # type: ignore[no-any-return]

    def peak(self) -> float | None:
        """Returns the most memory that it took, in MB beyond what importing the runtime takes; None: not known here."""
        self._pipe.send("peak")
        return self._answer()  # type: ignore[no-any-return]

    def ready(self, name: str) -> None:
        """Waits until it is warm.

        Raises:
            PetsegError: it cannot compute the model.
        """
        if (told := self._answer()) is not None:
            raise PetsegError(f"{name}: {told}; leave it out with --runtime")

    def _answer(self) -> Any:
        return self._pipe.recv()


@contextmanager
def _processes(contenders: Sequence[Contender]) -> Iterator[list[_Measured]]:
    """Starts a process for each, one after the other, and ends them."""
    context = get_context("spawn")
    processes, measured, ends = [], [], []
    try:
        for contender in contenders:
            ours, theirs = context.Pipe()
            process = context.Process(target=_contend, args=(theirs, contender), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            ends.append(ours)
            measured.append(_Measured(ours))
            measured[-1].ready(f"{contender.model} on {contender.runtime}")
        yield measured
    finally:
        for pipe in ends:
            pipe.close()
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()


def _contend(pipe: Connection, contender: Contender) -> None:
    """Answers, in a process of its own, until the other end closes."""
    pictures = np.random.default_rng(0).integers(0, 256, (1, contender.size, contender.size, 3), np.uint8)
    try:
        before, run = _loaded(contender)
        for _ in range(WARM_UP):
            run(pictures)
        started = time.perf_counter()
        run(pictures)
        repeats = int(np.clip(TURN_SECONDS / (time.perf_counter() - started), 5, 100))
        pipe.send(None)
    except Exception as error:  # each runtime has its own; the parent tells which contender it was
        pipe.send(str(error).partition("\n")[0] or type(error).__name__)
        return
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        if asked == "peak":
            highest = _resident("VmHWM")
            pipe.send(None if highest is None or before is None else highest - before)
            continue
        run(pictures)  # the others had the caches
        taken = []
        for _ in range(repeats):
            started = time.perf_counter()
            run(pictures)
            taken.append(time.perf_counter() - started)
        pipe.send(taken)


def _loaded(contender: Contender) -> tuple[float | None, Callable[[UInt8], object]]:
    """Returns the resident memory in MB before the model is loaded, and the model."""
    runtime, threads = contender.runtime, contender.threads
    if runtime.startswith("torch"):
        import torch

        from petseg.config import ModelConfig
        from petseg.models import build_model, normalise, to_unit_range

        torch.set_num_threads(threads)
        before = _resident("VmRSS")
        torch.manual_seed(0)
        network = build_model(ModelConfig(**contender.network), contender.num_classes)
        network.eval().to(memory_format=torch.channels_last)

        def run(pictures: UInt8) -> object:
            images = normalise(to_unit_range(torch.from_numpy(pictures)), network).contiguous(
                memory_format=torch.channels_last
            )
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=runtime == "torch-bf16"):
                return network(images).float().softmax(dim=1).numpy()

        return before, run
    if runtime.startswith("openvino"):
        import openvino  # noqa: F401 - counted before the model

        from petseg.runtimes import OpenVino

        before = _resident("VmRSS")
        return before, OpenVino(contender.file, threads, precision="bf16" if runtime == "openvino-bf16" else "f32")
    from petseg.runtimes import OnnxRuntime

    before = _resident("VmRSS")
    return before, OnnxRuntime(contender.file, threads)


# --- figures ---------------------------------------------------------------------------------------------------------


def _row(contender: Contender, turns: Sequence[Sequence[float]], peak: float | None) -> dict[str, Any]:
    """Returns a contender's figures; the interval is that of the turns' medians."""
    every = 1000 * np.concatenate([np.asarray(turn) for turn in turns])
    medians = [1000 * float(np.median(turn)) for turn in turns]
    named = {name: value for name, value in asdict(contender).items() if name not in ("file", "network", "num_classes")}
    return {
        **named,
        "title": CONTENDERS[contender.runtime][0],
        "p50_ms": round(float(np.median(every)), 3),
        "p50_low_ms": round(min(medians), 3),
        "p50_high_ms": round(max(medians), 3),
        "p95_ms": round(float(np.quantile(every, 0.95)), 3),
        "images_per_second": round(1000 * len(every) / float(every.sum()), 1),
        "peak_mb": None if peak is None else round(peak, 1),
        "repeats": len(every),
        "turn_medians_ms": [round(value, 3) for value in medians],
    }


def _resident(field: str) -> float | None:
    """Returns a field of this process's memory in MB, VmRSS now or VmHWM the highest; None where there is no /proc."""
    try:
        found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    except OSError:
        return None
    return None if found is None else 1024 * int(found[1]) / 1e6


def _instructions() -> list[str]:
    """Returns those of `INSTRUCTIONS` that the processor has; empty where it does not tell."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for name in INSTRUCTIONS if name in flags]
