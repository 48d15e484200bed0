"""What runs a model file: ONNX Runtime, which is always there, or OpenVINO where it is installed and faster."""

import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import onnxruntime

from petseg.cores import core_count
from petseg.data.dataset import UInt8
from petseg.errors import unknown_name
from petseg.predict.enlarge import Floats

# photos from which OpenVINO saves more than it costs: it starts .25 s later and takes 8 ms less for each photo
# (U-Net of 16 channels at 128 px, one thread of an Intel Xeon with AMX, OpenVINO 2026.4, 2026-11-22)
WORTH_STARTING = 32
# sizes that OpenVINO keeps a model compiled for, as many as a request of the API averages over: compiling one takes 0.2
# to 0.4 s. 16 sizes up to 576 px in turn take 1.1 GB, all of them kept 1.9 (unet_lite2, one thread, OpenVINO 2026.4)
SIZES = 4
# pixels above which a call of ONNX Runtime gives its memory back: 770 MB after one of 1024 x 1024 px. Smaller ones keep
# it for the next: giving back costs a fifth of a call (unet_lite2, a thread of an Intel Xeon, ONNX Runtime 1.32.0)
LARGE = 512 * 512
Taken = tuple[str, str, tuple[int | None, ...]]  # what a network takes: name, kind of number, axes; None is a free one


@cache
def _one_arena() -> bool:
    """Returns whether all sessions of this process take memory from one place.

    Five models under two threads: 304 MB beyond the process where an arena each took 490 MB, and no slower
    (two cores of an AMD EPYC, ONNX Runtime 1.32.0, 256 px, 2026-11-27).
    """
    kind, place = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    try:
        onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, place), None)
    except RuntimeError:  # the program that petseg is used in has one of its own
        return False
    return True


class OnnxRuntime:
    """A loaded ONNX file, called from any number of threads; `threads` are of one call, None takes all cores.

    `one_photo` keeps no memory of a call for the next one, which takes a quarter longer then.
    """

    def __init__(self, file: bytes, threads: int | None = None, *, one_photo: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        limited = core_count() < (os.cpu_count() or 1)  # the runtime itself sees neither affinity nor container
        options.intra_op_num_threads = threads or (core_count() if limited else 0)  # 0: a thread a core
        # it plans all maps side by side: at 512 px 103 instead of 146 MB (U-Net), 97 instead of 152 (SegNet), no slower
        options.enable_mem_pattern = False
        if one_photo:
            options.enable_cpu_mem_arena = False
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # for a next call that is not made
        elif _one_arena():
            options.add_session_config_entry("session.use_env_allocators", "1")
        options.log_severity_level = 4  # what goes wrong is raised; the log would tell it a second time
        self._giving_back = onnxruntime.RunOptions()
        self._giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        (taken,) = self._session.get_inputs()
        axes = tuple(axis if isinstance(axis, int) else None for axis in taken.shape)
        self.takes: Taken = (taken.name, taken.type.removeprefix("tensor(").removesuffix(")"), axes)
        halved = re.match(r"(\d+)\*", str(taken.shape[1]))  # a free side is called 32*h, if that is its step
        self.step = int(halved[1]) if halved else 1

    def __call__(self, images: UInt8) -> Floats:
        """Returns probabilities [N, C, h, w] of images [N, h, w, 3], computed one by one: memory is of one."""
        options = self._giving_back if images.shape[1] * images.shape[2] > LARGE else None
        run = partial(self._session.run, ["probabilities"], run_options=options)
        return np.concatenate([run({"image": image})[0] for image in images[:, None]])


@cache
def openvino_core() -> Any:
    """Returns the only `openvino.Core` of this process, which lives as long.

    Each core gives its thread a stack for signals and takes back the former one at its end, even if that belonged to a
    core that has ended: the next signal, such as Ctrl-C, is a segmentation fault then (OpenVINO 2026.4, Linux).
    """
    import openvino

    return openvino.Core()


class OpenVino:
    """The same by OpenVINO; `streams` calls are computed at once; `precision` is f32, bf16 or what is fast."""

    def __init__(self, file: bytes, threads: int | None = None, streams: int = 1, precision: str = "") -> None:
        self._model = openvino_core().read_model(file)
        all_threads = streams * (threads or core_count())
        self._settings = {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": str(all_threads)}
        if precision := precision or fast_precision():
            self._settings["INFERENCE_PRECISION_HINT"] = precision
        # size -> the model compiled for it, and its idle requests; the size used last is the last one
        self._sizes = OrderedDict[tuple[int, ...], tuple[Any, list[Any]]]()
        self._compiling = threading.Lock()
        info = self._model.get_rt_info()
        stored = info["framework"] if "framework" in info else {}  # noqa: SIM401 - it has no `get`
        self.metadata: dict[str, str] = {name: value.astype(str) for name, value in stored.items()}
        (taken,) = self._model.inputs
        kind = {"u8": "uint8"}.get(taken.element_type.get_type_name(), "another kind")
        axes = tuple(axis.get_length() if axis.is_static else None for axis in taken.partial_shape)
        self.takes: Taken = (taken.any_name, kind, axes)

    def __call__(self, images: UInt8) -> Floats:
        """Returns probabilities [N, C, h, w] of images [N, h, w, 3]."""
        compiled, idle = self._of_size(images.shape[1:])
        try:
            request = idle.pop()
        except IndexError:  # all are in use by other threads
            request = compiled.create_infer_request()
        probabilities = np.concatenate([request.infer([image])[0] for image in images[:, None]])
        idle.append(request)
        return probabilities

    def _of_size(self, shape: tuple[int, ...]) -> tuple[Any, list[Any]]:
        with suppress(KeyError):  # calls of a known size do not wait for one that is compiled
            self._sizes.move_to_end(shape)
            return self._sizes[shape]
        with self._compiling:
            if shape not in self._sizes:  # else another thread was first
                self._model.reshape([1, *shape])
                self._sizes[shape] = openvino_core().compile_model(self._model, "CPU", self._settings), []
                if len(self._sizes) > SIZES:
                    self._sizes.popitem(last=False)
            return self._sizes[shape]


@cache
def fast_precision() -> Literal["bf16", "f32", ""]:
    """Returns in which precision OpenVINO multiplies faster here, measured in 0.1 s; "" where the CPU has no bf16.

    Having bf16 is not enough: an Intel Xeon without AMX takes 1.5 times as long in bf16, an AMD EPYC half as long.
    """
    import openvino
    from openvino import opset13 as operations

    core = openvino_core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return ""
    matrix = np.ones((512, 512), np.float32)
    precisions: tuple[Literal["f32", "bf16"], ...] = ("f32", "bf16")
    requests = {}
    for precision in precisions:
        given = operations.parameter(matrix.shape, np.float32)
        product = operations.matmul(given, operations.constant(matrix), False, False)
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": "1"}
        model = openvino.Model([product], [given])
        requests[precision] = core.compile_model(model, "CPU", settings).create_infer_request()
    seconds: dict[str, list[float]] = {precision: [] for precision in precisions}
    for _ in range(9):
        for precision, request in requests.items():
            started = time.perf_counter()
            request.infer([matrix])
            seconds[precision].append(time.perf_counter() - started)
    return min(precisions, key=lambda precision: min(seconds[precision]))


Runtime = OnnxRuntime | OpenVino
# called with a file, the threads of one call and whether there is one photo alone
RUNTIMES: dict[str, Callable[[bytes, int | None, bool], Runtime]] = {
    "onnxruntime": lambda file, threads, one_photo: OnnxRuntime(file, threads, one_photo=one_photo),
    # where each call takes one thread, many threads call
    "openvino": lambda file, threads, _: OpenVino(file, threads, streams=core_count() if threads == 1 else 1),
}


def chosen_runtime(photos: int = WORTH_STARTING) -> str:
    """Returns PETSEG_RUNTIME, else OpenVINO where it is installed, fast and worth its start, or ONNX Runtime.

    It is known to be the faster one on processors that have bf16, even where that is not fast: 86 ms an image for
    118, in float32 with one thread (unet_lite2, an Intel Xeon without AMX, results/benchmarks/no_amx.json).
    """
    if wanted := os.environ.get("PETSEG_RUNTIME"):
        if wanted not in RUNTIMES:
            raise unknown_name("PETSEG_RUNTIME", wanted, RUNTIMES)
        return wanted
    if photos < WORTH_STARTING or find_spec("openvino") is None:
        return "onnxruntime"
    return "openvino" if fast_precision() else "onnxruntime"
