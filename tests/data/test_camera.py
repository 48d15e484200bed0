"""Faults of a camera and rearranged scenes: what changes, what does not, and how near JPEG is to a real encoder."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from petseg.config import AugmentConfig
from petseg.data.augment import augment
from petseg.data.camera import compress
from tests.data.test_augment import blobs

NOTHING = AugmentConfig(flip=False, scale=0, rotation=0, shift=0, colour=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
