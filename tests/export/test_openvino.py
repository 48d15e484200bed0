"""Shipped models as files, the formats, and how two files are compared."""

import json
import re
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import onnx
import pytest
from PIL import Image

from petseg.errors import PetsegError
from petseg.export import onnx as export
from petseg.export import openvino as convert
from petseg.export.openvino import (
    AGREEMENT,
    Made,
    as_openvino,
    chosen_format,
    compare,
    drawn_images,
    export_file,
    with_metadata,
)
from petseg.predict.segmenter import Segmenter
from petseg.shipped import DEFAULT, model_file
from tests.cli.test_commands import one_line_error, petseg, succeeds
from tests.export.test_onnx import answers


@pytest.mark.parametrize("name", ["unet_base", DEFAULT])
def test_an_exported_shipped_model_answers_and_describes_itself_as_the_shipped_one(name, tmp_path):
    photos = pytest.importorskip("sklearn.datasets", reason="scikit-learn's photo of a flower").load_sample_image
    Image.fromarray(photos("flower.jpg")).save(tmp_path / "flower.png")  # both see a pet in it, if presence does not
    out = tmp_path / "model.onnx"
    assert export_file(name, out)["parity"] == {"pixels": ANY, "agreement": 1, "largest_difference": ANY}
    shipped, exported = Segmenter(name, threads=1), Segmenter(out, threads=1)
    assert exported.card | {"parity": shipped.card["parity"]} == shipped.card
    command = ["predict", "flower.png", "--json", "--threads", 1, "--model"]
    given, wanted = (succeeds(*command, model, cwd=tmp_path).stdout for model in (out, name))
    assert given == wanted
    assert '"foreground": false, "presence": 0.' in wanted


def test_metadata_are_exchanged_and_the_network_stays(tmp_path):
    file = model_file("segnet_small")
    described = onnx.load_from_string(with_metadata(file, {"classes": [{"name": "Käfer"}], "size": 64}))
    onnx.checker.check_model(described)
    known = {entry.key: json.loads(entry.value) for entry in described.metadata_props}
    assert known == {"classes": [{"name": "Käfer"}], "size": 64}
    bare, plain = onnx.load_from_string(with_metadata(file, {})), onnx.load_from_string(file)
    assert not bare.metadata_props
    assert plain.metadata_props
    del plain.metadata_props[:], described.metadata_props[:]
    assert described == bare == plain


def test_a_shipped_model_as_openvino(tmp_path):
    pytest.importorskip("openvino")
    assert export_file("unet_small", tmp_path / "unet.xml", "openvino")["parity"]["agreement"] >= AGREEMENT
    assert {path.name for path in tmp_path.iterdir()} == {"unet.xml", "unet.bin"}
    segmenter = Segmenter("unet_small", runtime="onnxruntime")
    images = drawn_images(segmenter.size)[:4]
    assert np.abs(answers(tmp_path / "unet.xml", images) - segmenter.probabilities(images)).max() < 1e-3
    text = (tmp_path / "unet.xml").read_text(encoding="utf-8")
    assert "CC BY-SA 4.0" in text
    assert text.count("<classes ") == 1  # not the shipped file's older ones beside them


def test_an_exported_file_as_openvino(tmp_path):
    pytest.importorskip("openvino")
    export_file("segnet_small", tmp_path / "pets.onnx")
    words = succeeds("export", "--model", "pets.onnx", "--out", "pets.xml", cwd=tmp_path).stdout
    assert re.fullmatch(r"pets.xml: agrees with pets.onnx on [\d.]+ % of the pixels of synthetic pets\n", words)
    images = drawn_images(64)[:2]
    assert np.abs(answers(tmp_path / "pets.xml", images) - answers(tmp_path / "pets.onnx", images)).max() < 1e-3
    assert "CC BY-SA 4.0" in (tmp_path / "pets.xml").read_text(encoding="utf-8")


def test_weights_of_another_s_that_lie_there_are_kept(tmp_path):
    (tmp_path / "mine.bin").write_bytes(b"mine")
    told = one_line_error(petseg("export", "--model", "segnet_small", "--out", "mine.xml", cwd=tmp_path))
    assert told.endswith("mine.bin is there without mine.xml, and would be replaced; choose another --out")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


def test_an_openvino_file_that_disagrees_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("openvino")

    def spoilt(file, images):
        made = as_openvino(file, images)
        return Made(np.zeros_like(made.answers), made.save)

    monkeypatch.setattr(convert, "as_openvino", spoilt)
    with pytest.raises(PetsegError, match=r"agrees with ONNX Runtime on [\d.]+ % .*nothing was written"):
        export_file("unet_small", tmp_path / "unet.xml", "openvino")
    assert not list(tmp_path.iterdir())


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
            "of format torch ends in .pt2; call it so",
        ),
        (["--model", "segnet_small", "--out", "a.onnx", "--format", "onx"], "--format 'onx' is unknown; choose one of"),
        (["--model", "segnet_small", "--out", "a.pt2"], "is an ONNX file, without torch's weights; export it as"),
        (["--model", "segnet", "--out", "a.onnx", "--no-fp16"], "--no-fp16 is of --run in float32; leave it out"),
        (["--model", "segnet", "--out", "a.onnx", "--data", "x"], "--data sets the scales of int8; add --int8 or"),
        (["--model", "segnet", "--out", "a.xml", "--int8"], "a.xml: int8 is written as ONNX; end it in .onnx"),
        (["--model", "segnets", "--out", "a.onnx"], "model 'segnets' is unknown; choose one of: segnet"),
        (["--run", ".", "--out", "a.onnx"], "is this the folder of a finished run"),
        (["--out", "a.onnx"], "give one of --model MODEL, a shipped one or an ONNX file, and --run RUN"),
        (["--model", "unet_small", "--run", "x", "--out", "a.onnx"], "give one of --model MODEL"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_writes_nothing(arguments, message, tmp_path):
    assert message in one_line_error(petseg("export", *arguments, cwd=tmp_path))
    assert not list(tmp_path.iterdir())
