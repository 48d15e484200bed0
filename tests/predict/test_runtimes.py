"""Runtimes: OpenVINO answers as ONNX Runtime does, and the rule that chooses between them."""

import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from petseg import Segmenter
from petseg.export.openvino import drawn_images
from petseg.predict import runtimes
from petseg.predict.runtimes import (
    SIZES,
    WORTH_STARTING,
    OnnxRuntime,
    OpenVino,
    chosen_runtime,
    fast_precision,
    openvino_core,
)
from petseg.shipped import model_file
from tests.conftest import refused


@pytest.mark.parametrize("name", ["unet_small", "segnet_small"])
def test_openvino_gives_onnx_runtime_s_answers(name):
    file, images = model_file(name), drawn_images(128)[:4]
    onnx_runtime, openvino = OnnxRuntime(file, 1), OpenVino(file, 1, precision="f32")
    assert openvino.metadata == onnx_runtime.metadata
    theirs, ours = onnx_runtime(images), openvino(images)
    assert ours.dtype == np.float32
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.9999
    assert np.array_equal(openvino(images[2:3]), ours[2:3])
    other = drawn_images(192)[:1]
    assert np.abs(openvino(other) - onnx_runtime(other)).max() < 1e-3


GROWTH = """
import re
from pathlib import Path
import numpy as np
from petseg.predict.runtimes import OnnxRuntime
from petseg.shipped import model_file
def resident():
    return 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
runtime = OnnxRuntime(model_file("unet_small"), 1)
runtime(np.zeros((1, 160, 160, 3), np.uint8))
before = resident()
for shape in ((1, 1024, 1024, 3), (32, 160, 160, 3)):
    runtime(np.zeros(shape, np.uint8))
    print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_large_image_or_many_leave_no_memory_behind():
    grown = subprocess.check_output([sys.executable, "-c", GROWTH], text=True).split()
    assert len(grown) == 2
    assert max(map(int, grown)) < 50e6


ONE_PHOTO = """
import re, sys
from pathlib import Path
from petseg import Segmenter
from petseg.memory import give_back_freed_memory
if one_photo := sys.argv[1] == "one":
    give_back_freed_memory()
result = Segmenter(threads=1, one_photo=one_photo)(sys.argv[2])
result.cutout()
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(1024 * int(peak), result.mask.shape, int(result.mask.sum(dtype=int)))
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone")
def test_one_photo_takes_less_memory_and_has_the_same_answer(tmp_path):
    photo = tmp_path / "large.jpg"
    with Image.open(Path(runtimes.__file__).parents[1] / "serve" / "page" / "cat.jpg") as cat:
        cat.resize((4000, 2661)).save(photo)
    (one, *answer), (kept, *wanted) = (
        subprocess.check_output([sys.executable, "-c", ONE_PHOTO, how, str(photo)], text=True).split(" ", 1)
        for how in ("one", "kept")
    )
    assert answer == wanted
    assert int(one) < int(kept) - 50e6, "the cut-out is made when the network's memory has been given back"


def test_openvino_keeps_the_sizes_used_last_and_threads_that_change_sizes_get_their_own_answers():
    runtime = OpenVino(model_file("unet_small"), 1, streams=4, precision="f32")
    images = {side: drawn_images(side)[:1] for side in (160, *range(32, 256, 32))}
    wanted = {side: runtime(images[side]) for side in images}
    assert [shape[0] for shape in runtime._sizes] == [*images][-SIZES:]
    for side in (160, 32, 160, 64, 160, 96, 160, 128, 160, 192):
        runtime(images[side])
    assert [shape[0] for shape in runtime._sizes] == [96, 128, 160, 192]
    sides = [*images] * 8
    with ThreadPoolExecutor(4) as pool:
        for side, answer in zip(sides, pool.map(lambda side: runtime(images[side]), sides), strict=True):
            assert np.array_equal(answer, wanted[side]), side
    assert len(runtime._sizes) == SIZES
    assert all(1 <= len(idle) <= 4 for _, idle in runtime._sizes.values())


def test_the_rule_takes_openvino_for_many_photos_where_it_is_installed_and_has_bf16(monkeypatch):
    monkeypatch.delenv("PETSEG_RUNTIME")
    for precision, installed, wanted in (
        ("bf16", True, "openvino"),
        ("", True, "onnxruntime"),
        ("f32", False, "onnxruntime"),
    ):
        monkeypatch.setattr(runtimes, "fast_precision", lambda precision=precision: precision)
        monkeypatch.setattr(runtimes, "find_spec", lambda name, installed=installed: object() if installed else None)
        assert chosen_runtime() == wanted
        assert chosen_runtime(WORTH_STARTING - 1) == "onnxruntime"


def test_openvino_computes_in_the_precision_that_is_measured_to_be_fast(monkeypatch):
    able = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    measured = fast_precision()
    assert measured in ("bf16", "f32") if "BF16" in able else measured == ""
    monkeypatch.setattr(runtimes, "fast_precision", lambda: "f32")
    file, images = model_file("unet_small"), drawn_images(64)[:1]
    assert np.array_equal(OpenVino(file, 1)(images), OpenVino(file, 1, precision="f32")(images))


INTERRUPTED = """
import signal
import numpy as np
from petseg.predict.runtimes import OpenVino
from petseg.shipped import model_file
first, second = (OpenVino(model_file("unet_small"), 1, precision="f32") for _ in range(2))
first(np.zeros((1, 32, 32, 3), np.uint8))
second(np.zeros((1, 32, 32, 3), np.uint8))
del first
del second
signal.raise_signal(signal.SIGINT)
"""


def test_ctrl_c_interrupts_after_models_ended_in_the_order_of_their_start():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("KeyboardInterrupt\n")


def test_a_user_chooses_the_runtime(monkeypatch):
    monkeypatch.setenv("PETSEG_RUNTIME", "openvino")
    assert chosen_runtime(1) == Segmenter("unet_small", threads=1).runtime == "openvino"
    monkeypatch.setenv("PETSEG_RUNTIME", "tensorrt")
    refused("PETSEG_RUNTIME 'tensorrt' is unknown; choose one of: openvino, onnxruntime", Segmenter, "unet_small")
    refused("runtime 'torch' is unknown", Segmenter, "unet_small", runtime="torch")
