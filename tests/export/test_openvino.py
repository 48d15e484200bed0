"""Shipped models as files, the formats, and runs in each of them: checked before they are kept."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from petseg.errors import PetsegError
from petseg.export import onnx as export
from petseg.export import openvino as convert
from petseg.export.onnx import export_model
from petseg.export.openvino import AGREEMENT, WEIGHTS, OpenVINO, chosen_format, compare, drawn_images, export_shipped
from petseg.predict.segmenter import Segmenter
from tests.cli.test_commands import one_line_error, petseg
from tests.export.test_onnx import CLASSES, probabilities, trained_like

ROOT = Path(__file__).parents[2]
DESCRIPTION = {"classes": CLASSES, "size": 32}


def openvino_answers(path: Path, images: np.ndarray) -> np.ndarray:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(images)[0]


def torch_answers(path: Path, images: np.ndarray) -> np.ndarray:
    program = torch.export.load(io.BytesIO(path.read_bytes()))
    with torch.inference_mode():
        return program.module()(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize(
    ("name", "kind", "ending"),
    [("unet", "torch", ".pt2"), ("segnet", "torch", ".pt2"), ("segnet", "openvino", ".xml")],
)
@pytest.mark.filterwarnings("ignore")  # of torch's own deprecations while it loads
def test_a_file_gives_torch_s_probabilities(tmp_path, name, kind, ending):
    if kind == "openvino":
        pytest.importorskip("openvino")
    model = trained_like(name, 3)
    out = tmp_path / f"model{ending}"
    parity = export_model(model, DESCRIPTION, out, kind, fp16=False)["parity"]
    assert parity["agreement"] >= AGREEMENT
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    ours = (torch_answers if kind == "torch" else openvino_answers)(out, images)
    theirs = probabilities(model, images)
    assert np.abs(ours - theirs).max() < 1e-4
    for file in tmp_path.iterdir():
        for message in (str(Path(export.__file__).parent), str(tmp_path), "site-packages"):
            assert message.encode() not in file.read_bytes(), file.name


@pytest.mark.filterwarnings("ignore")
def test_a_program_says_what_it_is(tmp_path):
    export_model(trained_like("unet", 3), DESCRIPTION, tmp_path / "model.pt2", "torch")
    stored = {"classes.json": "", "parity.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=stored)
    assert json.loads(stored["classes.json"]) == DESCRIPTION["classes"]
    assert json.loads(stored["parity.json"])["agreement"] >= AGREEMENT


@pytest.mark.filterwarnings("ignore")
def test_a_program_that_disagrees_is_refused(tmp_path, monkeypatch):
    load = torch.export.load

    def spoilt(source):
        program = load(source)
        with torch.no_grad():
            for weight in program.state_dict.values():
                if weight.ndim == 4:
                    weight *= 1.5
        return program

    monkeypatch.setattr(torch.export, "load", spoilt)
    with pytest.raises(PetsegError, match=r"agrees with torch on [\d.]+ % of pixels .*nothing was written$"):
        export_model(trained_like("unet", 3), DESCRIPTION, tmp_path / "model.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_a_shipped_model_is_its_own_onnx_file(tmp_path):
    parity = export_shipped("segnet_small", tmp_path / "segnet.onnx")
    assert parity.agreement == 1
    assert (tmp_path / "segnet.onnx").read_bytes() == (WEIGHTS / "segnet_small.onnx").read_bytes()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_shipped_model_as_openvino(tmp_path, monkeypatch, runtime):
    """Whatever predicts on this machine, the file is compared with float32."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("PETSEG_RUNTIME", runtime)
    parity = export_shipped("unet_small", tmp_path / "unet.xml", "openvino")
    assert parity.agreement >= AGREEMENT
    assert {path.name for path in tmp_path.iterdir()} == {"unet.xml", "unet.bin"}
    segmenter = Segmenter("unet_small", runtime="onnxruntime")
    images = drawn_images(segmenter.size)[:4]
    theirs = segmenter.probabilities(images)
    assert np.abs(openvino_answers(tmp_path / "unet.xml", images) - theirs).max() < 1e-3
    assert "CC BY-SA 4.0" in (tmp_path / "unet.xml").read_text(encoding="utf-8")


def test_an_openvino_file_that_disagrees_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    right = OpenVINO.probabilities
    monkeypatch.setattr(OpenVINO, "probabilities", lambda self, images: np.zeros_like(right(self, images)))
    with pytest.raises(PetsegError, match=r"agrees with ONNX Runtime on [\d.]+ % .*nothing was written"):
        export_shipped("unet_small", tmp_path / "unet.xml", "openvino")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_the_guide_s_programs_run_as_they_stand(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "petseg" / "serve" / "page" / "cat.jpg", "cat.jpg")
    export_shipped("segnet_small", Path("segnet.onnx"))
    model = trained_like("unet", 3)
    for name, kind in (("pets.pt2", "torch"), ("pets.xml", "openvino")):
        export_model(model, {**DESCRIPTION, "size": 64}, Path(name), kind, fp16=False)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(encoding="utf-8"), re.DOTALL)
    known: dict[str, object] = {}
    answers = []
    for block in blocks:
        exec(block, known)
        answers.append(np.asarray(known["probabilities"].detach() if "torch" in block else known["probabilities"]))
    shipped = Segmenter("segnet_small")
    assert np.abs(answers[0] - shipped.probabilities(np.asarray(known["photo"])[None])).max() < 1e-5
    assert np.abs(answers[1] - answers[2]).mean() < 0.01  # OpenVINO computes in bf16 where the processor can


def test_compare_by_hand():
    ours = np.array([[[[0.9, 0.4]], [[0.1, 0.6]]]], np.float32)
    theirs = np.array([[[[0.8, 0.6]], [[0.2, 0.4]]]], np.float32)
    parity = compare(ours, theirs)
    assert (parity.pixels, parity.agreement) == (2, 0.5)
    assert parity.largest_difference == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("out", "wanted", "kind"),
    [("a.onnx", "", "onnx"), ("a.pt2", "", "torch"), ("a.xml", "openvino", "openvino"), ("a.onnx", "onnx", "onnx")],
)
def test_the_ending_says_the_format(out, wanted, kind):
    assert chosen_format(Path(out), wanted) == kind
    assert set(convert.ENDINGS) == set(export.MAKERS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "segnet_small", "--out", "a.bin"], "a.bin: the ending '.bin' says no format; end it in .onnx"),
        (
            ["--model", "segnet_small", "--out", "a.onnx", "--format", "torch"],
            "a file of format torch ends in .pt2; call it so",
        ),
        (["--model", "segnet_small", "--out", "a.onnx", "--format", "onx"], "--format 'onx' is unknown; choose one of"),
        (["--model", "segnet_small", "--out", "a.pt2"], "is shipped as ONNX, without torch's weights; export it as"),
        (["--model", "segnets", "--out", "a.onnx"], "model 'segnets' is unknown; choose one of: segnet"),
        (["--out", "a.onnx"], "give one of --model NAME, a shipped model, and --run RUN"),
        (["--model", "unet_small", "--run", "x", "--out", "a.onnx"], "give one of --model NAME"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments, message, tmp_path):
    assert message in one_line_error(petseg("export", *arguments, cwd=tmp_path))
    assert not list(tmp_path.iterdir())
