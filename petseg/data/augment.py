"""Batched augmentation on the training device: image and labels move together, by one sampling grid a batch."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from petseg.config import AugmentConfig
from petseg.data.camera import degrade, send, uniform
from petseg.data.scene import rearrange

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in a grey value (ITU-R BT.601)


def augment(
    images: Tensor, labels: Tensor, config: AugmentConfig, generator: torch.Generator, background: int = 0
) -> tuple[Tensor, Tensor]:
    """Returns a batch with each image moved, its scene changed, coloured and degraded at random; outside is mirrored.

    Images are float32 [N, 3, H, W] in 0..1, labels uint8 [N, H, W] with no new values but `background`, that class's
    id. The generator is on the CPU, so the same seed gives the same images on any device.
    """
    images, labels = _move(images, labels, config, generator)
    images, labels = rearrange(images, labels, config, generator, background)
    return degrade(_recolour(images, config.colour, generator), config, generator), labels


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _move(images: Tensor, labels: Tensor, config: AugmentConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    count, _, height, width = images.shape
    zoom = torch.exp(_uniform(count, -1, 1, generator) * math.log1p(config.scale))
    angle = _uniform(count, -1, 1, generator) * math.radians(config.rotation)
    shift_x, shift_y = (_uniform(count, -2, 2, generator) * config.shift for _ in range(2))
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5 * config.flip, -1.0, 1.0)
    if not (config.scale or config.rotation or config.shift or config.aspect):
        if not config.flip:
            return images, labels
        flipped = (mirror < 0).to(images.device)
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return images, torch.where(flipped[:, None, None], labels.flip(-1), labels)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    stretch = torch.ones(count)
    if config.aspect:
        stretch = torch.exp(_uniform(count, -0.5, 0.5, generator) * math.log1p(config.aspect))
    across, down = mirror / stretch, stretch
    aspect = width / height
    # output to input in normalised coordinates; the aspect keeps a turn rigid on images that are not square
    rows = [cos * across, -sin / aspect * down, shift_x, sin * aspect * across, cos * down, shift_y]
    theta = send(torch.stack(rows, dim=1).view(-1, 2, 3), images.device)
    grid = F.affine_grid(theta, [count, 1, height, width], align_corners=False)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    moved = F.grid_sample(labels[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return images, moved[:, 0].to(labels.dtype)


def _recolour(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    if not strength:
        return images
    count = images.shape[0]
    brightness, contrast, saturation = (
        uniform(count, 1 - strength, 1 + strength, generator, images.device)[:, None, None, None] for _ in range(3)
    )
    luma = images.new_tensor(LUMA)[:, None, None]
    grey = (images * luma).sum(dim=1, keepdim=True)
    middle = grey.mean(dim=(2, 3), keepdim=True)
    # saturation about the grey image, contrast about its mean, brightness about black: one linear map of both
    images = images * (brightness * contrast * saturation)
    images = images + grey * (brightness * contrast * (1 - saturation)) + middle * (brightness * (1 - contrast))
    return images.clamp_(0.0, 1.0)
