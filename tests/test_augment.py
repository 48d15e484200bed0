"""Augmentation moves image and labels together, makes no new values, and is repeatable."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from petseg.config import AugmentConfig
from petseg.data.augment import LUMA, augment
from petseg.data.camera import compress

NOTHING = AugmentConfig(flip=False, scale=0, rotation=0, shift=0, colour=0)
FLIP = NOTHING.model_copy(update={"flip": True})
MOVES = {
    "flip": FLIP,
    "scale": NOTHING.model_copy(update={"scale": 0.5}),
    "rotation": NOTHING.model_copy(update={"rotation": 90.0}),
    "shift": NOTHING.model_copy(update={"shift": 0.2}),
    "all": AugmentConfig(colour=0),
    "all strongly": AugmentConfig(scale=0.6, rotation=180.0, shift=0.5, colour=0),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int, height: int = 48, width: int = 64) -> tuple[Tensor, Tensor]:
    """Returns images painted by their labels (red where 1, green where 2, black elsewhere), and the labels."""
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    labels = torch.zeros(count, height, width, dtype=torch.uint8)
    for index in range(count):
        labels[index][(row - 10 - index).square() + (column - 20 - 2 * index).square() < 80] = 1
        labels[index][(row > 28) & (column > 30 + index) & (column < 50)] = 2
    return torch.stack([labels == 1, labels == 2, labels > 9], dim=1).float(), labels


def inside(labels: Tensor) -> Tensor:
    """Returns which pixels have all eight neighbours of their own label: there bilinear and nearest must agree."""
    padded = F.pad(labels[:, None].float(), (1, 1, 1, 1), mode="replicate")
    return (F.max_pool2d(padded, 3, 1) == -F.max_pool2d(-padded, 3, 1))[:, 0]


def shares(moved: Tensor) -> tuple[float, float]:
    """Returns the height and width in pixels of a mask [H, W]."""
    rows, columns = torch.nonzero(moved, as_tuple=True)
    return float(rows.max() - rows.min() + 1), float(columns.max() - columns.min() + 1)


# Image and labels together


@pytest.mark.parametrize("config", MOVES.values(), ids=MOVES.keys())
def test_image_and_labels_move_together(config):
    images, labels = blobs(16)
    moved_images, moved = augment(images, labels, config, seeded())
    assert not torch.equal(moved, labels)
    painted = (moved_images[:, 0] > 0.5) + 2 * (moved_images[:, 1] > 0.5)
    certain = inside(moved)
    assert certain.float().mean() > 0.7
    assert torch.equal(painted[certain], moved[certain].long())


def test_the_check_above_bites():
    images, labels = blobs(16)
    moved_images, _ = augment(images, labels, MOVES["all"], seeded())
    painted = (moved_images[:, 0] > 0.5) + 2 * (moved_images[:, 1] > 0.5)
    assert not torch.equal(painted[inside(labels)], labels[inside(labels)].long())


@pytest.mark.parametrize("config", [*MOVES.values(), AugmentConfig()], ids=[*MOVES.keys(), "default"])
def test_values(config):
    images = torch.rand(8, 3, 33, 50, generator=seeded(1))
    labels = torch.tensor([0, 7, 255], dtype=torch.uint8)[torch.randint(3, (8, 33, 50), generator=seeded(2))]
    moved_images, moved = augment(images, labels, config, seeded())
    assert moved_images.shape == images.shape
    assert moved_images.dtype == torch.float32
    assert 0 <= moved_images.min() < moved_images.max() <= 1
    assert moved.shape == labels.shape
    assert moved.dtype == torch.uint8
    assert moved.unique().tolist() == [0, 7, 255]


def test_only_existing_labels():
    labels = torch.full((4, 32, 32), 1, dtype=torch.uint8)
    labels[:, 8:20, 8:20] = 255
    _, moved = augment(torch.zeros(4, 3, 32, 32), labels, MOVES["all strongly"], seeded())
    assert set(moved.unique().tolist()) <= {1, 255}
    assert (moved == 255).any()


def test_caller_keeps_its_pictures():
    images, labels = blobs(4)
    before = images.clone(), labels.clone()
    augment(images, labels, AugmentConfig(), seeded())
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


# Randomness


def test_same_seed_same_pictures():
    batch = blobs(8)
    first, again, other = (augment(*batch, AugmentConfig(), seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_global_generator_is_left_alone():
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    augment(*blobs(2), AugmentConfig(), seeded())
    assert torch.equal(torch.rand(1), expected)


def test_pictures_of_a_batch_differ():
    images, labels = blobs(1)
    moved, _ = augment(images.expand(6, -1, -1, -1), labels.expand(6, -1, -1), AugmentConfig(), seeded())
    assert all(not torch.equal(moved[i], moved[j]) for i in range(6) for j in range(i))


# Each change


def test_nothing_changes_nothing():
    images, labels = blobs(4)
    moved_images, moved = augment(images, labels, NOTHING, seeded())
    assert torch.equal(moved_images, images)
    assert torch.equal(moved, labels)


def test_flip_is_an_exact_mirror():
    images = torch.rand(200, 3, 5, 8, generator=seeded(1))
    labels = torch.randint(0, 4, (200, 5, 8), generator=seeded(2), dtype=torch.uint8)
    moved_images, moved = augment(images, labels, FLIP, seeded())
    mirrored = (moved_images == images.flip(-1)).flatten(1).all(dim=1)
    same = (moved_images == images).flatten(1).all(dim=1)
    assert torch.equal(mirrored, ~same)
    assert 0.4 < mirrored.float().mean() < 0.6
    assert torch.equal(moved[mirrored], labels.flip(-1)[mirrored])
    assert torch.equal(moved[same], labels[same])


def test_flip_by_the_grid_is_a_mirror_too():
    """A shift too small to matter sends the batch through the sampling grid: it mirrors the same way."""
    images, labels = blobs(16)
    config = FLIP.model_copy(update={"shift": 1e-9})
    moved_images, moved = augment(images, labels, config, seeded())
    mirrored = (moved == labels.flip(-1)).flatten(1).all(dim=1)
    same = (moved == labels).flatten(1).all(dim=1)
    assert torch.equal(mirrored, ~same)
    assert 0.2 < mirrored.float().mean() < 0.8
    torch.testing.assert_close(moved_images[mirrored], images.flip(-1)[mirrored], atol=1e-4, rtol=0)


def discs(count: int, height: int, width: int, radius: float) -> tuple[Tensor, Tensor]:
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = torch.hypot(row - (height - 1) / 2, column - (width - 1) / 2) < radius
    labels = disc.to(torch.uint8).expand(count, -1, -1)
    return disc.float().expand(count, 3, -1, -1), labels


def test_turns_leave_a_central_disc_alone():
    images, labels = discs(8, 40, 90, 15)
    config = NOTHING.model_copy(update={"rotation": 90.0})
    moved_images, moved = augment(images, labels, config, seeded())
    # look at the middle alone: a turned picture shows the disc's mirror images at its far ends
    near, _ = discs(1, 40, 90, 22)
    changed, middle = (moved != labels) * near[0, 0], moved * near[0, 0]
    # only pixels of the rim may change: 2 pi 15 = 94 of them; a turn that stretches by 90 / 40 changes hundreds
    assert changed.sum(dim=(1, 2)).max() < 60
    for mask in middle:
        assert shares(mask) == pytest.approx((30, 30), abs=2)  # its 30, the rim rounded either way
    assert ((moved_images - images).abs() * near).flatten(1).sum(dim=1).max() < 3 * 94


def test_turns_are_rigid_on_pictures_that_are_not_square():
    """A bar of a picture twice as wide as high keeps length and thickness, whatever the angle."""
    height, width = 60, 120
    labels = torch.zeros(12, height, width, dtype=torch.uint8)
    labels[:, 28:32, 40:80] = 1
    config = NOTHING.model_copy(update={"rotation": 180.0})
    _, moved = augment(labels[:, None].expand(-1, 3, -1, -1).float(), labels, config, seeded(1))
    slopes = []
    for mask in moved:
        points = torch.nonzero(mask).double() - torch.tensor([29.5, 59.5])
        points = points[points.norm(dim=1) < 26]  # beyond lie the bar's mirror images
        deviations, directions = torch.linalg.eigh(torch.cov(points.T))
        # a uniform bar of length L deviates by L / sqrt(12) along itself
        assert math.sqrt(12 * deviations[1]) == pytest.approx(40, abs=1.5)
        assert math.sqrt(12 * deviations[0]) == pytest.approx(4, abs=1)
        assert len(points) == pytest.approx(160, abs=16)
        slopes.append(float(directions[0, 1].abs()))
    assert max(slopes) > 0.8, "some bar stands nearly upright"
    assert min(slopes) < 0.3, "some bar lies nearly level"


def test_all_moves_together_are_a_similarity():
    """Zoom, turn, shift and mirror never shear: read from pictures whose colours are their own coordinates."""
    height, width, count = 60, 120, 200
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    images = torch.stack([row / 120, column / 120, row * 0.0]).expand(count, -1, -1, -1)
    config = AugmentConfig(scale=0.5, rotation=180.0, shift=0.1, colour=0)
    moved, _ = augment(images, torch.zeros(count, height, width, dtype=torch.uint8), config, seeded())
    middle = 120 * moved[:, :2, 22:38, 52:68].double()  # near enough to the middle to see no mirror image
    down = (middle[:, :, 1:] - middle[:, :, :-1]).mean(dim=(2, 3))
    right = (middle[..., 1:] - middle[..., :-1]).mean(dim=(2, 3))
    steps = torch.stack([down, right], dim=2)  # from a pixel of the result to the picture's
    zoom = steps.det().abs().rsqrt()
    torch.testing.assert_close(steps.mT @ steps, torch.eye(2).double() / zoom[:, None, None] ** 2, atol=1e-3, rtol=0)
    assert 1 / 1.51 < zoom.min() < 0.75 < 1.3 < zoom.max() < 1.51
    # log-uniform between its ends, so that a turn does not change the zoom
    assert zoom.log().std() == pytest.approx(math.log(1.5) / math.sqrt(3), rel=0.15)
    assert 0.3 < (steps.det() < 0).double().mean() < 0.7, "about half are mirrored"


def test_a_quarter_turn_is_exact():
    """Of turns within 90 degrees either way, those of nearly 90 swap rows and columns of a square picture."""
    labels = torch.zeros(1, 33, 33, dtype=torch.uint8)
    labels[0, 4:8, 10:30] = 1
    images = labels[:, None].expand(400, 3, -1, -1).float()
    config = NOTHING.model_copy(update={"rotation": 90.0})
    _, moved = augment(images, labels.expand(400, -1, -1), config, seeded())
    agreement = [
        max(float((moved == torch.rot90(labels, turns, (1, 2))).float().mean(dim=(1, 2)).max()) for turns in pair)
        for pair in ((1,), (3,), (2,))
    ]
    assert agreement[0] > 0.99
    assert agreement[1] > 0.99
    assert agreement[2] < 0.99, "no picture stands on its head"


def test_zoom_keeps_within_its_range():
    images, labels = discs(200, 60, 60, 12)
    config = NOTHING.model_copy(update={"scale": 0.5})
    _, moved = augment(images, labels, config, seeded())
    zoom = (moved.float().sum(dim=(1, 2)) / labels[0].float().sum()).sqrt()
    assert zoom.max() == pytest.approx(1.5, abs=0.05)
    assert zoom.min() == pytest.approx(1 / 1.5, abs=0.05)
    assert zoom.log().mean() == pytest.approx(0, abs=0.05), "as often smaller as larger"


def test_shift_keeps_within_its_range():
    images, labels = discs(200, 40, 80, 5)
    config = NOTHING.model_copy(update={"shift": 0.2})
    _, moved = augment(images, labels, config, seeded())
    centres = torch.stack([torch.nonzero(mask).double().mean(dim=0) for mask in moved])
    offsets = (centres - torch.tensor([19.5, 39.5])) / torch.tensor([40.0, 80.0])
    for offset in offsets.T:
        assert offset.max() == pytest.approx(0.2, abs=0.02)
        assert offset.min() == pytest.approx(-0.2, abs=0.02)
    assert torch.corrcoef(offsets.T)[0, 1].abs() < 0.2, "up and down does not follow left and right"


def test_outside_is_the_mirror_image():
    images = torch.rand(1, 3, 8, 8, generator=seeded(1))
    labels = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8)
    config = NOTHING.model_copy(update={"shift": 0.9})
    _, moved = augment(images.expand(50, -1, -1, -1), labels.expand(50, -1, -1), config, seeded())
    tiled = torch.cat([labels[0].flip(1), labels[0], labels[0].flip(1)], dim=1)
    tiled = torch.cat([tiled.flip(0), tiled, tiled.flip(0)], dim=0)
    windows = tiled.unfold(0, 8, 1).unfold(1, 8, 1).flatten(0, 1)
    assert all((windows == picture).flatten(1).all(dim=1).any() for picture in moved)


# Colour


def test_colour_leaves_labels_alone():
    images, labels = blobs(4)
    recoloured, moved = augment(images, labels, NOTHING.model_copy(update={"colour": 0.5}), seeded())
    assert torch.equal(moved, labels)
    assert not torch.equal(recoloured, images)


def test_colour_is_brightness_of_contrast_of_saturation():
    """The one linear map is the three changes one after the other, each drawn from its range on its own."""
    count = 300
    images = 0.4 + 0.2 * torch.rand(count, 3, 6, 5, generator=seeded(1))  # from the middle: nothing is clamped
    labels = torch.zeros(count, 6, 5, dtype=torch.uint8)
    recoloured, _ = augment(images, labels, NOTHING.model_copy(update={"colour": 0.3}), seeded())
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


def test_colour_is_clamped():
    images = torch.ones(32, 3, 4, 4)
    images[:, :, :2] = 0
    recoloured, _ = augment(
        images, torch.zeros(32, 4, 4, dtype=torch.uint8), NOTHING.model_copy(update={"colour": 0.9}), seeded()
    )
    assert recoloured.min() == 0
    assert recoloured.max() == 1


# Scene and camera

FAULTS = ("light", "blur", "shrink", "noise", "jpeg")
SCENES = ("composite", "occlusion", "background_crop")


def only(*fields: str, probability: float = 1.0) -> AugmentConfig:
    return NOTHING.model_copy(update=dict.fromkeys(fields, probability))


@pytest.mark.parametrize("field", [*FAULTS, *SCENES, "aspect"])
def test_off_is_identity(field):
    images, labels = blobs(4)
    found = augment(images, labels, NOTHING, seeded())
    assert torch.equal(found[0], images)
    assert torch.equal(found[1], labels)
    changed = augment(images, labels, only(field, probability=0.5), seeded(), background=0)
    assert not torch.equal(changed[0], images), "the check above bites"


@pytest.mark.parametrize("field", FAULTS)
@pytest.mark.parametrize("size", [(48, 64), (33, 21)])
def test_faults_keep_labels_and_range(field, size):
    images, labels = torch.rand(6, 3, *size, generator=seeded(1)), blobs(6, *size)[1]
    found, same = augment(images, labels, only(field), seeded())
    assert torch.equal(same, labels)
    assert found.shape == images.shape
    assert 0 <= found.min() < found.max() <= 1
    assert not any(torch.equal(one, other) for one, other in zip(found, images, strict=True))


def test_each_image_is_changed_or_not():
    images, labels = torch.rand(64, 3, 16, 16), torch.zeros(64, 16, 16, dtype=torch.uint8)
    found, _ = augment(images, labels, only("light", probability=0.25), seeded())
    changed = (found != images).flatten(1).any(dim=1)
    assert 6 <= int(changed.sum()) <= 28


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_jpeg_is_near_a_real_encoder(quality):
    torch.manual_seed(0)
    smooth = F.interpolate(torch.rand(1, 3, 12, 12), size=(96, 96), mode="bicubic").clamp(0, 1)
    pixels = (smooth[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    file = BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality, subsampling=2)
    theirs = torch.from_numpy(np.asarray(Image.open(file)).copy()).float()
    ours = compress(pixels.permute(2, 0, 1)[None].float() / 255, torch.tensor([float(quality)]))[0] * 255
    error = (ours.permute(1, 2, 0) - theirs).abs().mean()
    assert error < 0.5 * max(1.0, float((pixels.float() - theirs).abs().mean()))


def test_pasted_pets_keep_their_labels():
    images, labels = blobs(6)
    found, relabelled = augment(images, labels, only("composite"), seeded(), background=0)
    painted = (found[:, 0] > 0.5) + 2 * (found[:, 1] > 0.5)
    assert torch.equal(painted, relabelled.long())
    assert ((relabelled > 0).sum() > (labels > 0).sum()).item()


def test_what_hides_a_pet_is_background():
    images, labels = torch.full((8, 3, 40, 40), 0.5), torch.ones(8, 40, 40, dtype=torch.uint8)
    found, relabelled = augment(images, labels, only("occlusion"), seeded(), background=7)
    hidden = relabelled == 7
    assert torch.equal(hidden, (found != 0.5).any(dim=1))
    assert 0.01 < hidden.float().mean() < 0.3
    assert set(relabelled.unique().tolist()) == {1, 7}


def test_parts_without_a_pet():
    images, labels = blobs(8)
    labels[0] = 1  # no part of it is background
    found, relabelled = augment(images, labels, only("background_crop"), seeded(), background=0)
    assert torch.equal(found[0], images[0])
    assert torch.equal(relabelled[0], labels[0])
    empty = (relabelled == 0).flatten(1).all(dim=1)
    assert empty[1:].float().mean() > 0.7
    # black is background here: a pixel of a pet would be 1, of which the enlargement may mix a little in at the edge
    assert found[empty].max() < 0.25
