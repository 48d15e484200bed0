"""A second, closer look: where, how it is joined with the first, and what it buys."""

import pickle

import numpy as np
import pytest
from PIL import Image

from petseg import Segmenter
from petseg.data.dataset import classes_from
from petseg.data.geometry import Geometry
from petseg.data.synthetic import draw_pet
from petseg.predict.photos import Photo
from petseg.predict.zoom import CLOSEST, LONGEST, MARGIN, joined, worth_a_look
from tests.conftest import refused
from tests.predict.test_segmenter import CELLS, toy_model

CLASSES = classes_from(["cat", "dog", "background", "border"])


def painted(*places, size=(40, 40)):
    """Returns probabilities [C, *size] of cats at (rows, columns)."""
    maps = np.zeros((4, *size), np.float32)
    maps[2] = 1
    for rows, columns in places:
        maps[0, rows, columns], maps[2, rows, columns] = 1, 0
    return maps


def test_a_crop_holds_the_objects_with_a_margin_in_the_shape_of_a_photo():
    left, top, right, bottom = worth_a_look(painted((slice(10, 20), slice(20, 28))), CLASSES, (400, 800))
    wide = 160 * (1 + 2 * MARGIN)
    assert (left, right) == pytest.approx((480 - wide / 2, 480 + wide / 2), abs=1)
    assert (top, bottom) == pytest.approx((150 - wide / LONGEST / 2, 150 + wide / LONGEST / 2), abs=1)
    square = worth_a_look(painted((slice(10, 22), slice(10, 22))), CLASSES, (400, 400))
    assert square == pytest.approx((100 - 120 * MARGIN, 100 - 120 * MARGIN, 220 + 120 * MARGIN, 220 + 120 * MARGIN))


@pytest.mark.parametrize("corner", [(slice(0, 2), slice(0, 2)), (slice(38, 40), slice(38, 40))])
def test_a_crop_lies_in_the_photo_and_is_never_tiny(corner):
    left, top, right, bottom = worth_a_look(painted(corner), CLASSES, (300, 500))
    assert 0 <= left < right <= 500
    assert 0 <= top < bottom <= 300
    assert (right - left, bottom - top) == pytest.approx((CLOSEST * 500, CLOSEST * 300), abs=1)


@pytest.mark.parametrize(
    "places",
    [(), ((slice(5, 35), slice(5, 35)),), ((slice(0, 5), slice(0, 5)), (slice(35, 40), slice(35, 40)))],
    ids=["nothing", "large", "far apart"],
)
def test_nothing_is_looked_at_where_there_is_little_to_gain(places):
    assert worth_a_look(painted(*places), CLASSES, (100, 100)) is None


def test_a_stray_piece_does_not_widen_the_crop():
    alone = painted((slice(10, 20), slice(10, 20)))
    assert worth_a_look(painted((slice(10, 20), slice(10, 20)), (39, 39)), CLASSES, (80, 80)) == worth_a_look(
        alone, CLASSES, (80, 80)
    )


def test_both_looks_are_one_map_as_fine_as_the_closer_one():
    whole, closer = np.full((2, 40, 40), 0.2, np.float32), np.full((2, 40, 40), 0.8, np.float32)
    result = joined(whole, closer, (50, 0, 100, 50), (100, 200))
    assert result.shape == (2, 80, 160)
    assert result[:, :36, 44:76] == pytest.approx(0.8)  # within the blended edges; the upper is the photo's own
    assert result[:, 41:] == pytest.approx(0.2)
    assert result[:, :, :40] == pytest.approx(0.2)
    steps = np.abs(np.diff(result[0], axis=1)).max(), np.abs(np.diff(result[0], axis=0)).max()
    assert max(steps) < 0.6 / 3  # no seam
    assert np.array_equal(joined(whole, whole, (0, 0, 200, 100), (100, 200)), whole)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_crop_is_what_a_photo_of_it_would_be(tmp_path, suffix):
    image, _ = draw_pet("Abyssinian", 1, size=600)
    Image.fromarray(image).save(tmp_path / f"pet.{suffix}", quality=100, subsampling=0)
    crop = 130, 70, 430, 270
    cut = np.asarray(Image.open(tmp_path / f"pet.{suffix}"))[70:270, 130:430]
    for geometry in (Geometry(64), Geometry(64, "pad")):
        ours = Photo(tmp_path / f"pet.{suffix}").resized(geometry, crop).astype(int)
        wanted = Photo(cut).resized(geometry).astype(int)
        assert ours.shape == wanted.shape
        assert np.abs(ours - wanted).mean() < (0.5 if suffix == "png" else 3)  # a decoder that reduces blurs elsewhere


@pytest.fixture(scope="module")
def far_away():
    """A pet in a quarter of a photo's width, and its mask."""
    image, labels = draw_pet("Abyssinian", 3, size=288)
    height, width = labels.shape
    canvas = np.full((4 * height, 4 * width, 3), 140, np.uint8)
    truth = np.zeros((4 * height, 4 * width), bool)
    canvas[height : 2 * height, width : 2 * width], truth[height : 2 * height, width : 2 * width] = image, labels == 1
    return canvas, truth


def test_a_small_pet_gets_a_mask_as_a_large_one_does(far_away):
    canvas, truth = far_away
    segmenter = Segmenter(threads=1)
    scores = {}
    for zoom in (False, True):
        result = segmenter.using(zoom=zoom)(canvas)
        mask = result.mask > 0
        scores[zoom] = (mask & truth).sum() / (mask | truth).sum()
    assert segmenter.zoom
    assert np.array_equal(result.mask, segmenter(canvas).mask)
    assert min(result.probabilities.shape[1:]) > 2 * segmenter.size
    assert np.allclose(result.probabilities.sum(axis=0), 1, atol=1e-5)
    assert scores[True] > scores[False] + 0.02, scores


def test_a_photo_that_shows_no_pet_is_looked_at_once_unless_raw():
    photos = pytest.importorskip("sklearn.datasets", reason="scikit-learn's photo of a flower")
    flower = photos.load_sample_image("flower.jpg")
    segmenter = Segmenter("unet_base", threads=1)
    once, twice = segmenter(flower), segmenter.using(raw=True)(flower)
    assert once.probabilities.shape[1:] == (256, 256) < twice.probabilities.shape[1:]  # there is something to look at
    assert (once.present, once.boxes) == (False, ())


def test_the_option_is_the_model_s_own_unless_given(far_away, tmp_path):
    canvas, _ = far_away
    default = Segmenter(threads=1)
    plain = Segmenter(toy_model(tmp_path / "cells.onnx", np.eye(3).tolist(), CELLS), threads=1)
    assert (plain.zoom, plain.using(zoom=True).zoom) == (False, True)
    assert (default.zoom, default.using(zoom=False).zoom, default.using(foreground=["cat"]).zoom) == (True, False, True)
    assert default.using(windows=400).zoom is False
    assert pickle.loads(pickle.dumps(default.using(zoom=False))).zoom is False
    assert default.using(zoom=False)(canvas).probabilities.shape == (4, default.size, default.size)
    refused("zoom is of photos that are seen at once, and this model looks", default.using, zoom=True, windows=400)
    refused("zoom is 'yes'; wanted True or False", default.using, zoom="yes")


@pytest.mark.parametrize("fit", ["square", "pad"])
@pytest.mark.parametrize("corner", [(80, 300), (0, 0), (180, 370)])
def test_a_small_object_is_outlined_wherever_it_lies(tmp_path, fit, corner):
    top, left = corner
    photo = np.zeros((200, 400, 3), np.uint8)
    photo[..., 0] = 255  # plasma
    photo[top : top + 20, left : left + 30] = 0, 255, 0  # a red cell
    model = Segmenter(toy_model(tmp_path / "cells.onnx", np.eye(3).tolist(), CELLS), threads=1)
    scores = []
    for zoom in (False, True):
        used = model.using(zoom=zoom)
        used.geometry = Geometry(model.size, fit)
        mask = used(photo).mask > 0
        truth = photo[..., 1] > 0
        scores.append((mask & truth).sum() / (mask | truth).sum())
    assert scores[1] > max(0.8, scores[0]), scores
