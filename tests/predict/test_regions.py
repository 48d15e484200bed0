"""Connected regions: by hand, and against scipy's labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st
from scipy import ndimage

from petseg.predict.regions import find_regions

MASKS = numpy_st.arrays(
    np.uint8, numpy_st.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 255])
)


@settings(deadline=None, max_examples=300)
@given(MASKS)
def test_regions_are_scipy_s(mask):
    regions = find_regions(mask)
    labels, count = ndimage.label(mask)
    assert regions.count == count
    assert sorted(regions.areas().tolist()) == sorted(np.bincount(labels.ravel())[1:].tolist())
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    assert sorted(map(tuple, regions.boxes().tolist())) == sorted(boxes)


@settings(deadline=None, max_examples=300)
@given(MASKS)
def test_each_pixel_knows_its_region(mask):
    at = find_regions(mask).at(np.arange(mask.shape[0])[:, None], np.arange(mask.shape[1]))
    labels, count = ndimage.label(mask)
    assert ((at >= 0) == (mask > 0)).all()
    pairs = {*zip(at[mask > 0].tolist(), labels[mask > 0].tolist(), strict=True)}
    assert len(pairs) == count


def test_corners_do_not_connect():
    assert find_regions(np.array([[1, 0], [0, 1]], np.uint8)).count == 2


def test_a_u_shape_is_one_region():
    u = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]], np.uint8)
    assert find_regions(u).boxes().tolist() == [[0, 0, 3, 3]]


def test_the_end_of_a_row_does_not_touch_the_next_row_s_start():
    assert find_regions(np.array([[0, 1], [0, 0], [1, 0]], np.uint8)).count == 2
    assert find_regions(np.array([[0, 0, 1], [1, 0, 0]], np.uint8)).count == 2


def test_an_empty_mask_has_no_region():
    regions = find_regions(np.zeros((3, 4), np.uint8))
    assert regions.count == 0
    assert regions.boxes().shape == (0, 4)
    assert (regions.at(np.arange(3)[:, None], np.arange(4)) == -1).all()
