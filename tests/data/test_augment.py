"""Augmentation moves image and labels together, makes no new values, and is repeatable."""

import math

import pytest
import torch
from torch.nn import functional as F

from petseg.config import AugmentConfig
from petseg.data.augment import LUMA, augment

NOTHING = AugmentConfig(flip=False, scale=0, rotation=0, shift=0, colour=0)


def only(**changes):
    return NOTHING.model_copy(update=changes)


MOVES = {
    "flip": only(flip=True),
    "scale": only(scale=0.5),
    "rotation": only(rotation=90.0),
    "shift": only(shift=0.2),
    "all": AugmentConfig(colour=0),
    "all strongly": AugmentConfig(scale=0.6, rotation=180.0, shift=0.5, colour=0),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(count, height=48, width=64):
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    labels = torch.zeros(count, height, width, dtype=torch.uint8)
    for index in range(count):
        labels[index][(row - 10 - index).square() + (column - 20 - 2 * index).square() < 80] = 1
        labels[index][(row > 28) & (column > 30 + index) & (column < 50)] = 2
    return torch.stack([labels == 1, labels == 2, labels > 9], dim=1).float(), labels


def inside(labels):
    padded = F.pad(labels[:, None].float(), (1, 1, 1, 1), mode="replicate")
    return (F.max_pool2d(padded, 3, 1) == -F.max_pool2d(-padded, 3, 1))[:, 0]


def blank(count, height=4, width=4):
    return torch.zeros(count, height, width, dtype=torch.uint8)


@pytest.mark.parametrize("config", MOVES.values(), ids=MOVES.keys())
def test_image_and_labels_move_together(config):
    images, labels = blobs(16)
    moved_images, moved = augment(images, labels, config, seeded())
    assert not torch.equal(moved, labels)
    painted = (moved_images[:, 0] > 0.5) + 2 * (moved_images[:, 1] > 0.5)
    certain = inside(moved)
    assert certain.float().mean() > 0.7
    assert torch.equal(painted[certain], moved[certain].long())
    assert not torch.equal(painted[inside(labels)], labels[inside(labels)].long()), "the check bites"


@pytest.mark.parametrize("config", [*MOVES.values(), AugmentConfig()], ids=[*MOVES.keys(), "default"])
def test_values(config):
    images = torch.rand(8, 3, 33, 50, generator=seeded(1))
    labels = torch.tensor([0, 7, 255], dtype=torch.uint8)[torch.randint(3, (8, 33, 50), generator=seeded(2))]
    before = images.clone(), labels.clone()
    moved_images, moved = augment(images, labels, config, seeded())
    assert (moved_images.shape, moved_images.dtype) == (images.shape, torch.float32)
    assert 0 <= moved_images.min() < moved_images.max() <= 1
    assert (moved.shape, moved.dtype) == (labels.shape, torch.uint8)
    assert moved.unique().tolist() == [0, 7, 255]
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1]), "the caller keeps its batch"


def test_randomness():
    batch = blobs(8)
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first, again, other = (augment(*batch, AugmentConfig(), seeded(seed)) for seed in (3, 3, 4))
    for one, same, another in zip(first, again, other, strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, another)
    images, labels = blobs(1)
    moved, _ = augment(images.expand(6, -1, -1, -1), labels.expand(6, -1, -1), AugmentConfig(), seeded())
    assert all(not torch.equal(moved[i], moved[j]) for i in range(6) for j in range(i))
    assert torch.equal(torch.rand(1), expected), "the global generator is left alone"


@pytest.mark.parametrize("shift", [0, 1e-9])
def test_flip_is_a_mirror(shift):
    """Exact; and by the sampling grid, through which a shift too small to matter sends the batch, within rounding."""
    images = torch.rand(200, 3, 5, 8, generator=seeded(1))
    labels = torch.randint(0, 200, (200, 5, 8), generator=seeded(2), dtype=torch.uint8)
    moved_images, moved = augment(images, labels, only(flip=True, shift=shift), seeded())
    mirrored = (moved == labels.flip(-1)).flatten(1).all(dim=1)
    assert 0.4 < mirrored.float().mean() < 0.6
    assert torch.equal(moved[~mirrored], labels[~mirrored])
    expected = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    torch.testing.assert_close(moved_images, expected, atol=1e-4 if shift else 0, rtol=0)


def motion(config, count=300):
    """Returns how the middle of a wide image moves, read from images whose colours are their own coordinates.

    First float64 [N, 2, 2]: steps in the image, in pixels down and right, for a step down (column 0) and a step right
    (column 1) in the result. Then float64 [N, 2]: the shift down and right, as a share of the side.
    """
    height, width = 60, 120
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    images = torch.stack([row / 120, column / 120, row * 0.0]).expand(count, -1, -1, -1)
    moved, _ = augment(images, blank(count, height, width), config, seeded())
    middle = 120 * moved[:, :2, 22:38, 52:68].double()  # near enough to the middle to see no mirror image
    down = (middle[:, :, 1:] - middle[:, :, :-1]).mean(dim=(2, 3))
    right = (middle[..., 1:] - middle[..., :-1]).mean(dim=(2, 3))
    shift = (middle.mean(dim=(2, 3)) - torch.tensor([29.5, 59.5])) / torch.tensor([height, width])
    return torch.stack([down, right], dim=2), shift


def assert_similar(steps, zoom):
    expected = torch.eye(2).double() / zoom.expand(len(steps))[:, None, None] ** 2
    torch.testing.assert_close(steps.mT @ steps, expected, atol=1e-3, rtol=0)


def test_turns_are_rigid_and_zoom_and_shift_keep_within_their_ranges():
    turns, of_turns = motion(only(rotation=90.0))
    zooms, of_zooms = motion(only(scale=0.5))
    shifts, shift = motion(only(shift=0.2))
    assert_similar(turns, torch.ones(1))
    assert (turns.det() > 0).all(), "no mirror"
    degrees = torch.rad2deg(torch.atan2(turns[:, 1, 0], turns[:, 0, 0]))
    assert [float(degrees.min()), float(degrees.max())] == pytest.approx([-90, 90], abs=3)
    assert degrees.std() == pytest.approx(180 / math.sqrt(12), rel=0.1), "uniform"
    zoom = 1 / zooms[:, 0, 0]
    torch.testing.assert_close(zooms, torch.eye(2).double() / zoom[:, None, None], atol=1e-3, rtol=0)
    assert [float(zoom.min()), float(zoom.max())] == pytest.approx([1 / 1.5, 1.5], abs=0.03)
    assert zoom.log().mean() == pytest.approx(0, abs=0.05), "as often smaller as larger"
    assert max(of_turns.abs().max(), of_zooms.abs().max()) < 1e-3, "about the middle"
    torch.testing.assert_close(shifts, torch.eye(2).double().expand_as(shifts), atol=1e-3, rtol=0)
    assert shift.aminmax(dim=0).max.tolist() == pytest.approx([0.2, 0.2], abs=0.01)
    assert shift.aminmax(dim=0).min.tolist() == pytest.approx([-0.2, -0.2], abs=0.01)
    assert torch.corrcoef(shift.T)[0, 1].abs() < 0.2, "up and down does not follow left and right"
    # all together are a similarity
    steps, _ = motion(AugmentConfig(scale=0.5, rotation=180.0, shift=0.1, colour=0))
    zoom = steps.det().abs().rsqrt()
    assert_similar(steps, zoom)
    assert 1 / 1.51 < zoom.min() < 0.75 < 1.3 < zoom.max() < 1.51
    # log-uniform between its ends, so that a turn does not change the zoom
    assert zoom.log().std() == pytest.approx(math.log(1.5) / math.sqrt(3), rel=0.15)
    assert 0.3 < (steps.det() < 0).double().mean() < 0.7, "about half are mirrored"


def test_outside_is_the_mirror_image():
    images = torch.rand(1, 3, 8, 8, generator=seeded(1))
    labels = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    _, moved = augment(images.expand(50, -1, -1, -1), labels.expand(50, -1, -1), only(shift=0.9), seeded())
    tiled = torch.cat([labels[0].flip(1), labels[0], labels[0].flip(1)], dim=1)
    tiled = torch.cat([tiled.flip(0), tiled, tiled.flip(0)], dim=0)
    windows = tiled.unfold(0, 8, 1).unfold(1, 8, 1).flatten(0, 1)
    assert all((windows == image).flatten(1).all(dim=1).any() for image in moved)


def test_nothing_changes_nothing_colour_leaves_labels_alone_and_is_clamped():
    images, labels = blobs(4)
    same, unmoved = augment(images, labels, NOTHING, seeded())
    recoloured, kept = augment(images, labels, only(colour=0.5), seeded())
    assert torch.equal(same, images)
    assert torch.equal(unmoved, labels)
    assert torch.equal(kept, labels)
    assert not torch.equal(recoloured, images)
    images = torch.ones(32, 3, 4, 4)
    images[:, :, :2] = 0
    recoloured, _ = augment(images, blank(32), only(colour=0.9), seeded())
    assert (recoloured.min(), recoloured.max()) == (0, 1)


def test_colour_is_brightness_of_contrast_of_saturation():
    """The one linear map is the three changes one after the other, each drawn from its range on its own."""
    count = 300
    images = 0.4 + 0.2 * torch.rand(count, 3, 6, 5, generator=seeded(1))  # from the middle: nothing is clamped
    recoloured, _ = augment(images, blank(count, 6, 5), only(colour=0.3), seeded())
    before, after = images.double(), recoloured.double()
    grey = (before * torch.tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    middle = grey.mean(dim=(2, 3), keepdim=True)
    # solve after = k before + l grey + m middle for the three numbers, then read the changes from them
    columns = torch.stack([part.expand_as(before).flatten(1) for part in (before, grey, middle)], dim=2)
    solved = torch.linalg.lstsq(columns, after.flatten(1)[..., None]).solution
    torch.testing.assert_close(columns @ solved, after.flatten(1)[..., None], atol=1e-5, rtol=0)
    of_pixel, of_grey, of_middle = solved[..., 0].T
    brightness = of_pixel + of_grey + of_middle
    contrast = (of_pixel + of_grey) / brightness
    saturation = of_pixel / (of_pixel + of_grey)
    changes = torch.stack([brightness, contrast, saturation])
    torch.testing.assert_close(changes.amin(dim=1), torch.full((3,), 0.7).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(changes.amax(dim=1), torch.full((3,), 1.3).double(), atol=0.01, rtol=0)
    assert (torch.corrcoef(changes) - torch.eye(3)).abs().max() < 0.2
