"""Segmentation: mask, class ids, trimap, boxes and classes from probabilities that a test makes up."""

import numpy as np
import pytest
import torch

from petseg.data.dataset import classes_from
from petseg.data.synthetic import draw_pet
from petseg.evaluation.evaluate import upsample
from petseg.predict import enlarge
from petseg.predict import segmentation as segmenting
from petseg.predict.enlarge import enlarged, windows
from petseg.predict.photos import Photo
from petseg.predict.segmentation import Segmentation
from petseg.predict.segmenter import Segmenter

PET = ("pet", "background", "border")
CAT_AND_DOG = ("cat", "dog", "background", "border")


def segmentation(probabilities, names=PET, size=(40, 60)):
    photo = Photo(np.zeros((*size, 3), np.uint8))
    return Segmentation((probabilities / probabilities.sum(axis=0)).astype(np.float32), classes_from(names), photo)


def painted(colours, *places):
    probabilities = np.broadcast_to(np.array(colours[0], float)[:, None, None], (len(colours[0]), 20, 20)).copy()
    for colour, place in zip(colours[1:], places, strict=True):
        probabilities[:, *place] = np.array(colour)[:, None, None]
    return probabilities


NOTHING, SOMETHING = [0.05, 0.9, 0.05], [0.9, 0.05, 0.05]
SQUARE = (slice(5, 10), slice(5, 10))


@pytest.mark.parametrize("size", [(1, 1), (9, 14), (61, 40), (403, 291)])
@pytest.mark.parametrize(
    ("many", "value"),
    [(1, segmenting._mask_of), (2, segmenting._trimap_of), (5, lambda maps: maps.argmax(axis=0).astype(np.uint8))],
)
def test_what_is_painted_is_what_whole_maps_say(size, many, value, monkeypatch):
    monkeypatch.setattr(enlarge, "STRIP", 3000)  # so that there are several strips
    blocks = np.random.default_rng(many).normal(size=(many, 7, 9)).astype(np.float32)
    maps = blocks.repeat(3, axis=1).repeat(3, axis=2)
    whole = value(enlarged(maps, size, slice(0, size[0]), slice(0, size[1])))
    assert np.array_equal(enlarge.painted(maps, size, value), whole)


@pytest.mark.parametrize("name", ["unet_small", "unet_base"])
def test_maps_are_those_of_torch_s_resized_logits(name):
    segmenter = Segmenter(name, threads=1)
    ids = [
        [place for place, each in enumerate(segmenter.classes) if each.role == role]
        for role in ("foreground", "background", "boundary")
    ]
    for breed in ("Abyssinian", "beagle"):
        result = segmenter(draw_pet(breed, 1, size=96)[0])
        probabilities = torch.from_numpy(result.probabilities)
        roles = upsample(torch.stack([probabilities[each].sum(0) for each in ids]).log(), result.size)
        assert ((result.mask == 255) == (roles[0] > roles[1]).numpy()).mean() > 0.9999
        assert {*np.unique(result.mask)} <= {0, 255}
        assert (result.trimap == 1 + roles.argmax(dim=0).numpy()).mean() > 0.9999
        assert (result.class_ids == upsample(probabilities.log(), result.size).argmax(dim=0).numpy()).mean() > 0.9999


def test_boxes_are_regions_the_largest_first():
    places = (slice(2, 6), slice(2, 6)), (slice(10, 18), slice(8, 18))
    result = segmentation(painted([NOTHING, SOMETHING, SOMETHING], *places))
    large, small = result.boxes
    # 20 x 20 model pixels on 40 x 60: a model pixel is 2 high and 3 wide, an outline runs between two of them
    assert (large.left, large.top, large.right, large.bottom) == pytest.approx((24, 20, 54, 36), abs=1)
    assert (small.left, small.top, small.right, small.bottom) == pytest.approx((6, 4, 18, 12), abs=1)
    assert large.share > small.share
    assert large.share + small.share == pytest.approx(result.foreground_share)
    assert large.confidence == pytest.approx(0.9 / 0.95, abs=0.02)
    assert (large.foreground_class, result.foreground_class) == (None, None)  # there is one foreground class


def test_a_speckle_is_not_foreground():
    probabilities = np.repeat(np.repeat(painted([NOTHING]), 7, axis=1), 7, axis=2)
    probabilities[:, 60:63, 60:63] = np.array(SOMETHING)[:, None, None]
    result = segmentation(probabilities, size=(256, 256))
    assert result.foreground_share > 0
    assert (result.boxes, result.confidence, result.foreground_class) == ((), None, None)
    assert not np.asarray(result.cutout()).any()
    assert not result.summary().foreground


def test_the_foreground_class_is_weighted_by_how_much_foreground_a_pixel_is_and_each_region_has_its_own():
    places = (slice(5, 15), slice(5, 10)), (slice(5, 15), slice(10, 15))
    result = segmentation(painted([[0, 0, 1, 0], [0.9, 0.1, 0, 0], [0.1, 0.4, 0.4, 0.1]], *places), CAT_AND_DOG)
    # cat .9 and .1, dog .1 and .4, on equally many pixels
    assert result.foreground_class.name == "cat"
    assert result.foreground_class.probability == pytest.approx(1.0 / 1.5, abs=0.02)
    places = (slice(2, 8), slice(2, 8)), (slice(11, 18), slice(11, 19))
    colours = [[0.01, 0.01, 0.97, 0.01], [0.97, 0.01, 0.01, 0.01], [0.01, 0.97, 0.01, 0.01]]
    dog, cat = (box.foreground_class for box in segmentation(painted(colours, *places), CAT_AND_DOG).boxes)
    assert (dog.name, cat.name) == ("dog", "cat")
    assert dog.probability == pytest.approx(0.97 / 0.98, abs=0.01)


def test_together_they_are_foreground_where_none_alone_is_likeliest():
    result = segmentation(painted([[0.01, 0.01, 0.97, 0.01], [0.3, 0.3, 0.39, 0.01]], SQUARE), CAT_AND_DOG)
    assert result.foreground_share > 0.03
    assert {*np.unique(result.class_ids)} == {2}


@pytest.mark.parametrize("size", [(1, 1), (128, 128), (300, 451), (7, 1000), (64, 90)])
@pytest.mark.parametrize("step", [(64, 1 << 20), (50, 33)])
def test_windows_together_are_torch_s_interpolation(size, step):
    maps = np.random.default_rng(0).normal(size=(3, 64, 48)).astype(np.float32)
    whole = np.zeros((3, *size), np.float32)
    for window in windows(size, step):  # each place once, or the sums are wrong
        whole[:, *window] += enlarged(maps, size, *window)
    assert np.abs(whole - upsample(torch.from_numpy(maps), size).numpy()).max() < 1e-4
