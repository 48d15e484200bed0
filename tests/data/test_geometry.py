"""Image geometry: what a model sees of an image in each fit, and windows that join to one map."""

import numpy as np
import pytest
from PIL import Image

from petseg.data.cache import prepare
from petseg.data.dataset import IGNORE
from petseg.data.geometry import GREY, Geometry
from petseg.data.images import open_sample, resize_ids
from petseg.data.sources import open_dataset
from tests.data.traps import REASONS, TRAPS


@pytest.mark.parametrize(
    ("geometry", "own", "content", "canvas"),
    [
        (Geometry(32), (400, 90), (32, 32), (32, 32)),
        (Geometry(32, "pad"), (400, 100), (32, 8), (32, 32)),
        (Geometry(32, "pad"), (9, 18), (16, 32), (32, 32)),
        (Geometry(32, "pad"), (2000, 1), (32, 1), (32, 32)),
        (Geometry(32, "crop"), (400, 100), (400, 100), (400, 100)),
        (Geometry(32, "crop"), (400, 10), (400, 10), (400, 32)),
        (Geometry(32, "crop", 200), (400, 100), (200, 50), (200, 50)),
        (Geometry(32, "crop", 200), (90, 100), (90, 100), (90, 100)),
    ],
    ids=str,
)
def test_sizes(geometry, own, content, canvas):
    assert geometry.content(own) == content
    assert geometry.canvas(content) == canvas
    image = geometry.image(Image.new("RGB", own[::-1], (200, 10, 10)), own)
    ids = geometry.ids(np.zeros(own, np.uint8))
    assert (image.shape, ids.shape) == ((*canvas, 3), canvas)
    inside = np.zeros(canvas, bool)
    inside[: content[0], : content[1]] = True
    assert (image[inside] == (200, 10, 10)).all()
    assert (image[~inside] == GREY).all()
    assert ((ids == 0) == inside).all()
    assert (ids[~inside] == IGNORE).all()


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_the_cache_holds_each_image_as_its_geometry_says_also_behind_one_that_is_left_out(trapped, fit):
    geometry = Geometry(64, fit)
    prepared = prepare(open_dataset(trapped), geometry)
    left_out = {name for name, kind in TRAPS.items() if kind in REASONS}
    assert prepared.left_out.keys() == left_out
    assert len(prepared.samples) == len(prepared.dataset.samples) - len(left_out)
    for row, sample in enumerate(prepared.samples):
        whole = open_sample(prepared.dataset, sample)
        height, width = prepared.contents[row]
        assert (height, width) == geometry.content(whole.ids.shape)
        wanted = np.asarray(whole.image.resize((width, height), Image.Resampling.BILINEAR), int)
        difference = np.abs(prepared.image(row)[:height, :width] - wanted)
        assert difference.max() == 0 if fit == "crop" else difference.mean() < 5.5, sample.id
        np.testing.assert_array_equal(prepared.label(row)[:height, :width], resize_ids(whole.ids, (height, width)))
        assert (prepared.label(row)[height:] == IGNORE).all()
        assert (prepared.label(row)[:, width:] == IGNORE).all()


def test_another_geometry_is_another_cache_and_the_same_is_read_again(eight_pets):
    dataset = open_dataset(eight_pets)
    geometries = [Geometry(32), Geometry(32, "pad"), Geometry(32, "crop"), Geometry(32, "crop", 50)]
    first = [prepare(dataset, geometry) for geometry in geometries]
    assert len({prepared.folder for prepared in first}) == len({prepared.key for prepared in first}) == 4
    for prepared, geometry in zip(first, geometries, strict=True):
        again = prepare(dataset, geometry, on_progress=pytest.fail)
        assert (again.contents, again.places[-1]) == (prepared.contents, prepared.places[-1])
    assert max(map(max, first[3].contents)) == 50


def pointwise(images):
    """Probabilities [N, 2, S, S] of each pixel alone."""
    red = images[..., 0].astype(np.float32) / 255
    return np.stack([red, 1 - red], axis=1)


@pytest.mark.parametrize("step", [0, 32, 5])
@pytest.mark.parametrize("own", [(32, 32), (33, 100), (150, 64), (20, 97), (97, 20), (7, 5)])
def test_windows_of_a_network_that_sees_single_pixels_join_to_exactly_that(own, step):
    """So the weights of each pixel add up to 1, and each window stands in its place."""
    geometry = Geometry(32, "crop")
    image = np.random.default_rng(0).integers(0, 256, (*own, 3), np.uint8)
    canvas, calls = geometry.image(Image.fromarray(image), own), []

    def network(windows):
        calls.append(len(windows))
        return pointwise(windows)

    bands = list(geometry.bands(canvas, own, network, step=step))
    assert max(band.shape[1] for band in bands) <= 32
    joined = np.concatenate(bands, axis=1)
    np.testing.assert_allclose(joined, pointwise(image[None])[0], atol=1e-6)
    assert sum(calls) == geometry.count(own, step=step)


def test_edges_are_blended():
    """Windows that disagree wholly leave no jump: the step between neighbouring pixels is that of the weights."""
    turn = iter(range(1000))

    def network(windows):
        return np.stack([np.full((2, *windows.shape[1:3]), next(turn) % 2, np.float32) for _ in windows])

    joined = np.concatenate(list(Geometry(64, "crop").bands(np.zeros((64, 320, 3), np.uint8), (64, 320), network)), 1)
    assert (joined.min(), joined.max()) == (pytest.approx(0, abs=1e-3), pytest.approx(1, abs=1e-3))
    assert np.abs(np.diff(joined, axis=2)).max() < 0.15
