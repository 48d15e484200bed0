"""Connected regions: by hand, and against scipy's labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from petseg.predict.regions import find_regions

MASKS = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.sampled_from([0, 255]))


@settings(deadline=None, max_examples=300)
@given(MASKS)
def test_regions_are_scipy_s_and_each_pixel_knows_its_own(mask):
    regions = find_regions(mask)
    labels, count = ndimage.label(mask)
    assert regions.count == count
    assert sorted(regions.areas().tolist()) == sorted(np.bincount(labels.ravel())[1:].tolist())
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    assert sorted(map(tuple, regions.boxes().tolist())) == sorted(boxes)
    at = regions.at(np.arange(mask.shape[0])[:, None], np.arange(mask.shape[1]))
    assert ((at >= 0) == (mask > 0)).all()
    pairs = {*zip(at[mask > 0].tolist(), labels[mask > 0].tolist(), strict=True)}
    assert len(pairs) == count
    first = {region: place for place, region in reversed(list(enumerate(at.ravel().tolist()))) if region >= 0}
    assert sorted(first, key=first.__getitem__) == list(range(count)), "named in reading order"


@pytest.mark.parametrize(
    ("rows", "boxes"),
    [
        ([[0, 0, 0]], []),
        ([[1, 0], [0, 1]], [[0, 0, 1, 1], [1, 1, 2, 2]]),  # corners do not connect
        ([[1, 0, 1], [1, 0, 1], [1, 1, 1]], [[0, 0, 3, 3]]),  # a U is one
        ([[0, 0, 1], [1, 0, 0]], [[2, 0, 3, 1], [0, 1, 1, 2]]),  # the end of a row is no neighbour of the next start
    ],
)
def test_by_hand(rows, boxes):
    found = find_regions(np.array(rows, np.uint8)).boxes()
    assert (found.tolist(), found.shape) == (boxes, (len(boxes), 4))
