"""int8: the file keeps what it says of itself, agrees with float32, and leaves alone what must stay exact."""

import numpy as np
import onnx
import pytest

from petseg import Segmenter
from petseg.export.openvino import drawn_images
from petseg.export.quantise import accuracy, calibration_images, kept_in_fp32, quantised
from petseg.predict.runtimes import OnnxRuntime
from petseg.shipped import model_file
from tests.conftest import prepare_for, tiny


@pytest.mark.parametrize("name", ["unet_small", "segnet_small"])
def test_int8_agrees_with_float32_on_drawn_pets(name, tmp_path):
    file, images = model_file(name), drawn_images(128)
    smaller = quantised(file, images)
    assert len(smaller) < 0.7 * len(file)
    theirs, ours = OnnxRuntime(file, 1)(images), OnnxRuntime(smaller, 1)(images)
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.97
    cards = []
    for content in (file, smaller):
        (tmp_path / "model.onnx").write_bytes(content)
        cards.append(Segmenter(tmp_path / "model.onnx", threads=1).card)
    assert cards[0] == cards[1]
    weights = [tensor for tensor in onnx.load_from_string(smaller).graph.initializer if len(tensor.dims) == 4]
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in weights) > 10


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
    assert calibration_images(prepared, config).shape[1:] == (32, 32, 3)
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
