"""What happens to a photo between the pet and the file: darkness, blur, reduction, noise, JPEG. Labels stay.

Batched tensor code on the images' device; each change is made to the whole batch and kept where chance wants it, which
costs less than picking images out, and the host never waits for the device.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from petseg.config import AugmentConfig

GAMMA, CAST, DARKEST = 2.2, 0.25, 0.25
"""Largest gamma either way, largest gain of one colour against the others (natural logarithm), least brightness."""

SIGMA = (0.3, 2.5)
"""Standard deviations in pixels of the blur; the kernel reaches 7 pixels."""

SHRINK = (1.5, 5.0)
"""Factors by which an image is reduced before it is enlarged again; one a batch."""

NOISE = 0.12
"""Largest standard deviation of the noise, of values in 0..1."""

QUALITY = (5.0, 80.0)
"""JPEG qualities, log-uniform."""

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
"""Quantisation at quality 50 (ITU-T T.81, annex K)."""

YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""Of red, green and blue (JFIF)."""


def uniform(count: int, low: float, high: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Returns float32 [count], drawn on the host and sent to a device without waiting for it."""
    return send(torch.rand(count, generator=generator) * (high - low) + low, device)


def send(values: Tensor, device: torch.device) -> Tensor:
    """Returns a tensor of the host on a device; a copy from pinned memory does not wait for the device's queue."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def degrade(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Returns a batch in which each image went through each of the changes with the configured probability.

    Args:
        images: float32 [N, 3, H, W] in 0..1.
        config: probabilities.
        generator: on the CPU.
    """
    changes = ((config.light, light), (config.blur, blur), (config.shrink, shrink), (config.noise, noise))
    for probability, change in (*changes, (config.jpeg, jpeg)):
        if probability:
            chosen = uniform(len(images), 0, 1, generator, images.device) < probability
            images = torch.where(chosen[:, None, None, None], change(images, generator), images)
    return images


def light(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images with another gamma, a colour cast and less light."""
    count, device = len(images), images.device
    gamma = torch.exp(uniform(count, -1, 1, generator, device) * math.log(GAMMA))[:, None, None, None]
    gain = torch.exp(uniform(count * 3, -CAST, CAST, generator, device)).view(count, 3, 1, 1)
    level = uniform(count, DARKEST, 1, generator, device)[:, None, None, None]
    return (images.clamp(min=1e-4) ** gamma * gain * level).clamp(0, 1)


def blur(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images under a Gaussian, each with a width of its own."""
    count, channels, height, width = images.shape
    sigma = uniform(count, *SIGMA, generator, images.device)[:, None]
    reach = min(7, height - 1, width - 1)
    place = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (place / sigma).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    planes = F.pad(images, (reach,) * 4, mode="reflect").view(1, count * channels, height + 2 * reach, -1)
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=count * channels)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=count * channels)
    return planes.view_as(images).clamp(0, 1)


def shrink(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images reduced, antialiased, and enlarged again."""
    factor = float(torch.rand((), generator=generator)) * (SHRINK[1] - SHRINK[0]) + SHRINK[0]
    size = [max(1, round(side / factor)) for side in images.shape[-2:]]
    small = F.interpolate(images, size=size, mode="bilinear", antialias=True)
    return F.interpolate(small, size=images.shape[-2:], mode="bilinear").clamp(0, 1)


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images with Gaussian noise, drawn on their device: the same seed gives other noise on another device."""
    own = torch.Generator(images.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    sigma = uniform(len(images), 0, NOISE, generator, images.device)[:, None, None, None]
    return (images + sigma * torch.randn(images.shape, device=images.device, generator=own)).clamp(0, 1)


def jpeg(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns images as `compress` leaves them, each at a quality of its own."""
    low, high = math.log(QUALITY[0]), math.log(QUALITY[1])
    return compress(images, torch.exp(uniform(len(images), low, high, generator, images.device)))


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """Returns what JPEG keeps of images: baseline, colours at half the resolution.

    Args:
        images: float32 [N, 3, H, W] in 0..1.
        quality: [N], 1..100, libjpeg's scale.
    """
    height, width = images.shape[-2:]
    right, below = -width % 16, -height % 16
    planes = F.pad(images * 255, (0, right, 0, below), mode="replicate")
    matrix = torch.tensor(YCBCR)
    planes = torch.einsum("dc,nchw->ndhw", send(matrix, images.device), planes)
    luma = _quantise(planes[:, :1] - 128, LUMINANCE, quality) + 128
    chroma = _quantise(F.avg_pool2d(planes[:, 1:], 2), CHROMINANCE, quality)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear")
    back = send(torch.linalg.inv(matrix), images.device)
    planes = torch.einsum("cd,ndhw->nchw", back, torch.cat([luma, chroma], dim=1))
    return (planes[..., :height, :width].round() / 255).clamp(0, 1)


def _quantise(planes: Tensor, table: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """Returns planes [N, D, H, W], H and W multiples of 8, after their cosine transform lost its small parts."""
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]
    steps = send(torch.tensor(table, dtype=planes.dtype), planes.device)
    steps = ((steps * scale + 50) / 100).floor().clamp(1, 255)[:, None, None, :, None, :]
    frequency = torch.arange(8, device=planes.device)[:, None]
    place = torch.arange(8, device=planes.device)[None]
    cosines = 0.5 * torch.cos((2 * place + 1) * frequency * (math.pi / 16))
    cosines = torch.where(frequency == 0, cosines * math.sqrt(0.5), cosines)
    count, depth, height, width = planes.shape
    blocks = planes.reshape(count, depth, height // 8, 8, width // 8, 8)
    spectrum = torch.einsum("ui,ndaibj,vj->ndaubv", cosines, blocks, cosines)
    spectrum = (spectrum / steps).round() * steps
    return torch.einsum("ui,ndaubv,vj->ndaibj", cosines, spectrum, cosines).reshape(planes.shape)
