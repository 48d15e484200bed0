"""Corruptions in three severities: of the square that the network sees (Hendrycks and Dietterich, arXiv 1903.12261).

What moves pixels is done to the image in its own proportions and to its label alike. Libraries of ImageNet-C, such as
imagecorruptions, corrupt the image alone, and their severities are of 224 px, not a share of the side.
"""

import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from petseg.data.dataset import IGNORE, UInt8


class Kind(NamedTuple):
    """A kind of corruption: its name for a reader, what its severities count, and the three of them."""

    title: str
    unit: str
    amounts: tuple[float, float, float]


KINDS = {
    "blur": Kind("blur", "blur, share of the side", (0.01, 0.02, 0.03)),  # of a Gaussian
    "noise": Kind("noise", "noise, share of the range", (0.08, 0.16, 0.32)),
    "jpeg": Kind("JPEG", "JPEG quality", (25, 12, 6)),
    "dark": Kind("darkness", "light left", (0.5, 0.25, 0.12)),
    "small": Kind("small scale", "size left", (0.75, 0.5, 0.33)),
    "rotated": Kind("rotation", "degrees rotated", (20, 45, 90)),  # to the left or the right
}


@dataclass(frozen=True)
class Corruption:
    """One kind of change in one severity, 1 to 3."""

    kind: str  # of KINDS
    severity: int

    @property
    def name(self) -> str:
        """How it is called in files, such as "blur-2"."""
        return f"{self.kind}-{self.severity}"

    @property
    def amount(self) -> float:
        """The severity in the kind's own unit."""
        return KINDS[self.kind].amounts[self.severity - 1]

    def image(self, image: UInt8, name: str, own_size: Sequence[int]) -> UInt8:
        """Returns an image, uint8 [S, S, 3], changed, alike for a name; `own_size` is its own height and width."""
        opened = Image.fromarray(image)
        if self.kind == "blur":
            return np.asarray(opened.filter(ImageFilter.GaussianBlur(self.amount * len(image))))
        if self.kind == "noise":
            noise = np.random.default_rng([zlib.crc32(name.encode()), self.severity]).normal(0, 1, image.shape)
            return np.clip(np.round(image + 255 * self.amount * noise), 0, 255).astype(np.uint8)
        if self.kind == "jpeg":
            file = io.BytesIO()
            opened.save(file, "JPEG", quality=round(self.amount))
            return np.asarray(Image.open(file, formats=["JPEG"]))
        if self.kind == "dark":
            return np.round(image * self.amount).astype(np.uint8)
        mean = tuple(int(value) for value in image.reshape(-1, 3).mean(axis=0).round())
        if self.kind == "small":
            side = self._small_side(len(image))
            canvas = Image.new("RGB", opened.size, mean)
            start = (len(image) - side) // 2
            canvas.paste(opened.resize((side, side), Image.Resampling.BILINEAR), (start, start))
            return np.asarray(canvas)
        height, width = own_size
        turn = _turned(self._angle(name), aspect=height / width, size=opened.size)
        return np.asarray(opened.transform(opened.size, *turn, Image.Resampling.BILINEAR, fillcolor=mean))

    def truth(self, labels: UInt8, name: str, side: int) -> UInt8:
        """Returns labels uint8 [H, W], moved as the square image of `side` was; 255 where nothing of it came."""
        if self.kind not in ("small", "rotated"):
            return labels
        opened = Image.fromarray(labels)
        if self.kind == "rotated":
            way = _turned(self._angle(name), aspect=1.0, size=opened.size)
        else:
            small = self._small_side(side)
            start = (side - small) // 2
            width, height = opened.size
            scale = side / small
            shift = -start * scale / side
            way = (Image.Transform.AFFINE, (scale, 0.0, shift * width, 0.0, scale, shift * height))
        return np.asarray(opened.transform(opened.size, *way, Image.Resampling.NEAREST, fillcolor=IGNORE))

    def _small_side(self, side: int) -> int:
        return max(1, round(self.amount * side))

    def _angle(self, name: str) -> float:
        return self.amount if zlib.crc32(name.encode()) % 2 else -self.amount


def corruptions() -> list[Corruption]:
    """Returns every change, kind by kind."""
    return [Corruption(kind, severity) for kind in KINDS for severity in (1, 2, 3)]


def _turned(degrees: float, *, aspect: float, size: tuple[int, int]) -> tuple[Image.Transform, tuple[float, ...]]:
    """Returns a turn about the middle for `Image.transform`; a pixel stands for one `aspect` times as high as wide."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    x, y = size[0] / 2, size[1] / 2
    across, down = sine * aspect, -sine / aspect
    first_row = (cosine, across, x - cosine * x - across * y)
    second_row = (down, cosine, y - down * x - cosine * y)
    return Image.Transform.AFFINE, first_row + second_row
