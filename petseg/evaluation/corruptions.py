"""Corruptions in three severities, of the file at its own size, before anything else is done to it (after Hendrycks
and Dietterich, arXiv 1903.12261). What moves pixels is done to the label alike.

Libraries of ImageNet-C, such as imagecorruptions, corrupt the image alone, and their severities are of 224 px, not a
share of the longer side.
"""

import io
import zlib
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
    "jpeg": Kind("JPEG", "JPEG quality", (50, 25, 10)),
    "blur": Kind("blur", "blur, share of the longer side", (0.005, 0.01, 0.02)),  # of a Gaussian
    "noise": Kind("noise", "noise, share of the range", (0.08, 0.16, 0.32)),
    "dark": Kind("darkness", "light left", (0.5, 0.25, 0.12)),
    "small": Kind("small scale", "size left", (0.75, 0.5, 0.33)),
    "rotated": Kind("rotation", "degrees rotated", (20, 45, 90)),  # to the left or the right
}


@dataclass(frozen=True)
class Corruption:
    """One kind of change in one severity, 1 to 3; 0 is none."""

    kind: str  # of KINDS
    severity: int

    @property
    def name(self) -> str:
        """How it is called in files, such as "blur-2"."""
        return f"{self.kind}-{self.severity}" if self.severity else "unchanged"

    @property
    def amount(self) -> float:
        """The severity in the kind's own unit."""
        return KINDS[self.kind].amounts[self.severity - 1]

    def image(self, image: UInt8, name: str) -> UInt8:
        """Returns an image, uint8 [H, W, 3] at its own size, changed, alike for a name; severity 0 changes nothing."""
        if self.severity == 0:
            return image
        opened = Image.fromarray(image)
        if self.kind == "blur":
            return np.asarray(opened.filter(ImageFilter.GaussianBlur(self.amount * max(opened.size))))
        if self.kind == "noise":
            noise = np.random.default_rng([zlib.crc32(name.encode()), self.severity]).normal(0, 1, image.shape)
            return np.clip(np.round(image + 255 * self.amount * noise), 0, 255).astype(np.uint8)
        if self.kind == "jpeg":
            file = io.BytesIO()
            opened.save(file, "JPEG", quality=round(self.amount))
            return np.asarray(Image.open(file, formats=["JPEG"]))
        if self.kind == "dark":
            return np.round(image * self.amount).astype(np.uint8)
        return self._moved(opened, name, Image.Resampling.BILINEAR, mean_colour(image))

    def truth(self, labels: UInt8, name: str) -> UInt8:
        """Returns labels uint8 [H, W], moved as the image was; 255 where nothing of it came."""
        if self.severity == 0 or self.kind not in ("small", "rotated"):
            return labels
        return self._moved(Image.fromarray(labels), name, Image.Resampling.NEAREST, IGNORE)

    def _moved(self, opened: Image.Image, name: str, how: Image.Resampling, fill: int | tuple[int, ...]) -> UInt8:
        if self.kind == "rotated":
            return np.asarray(opened.rotate(self._angle(name), how, fillcolor=fill))
        size = tuple(max(1, round(self.amount * side)) for side in opened.size)
        return in_the_middle(opened.resize((size[0], size[1]), how), opened.size, fill)

    def _angle(self, name: str) -> float:
        return self.amount if zlib.crc32(name.encode()) % 2 else -self.amount


def mean_colour(image: UInt8) -> tuple[int, ...]:
    """Returns the mean of each channel of an image [H, W, C], rounded."""
    return tuple(image.mean(axis=(0, 1)).round().astype(int).tolist())


def in_the_middle(opened: Image.Image, size: tuple[int, int], fill: int | tuple[int, ...]) -> UInt8:
    """Returns an image in the middle of one of a width and height that is otherwise `fill`, uint8 [H, W, ...]."""
    canvas = Image.new(opened.mode, size, fill)
    canvas.paste(opened, ((size[0] - opened.width) // 2, (size[1] - opened.height) // 2))
    return np.asarray(canvas)


def corruptions() -> list[Corruption]:
    """Returns the images as they are, as severity 0 of the first kind, then every change, kind by kind."""
    return [UNCHANGED, *(Corruption(kind, severity) for kind in KINDS for severity in (1, 2, 3))]


UNCHANGED = Corruption(next(iter(KINDS)), 0)
