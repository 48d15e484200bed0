"""int8: the file says what it is, agrees with float32, and leaves alone what must stay exact."""

import re

import numpy as np
import onnx
import pytest

from petseg import Segmenter
from petseg.export.openvino import drawn_images
from petseg.export.quantise import accuracy, calibration_images, export_int8, kept_in_fp32
from petseg.shipped import model_file
from tests.cli.test_commands import one_line_error, petseg, succeeds
from tests.conftest import prepare_for, refused, tiny, train_on_cpu


@pytest.mark.parametrize("name", ["unet_small", "segnet_small"])
def test_an_int8_file_of_drawn_pets_says_what_it_is_and_agrees_with_float32(name, tmp_path):
    out = tmp_path / "int8.onnx"
    shipped = Segmenter(name, threads=1, runtime="onnxruntime")
    parity = export_int8(shipped, out)["parity"]
    assert len(out.read_bytes()) < 0.7 * len(model_file(name))
    small = Segmenter(out, threads=1)
    images = drawn_images(shipped.size)
    same = small.probabilities(images).argmax(axis=1) == shipped.probabilities(images).argmax(axis=1)
    assert parity["agreement"] == pytest.approx(same.mean(), abs=1e-4)
    assert parity["agreement"] > 0.97
    assert {field for field in shipped.card if small.card.get(field) != shipped.card[field]} == {
        *("scores", "definitions", "fp16", "parity")
    }
    assert small.card | {"parity": parity} == small.card
    assert (small.card["precision"], small.card["scales"], parity["images"]) == ("int8", *["16 synthetic pets"] * 2)
    assert not {"scores", "definitions"} & {*small.card}
    weights = [tensor for tensor in onnx.load(out).graph.initializer if len(tensor.dims) == 4]
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights) > 10


@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_a_run_in_int8_takes_its_own_images(pets_folder, tmp_path):
    config = tiny()
    train_on_cpu(config, prepare_for(config, pets_folder), tmp_path / "run")
    command = ["export", "--int8", "--run", "run", "--out", "int8.onnx"]
    told = succeeds(*command, cwd=tmp_path).stdout
    counts = r"on [\d.]+ % of the pixels of \d+ validation images; scales from \d+ training images"
    assert re.fullmatch(rf"int8.onnx: agrees with run.model.onnx in float32 {counts}\n", told)
    card = Segmenter(tmp_path / "int8.onnx", threads=1).card
    assert card["scales"] == told.strip().rpartition("scales from ")[2]
    alone = ["export", "--int8", "--model", "run/model.onnx", "--out", "int8.onnx"]
    assert "no dataset" in one_line_error(petseg(*alone, cwd=tmp_path, XDG_DATA_HOME=str(tmp_path / "none")))
    other = prepare_for(tiny("task=species"), pets_folder)
    segmenter = Segmenter(tmp_path / "run" / "model.onnx", threads=1)
    refused(r"has classes .*give those that", export_int8, segmenter, tmp_path, other)


def test_what_must_stay_exact_stays_in_float32():
    nodes = [
        onnx.helper.make_node("Conv", ["image", "w"], ["a"], "first"),
        onnx.helper.make_node("Conv", ["image", "w"], ["stem"], "stem"),
        onnx.helper.make_node("Conv", ["a", "w"], ["deep"], "depthwise", group=8),
        onnx.helper.make_node("Conv", ["a", "w"], ["b"], "left", group=1),
        onnx.helper.make_node("Conv", ["a", "w"], ["c"], "right"),
        onnx.helper.make_node("Add", ["b", "c"], ["d"], "sum"),
        onnx.helper.make_node("MaxPool", ["d"], ["e"], "pool"),
        onnx.helper.make_node("Add", ["e", "zero"], ["f"], "after"),
        onnx.helper.make_node("Conv", ["f", "w"], ["g"], "head"),
    ]
    assert kept_in_fp32(nodes) == ["first", "stem", "depthwise", "head"]
    places = onnx.helper.make_node("Equal", ["e", "e"], ["h"], "places")
    assert kept_in_fp32([*nodes, places]) == ["first", "stem", "depthwise", "head", "pool", "after"]


def test_accuracy_is_the_run_s_own_for_the_run_s_own_probabilities(pets_folder):
    config = tiny()
    prepared = prepare_for(config, pets_folder)
    assert calibration_images(prepared).shape[1:] == (32, 32, 3)
    seen = []

    def background(images):
        seen.append(images)
        probabilities = np.full((len(images), 3, 32, 32), 0.01, np.float32)
        probabilities[:, 1] = 0.98
        return probabilities

    found = accuracy(background, prepared, config, "val").scores
    assert (found.iou["pet"], found.iou["background"]) == (0, pytest.approx(found.pixel_accuracy))
    assert seen[0].dtype == np.uint8
    assert any((image == seen[0][0]).all() for image in prepared.images), "the very bytes"
