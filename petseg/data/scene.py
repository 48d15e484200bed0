"""What else may stand in a picture: a second pet, something in front, no pet at all. Image and labels change together.

Batched tensor code on the images' device, as in `petseg.data.camera`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from petseg.config import AugmentConfig
from petseg.data.camera import uniform
from petseg.data.dataset import IGNORE

CROP = (0.2, 0.45)
"""Side of a part without a pet, as a share of the image's."""

CROP_TRIES = 24
"""Places that are looked at for such a part."""

OCCLUDED = (0.15, 0.5)
"""Sides of the rectangle in front, as shares of the image's."""


def rearrange(
    images: Tensor, labels: Tensor, config: AugmentConfig, generator: torch.Generator, background: int
) -> tuple[Tensor, Tensor]:
    """Returns a batch with pets pasted, parts hidden, and pet-free parts enlarged, with the configured probabilities.

    Args:
        images: float32 [N, 3, H, W] in 0..1.
        labels: uint8 [N, H, W], 255 ignored.
        config: probabilities.
        generator: on the CPU.
        background: its label.
    """
    changes = ((config.composite, composite), (config.occlusion, occlude), (config.background_crop, background_crop))
    for probability, change in changes:
        if probability:
            chosen = uniform(len(images), 0, 1, generator, images.device) < probability
            changed, relabelled = change(images, labels, generator, background)
            images = torch.where(chosen[:, None, None, None], changed, images)
            labels = torch.where(chosen[:, None, None], relabelled, labels)
    return images, labels


def composite(images: Tensor, labels: Tensor, generator: torch.Generator, background: int) -> tuple[Tensor, Tensor]:
    """Returns each image with its neighbour's pet, border included, in front, where it stood in its own image."""
    others, their_labels = images.roll(1, dims=0), labels.roll(1, dims=0)
    pasted = (their_labels != background) & (their_labels != IGNORE)
    return torch.where(pasted[:, None], others, images), torch.where(pasted, their_labels, labels)


def occlude(images: Tensor, labels: Tensor, generator: torch.Generator, background: int) -> tuple[Tensor, Tensor]:
    """Returns images with a rectangle of one colour in front, labelled background."""
    count, _, height, width = images.shape
    inside = torch.ones_like(labels, dtype=torch.bool)
    for side, shape in ((height, (1, -1, 1)), (width, (1, 1, -1))):
        length = uniform(count, *OCCLUDED, generator, images.device)
        start = uniform(count, 0, 1, generator, images.device) * (1 - length)
        place = ((torch.arange(side, device=images.device) + 0.5) / side).view(shape)
        inside = inside & (place >= start[:, None, None]) & (place < (start + length)[:, None, None])
    colour = uniform(count * 3, 0, 1, generator, images.device).view(count, 3, 1, 1)
    return torch.where(inside[:, None], colour, images), labels.masked_fill(inside, background)


def background_crop(
    images: Tensor, labels: Tensor, generator: torch.Generator, background: int
) -> tuple[Tensor, Tensor]:
    """Returns a square part of each image that is all background, enlarged; an image without one as it is."""
    count, _, height, width = images.shape
    device = images.device
    share = uniform(count, *CROP, generator, device)
    tops, lefts = (
        uniform(count * CROP_TRIES, 0, 1, generator, device).view(count, -1) * (1 - share[:, None]) for _ in range(2)
    )
    # how many pixels of a window are not background: four corners of the summed table
    table = F.pad(
        (labels != background).to(torch.int32).cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32), (1, 0, 1, 0)
    )

    def corner(rows: Tensor, columns: Tensor) -> Tensor:
        return table.flatten(1).gather(1, rows * (width + 1) + columns)

    top, left = (tops * height).floor().long(), (lefts * width).floor().long()
    bottom = ((tops + share[:, None]) * height).ceil().long().clamp(max=height)
    right = ((lefts + share[:, None]) * width).ceil().long().clamp(max=width)
    filled = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    empty = filled == 0
    choice = empty.int().argmax(dim=1, keepdim=True)
    found = empty.any(dim=1)
    middle_x, middle_y = (2 * starts.gather(1, choice)[:, 0] + share - 1 for starts in (lefts, tops))
    zero = torch.zeros_like(share)
    theta = torch.stack([share, zero, middle_x, zero, share, middle_y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    enlarged = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (
        torch.where(found[:, None, None, None], enlarged, images),
        torch.where(found[:, None, None], torch.full_like(labels, background), labels),
    )
