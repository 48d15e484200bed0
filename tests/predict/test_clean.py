"""Clean masks and presence: by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from petseg.data.dataset import classes_from
from petseg.predict.clean import cleaned
from petseg.predict.cutout import overlay
from petseg.predict.photos import Photo
from petseg.predict.presence import FIGURES, Presence, map_figures, presence_from
from petseg.predict.segmentation import Segmentation, in_words

CLASSES = classes_from(["cat", "dog", "background", "border"])
COLOURS = {"c": [0.9, 0.02, 0.05, 0.03], "d": [0.02, 0.9, 0.05, 0.03], ".": [0.01, 0.01, 0.97, 0.01]}
COLOURS["b"] = [0.02, 0.01, 0.07, 0.9]  # border, nearer to background


def drawn(*rows):
    return np.array([[COLOURS[letter] for letter in row] for row in rows], np.float32).transpose(2, 0, 1).copy()


def letters(probabilities):
    return ["".join("cd.b"[place] for place in row) for row in probabilities.argmax(axis=0)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("ccccc..", "ccccc.c", "ccccc.."), ("ccccc..", "ccccc..", "ccccc..")),  # a small piece goes
        (("ccccc..", "cc.cc..", "ccccc.."), ("ccccc..", "ccccc..", "ccccc..")),  # a small hole is filled
        (("ccccc..", "ccbcc..", "ccccc.."), ("ccccc..", "ccccc..", "ccccc..")),  # so is border all around by foreground
        (("cccc...", "ccccbcb", "cccc..."), ("cccc...", "ccccbcb", "cccc...")),  # joined by border it stays
        (("cc.cc..", "ccccc..", "ccccc.."), ("cc.cc..", "ccccc..", "ccccc..")),  # open to the outside it is no hole
        (("ccccc.d", "ccccc.d", "ccccc.d"), ("ccccc.d", "ccccc.d", "ccccc.d")),  # a second pet stays
        (("....", "....", "...."), ("....", "....", "....")),
    ],
)
def test_small_pieces_and_holes_go(before, after):
    result = cleaned(drawn(*before), CLASSES, ((0.1, 0.1), (0.05, 0.05)))
    assert letters(result) == list(after)
    assert np.allclose(result.sum(axis=0), 1, atol=1e-6)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text("cd.b", min_size=9, max_size=9), min_size=9, max_size=9))
def test_against_scipy_no_small_piece_and_no_small_hole_is_left(rows):
    before = drawn(*rows)
    result = cleaned(before, CLASSES, ((0.2, 0.2), (0, 0)))
    largest = max(np.bincount(ndimage.label(np.isin(letters_of(before), list("cdb")))[0].ravel())[1:], default=0)
    labels, _ = ndimage.label(np.isin(letters_of(result), list("cdb")))
    assert all(area >= 0.2 * largest for area in np.bincount(labels.ravel())[1:])
    labels, count = ndimage.label(~np.isin(letters_of(result), list("cd")))
    edge = {*labels[[0, -1]].ravel(), *labels[:, [0, -1]].ravel()}
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    assert all(areas[label] >= 0.2 * largest for label in range(1, count + 1) if label not in edge)


def letters_of(probabilities):
    return np.array([list(row) for row in letters(probabilities)])


def blot(calibrated=None, raw=False):
    """A cat with a hole, and a speckle of dog apart from it."""
    rows = [list("." * 40) for _ in range(40)]
    for y in range(8, 28):
        rows[y][6:26] = "c" * 20
    rows[15][15] = rows[15][16] = "."
    for y in (34, 35):
        rows[y][34:36] = "dd"
    photo = Photo(np.full((80, 80, 3), 90, np.uint8))
    return Segmentation(drawn(*map("".join, rows)), CLASSES, photo, raw=raw, calibrated=calibrated)


def test_boxes_cut_out_and_overlay_are_clean_and_the_mask_is_the_network_s_own():
    clean, raw = blot(), blot(raw=True)
    assert (clean.mask == raw.mask).all()
    assert (clean.mask[31, 32], clean.mask[70, 70]) == (0, 255)
    assert [len(each.boxes) for each in (clean, raw)] == [1, 2]
    opacity = [int(np.asarray(each.cutout())[70, 70, 3]) for each in (clean, raw)]
    assert opacity[0] == 0 < opacity[1]
    for each, wanted in ((clean, ["cat", "background"]), (raw, ["background", "dog"])):
        seen = np.asarray(each.overlay())[[31, 70], [32, 70]]
        colours = overlay(Image.new("RGB", (4, 1), (90, 90, 90)), np.arange(4, dtype=np.uint8)[None], CLASSES)
        named = dict(zip(["cat", "dog", "background", "border"], np.asarray(colours)[0].tolist(), strict=True))
        assert seen.tolist() == [named[name] for name in wanted]
    assert clean.foreground_class.probability == pytest.approx(0.9 / 0.92, abs=0.001)
    assert in_words(clean.summary(), CLASSES) == "cat, 98 % sure that it is no dog, 25 % of the photo"
    assert in_words(raw.summary(), CLASSES).startswith(
        "cat, 98 % sure that it is no dog, and dog, 98 % sure that it is no"
    )


def test_below_the_threshold_there_is_nothing():
    sure = Presence((0, 0, 0, 0, 0), 2.0, 0.5)
    unsure = Presence((0, 0, 0, 0, 0), -2.0, 0.5)
    assert blot(sure).summary().presence == pytest.approx(1 / (1 + np.exp(-2)))
    assert len(blot(sure).boxes) == 1
    nothing = blot(unsure)
    assert (nothing.boxes, nothing.confidence, nothing.foreground_class) == ((), None, None)
    assert not np.asarray(nothing.cutout()).any()
    assert nothing.mask.any()
    assert in_words(nothing.summary(), CLASSES) == "no cat or dog"
    assert len(blot(unsure, raw=True).boxes) == 2
    assert blot().presence is None


def test_the_figures_of_a_map():
    foreground, background = np.zeros((4, 5), np.float32), np.ones((4, 5), np.float32)
    foreground[:2, :2], background[:2, :2] = 0.8, 0.2
    foreground[3, 4], background[3, 4] = 0.9, 0.1
    share, mean, unsure, highest, region = map_figures(foreground, background)
    assert (share, mean) == (pytest.approx(0.25), pytest.approx((4 * 0.8 + 0.9) / 20))
    assert unsure == pytest.approx((4 * 0.16 + 0.09) / 20)
    assert (highest, region) == (pytest.approx(np.log(9), rel=1e-5), pytest.approx(np.log(4), rel=1e-5))
    given = {"coefficients": dict.fromkeys(FIGURES, 1.0), "intercept": -0.5, "threshold": 0.3}
    chance = 1 / (1 + np.exp(-(share + mean + unsure + highest + region - 0.5)))
    assert presence_from(given)(foreground, background) == pytest.approx(chance)
    for wrong in ({**given, "threshold": 2}, {**given, "intercept": "nan"}):
        with pytest.raises(ValueError, match="coefficients that are no numbers, or a threshold outside 0 to 1"):
            presence_from(wrong)
