"""Fits pad and crop in prediction: as in training, in each runtime, and in windows of photos of any size."""

import json

import numpy as np
import pytest
from PIL import Image

from petseg import Segmenter
from petseg.data import geometry
from petseg.data.images import open_sample
from petseg.evaluation.evaluate import load_run, predict_ids
from petseg.export.onnx import exported_run
from petseg.predict import segmentation
from petseg.training import inference
from petseg.training.batches import load_splits
from tests.conftest import CPU, prepare_for, refused, tiny, train_on_cpu
from tests.predict.test_segmenter import CELLS, toy_model

pytestmark = pytest.mark.usefixtures("runtime")
FITS = {"pad": ("fit=pad",), "crop": ("fit=crop", "data.reduce_to=50")}
LIKE = {"onnxruntime": 0.999, "openvino": 0.98}  # which computes in bf16 where the processor does


@pytest.fixture(scope="session", params=FITS)
def trained(request, pets_folder, tmp_path_factory):
    config = tiny(*FITS[request.param], "train.epochs=6", "train.learning_rate=0.02")
    run = tmp_path_factory.mktemp("runs") / "run"
    prepared = prepare_for(config, pets_folder)
    train_on_cpu(config, prepared, run)
    return config, prepared, run


@pytest.mark.parametrize("limit", [1 << 22, 1000], ids=["whole", "in bands"])
def test_a_run_s_export_predicts_what_its_scores_are_of(trained, limit, runtime, monkeypatch):
    config, prepared, run = trained
    for module in (segmentation, inference):
        monkeypatch.setattr(module, "WHOLE", limit)
    split = load_splits(prepared, config, CPU.device)["test"]
    network = load_run(run, CPU).network
    segmenter, shown = Segmenter(exported_run(run), threads=1), set()
    assert segmenter.geometry == prepared.geometry
    for row in split.rows[:6]:
        image = open_sample(prepared.dataset, prepared.samples[row]).image
        result = segmenter(image)
        height, width = prepared.contents[row]
        assert (result.detail is not None) == (config.data.fit == "crop" and height * width > limit)
        wanted = predict_ids(network, split, np.array([row]), result.size)
        assert (result.class_ids == wanted).mean() > LIKE[runtime]
        shown |= {*np.unique(wanted).tolist()}
    assert len(shown) > 1


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return toy_model(tmp_path_factory.mktemp("toy") / "cells.onnx", np.eye(3).tolist(), CELLS)


@pytest.mark.parametrize("size", [(20, 30), (32, 32), (100, 70), (45, 200)])
def test_windows_of_a_model_of_single_pixels_are_exact_at_full_detail(cells, size):
    """A pixel a colour, at random: whatever resizing or a window out of place would do shows."""
    ids = np.random.default_rng(0).integers(0, 3, size)
    photo = np.eye(3, dtype=np.uint8)[ids] * 255
    calls = []
    result = Segmenter(cells, threads=1).using(windows=0)(photo, on_windows=lambda *call: calls.append(call))
    assert (result.class_ids == ids).all()
    assert ((result.mask == 255) == (ids > 0)).all()
    assert calls[-1][0] == calls[-1][1] == geometry.Geometry(32, "crop").count(size)
    assert (Segmenter(cells, threads=1)(photo).class_ids == ids).all() == (size == (32, 32)), "one square, resized"


def test_a_photo_whose_maps_are_too_many_is_painted_band_by_band(cells, monkeypatch):
    photo = np.repeat(np.repeat(np.eye(3, dtype=np.uint8)[np.array([[0, 1], [2, 0]])] * 255, 60, axis=0), 50, axis=1)
    segmenter = Segmenter(cells, threads=1).using(windows=0, flip=True, raw=True)
    whole = segmenter(photo)
    monkeypatch.setattr(segmentation, "WHOLE", 4000)
    bands = segmenter(photo)
    assert (whole.detail, bands.probabilities.shape) == (None, (3, 69, 58))
    assert (whole.class_ids == bands.class_ids).all()
    assert (whole.mask == bands.mask).all()
    assert [(box.left, box.top, box.right, box.bottom) for box in bands.boxes] == [(50, 0, 100, 60), (0, 60, 50, 120)]
    assert [box.foreground_class.name for box in bands.boxes] == ["red cell", "white cell"]
    assert bands.summary().foreground_share == whole.summary().foreground_share == 0.5
    alpha = np.asarray(bands.cutout())[..., 3]
    assert (alpha[80:110, 10:40] == 255).all()
    assert not alpha[10:50, 10:40].any()
    assert bands.overlay().size == (100, 120)
    # windows of a reduced photo: its maps are enlarged
    monkeypatch.setattr(segmentation, "WHOLE", 1000)
    reduced = Segmenter(cells, threads=1).using(windows=60)(photo)
    assert reduced.detail.class_ids.shape == (60, 50)
    assert (reduced.class_ids == whole.class_ids).mean() > 0.97


def test_the_geometry_of_a_file_is_checked(cells, tmp_path):
    segmenter = Segmenter(cells, threads=1)
    refused("windows is 20; wanted 0 or at least 32", segmenter.using, windows=20)
    refused("scales are of photos that are seen at once", segmenter.using, windows=0, scales=(1, 2))
    import onnx

    for fields in ({"fit": "stretch"}, {"fit": "crop", "reduce_to": -1}, {"fit": ["crop"]}, {"reduce_to": 1.5}):
        file = onnx.load(cells)
        known = {entry.key: entry.value for entry in file.metadata_props}
        onnx.helper.set_model_props(file, known | {name: json.dumps(value) for name, value in fields.items()})
        onnx.save(file, tmp_path / "wrong.onnx")
        refused(
            r"its fit is .* and reduce_to .*; wanted square, pad, crop and 0 to", Segmenter, tmp_path / "wrong.onnx"
        )


def test_a_padded_photo_is_seen_in_its_own_aspect(cells, tmp_path):
    import onnx

    file = onnx.load(cells)
    known = {entry.key: entry.value for entry in file.metadata_props}
    onnx.helper.set_model_props(file, known | {"fit": '"pad"'})
    onnx.save(file, tmp_path / "pad.onnx")
    photo = Image.new("RGB", (200, 100), (255, 0, 0))
    photo.paste((0, 0, 255), (150, 0, 200, 100))
    result = Segmenter(tmp_path / "pad.onnx", threads=1)(photo)
    assert result.probabilities.shape == (3, 16, 32)
    assert (result.class_ids[:, :148] == 0).all()
    assert (result.class_ids[:, 152:] == 2).all()
