"""Image geometry: how an image of H x W pixels becomes a model's input, and how the model's maps go back to it.

square  the whole image, resized to a square: its aspect is lost
pad     the whole image in its own aspect, the longer side the square's; the rest is grey and neither trains nor counts
crop    the image at its own size, or reduced; trains on random crops, predicts overlapping windows with blended edges

Windows overlap by half and are weighted by a Gaussian with a deviation of an eighth of their side, as in Isensee et
al., "nnU-Net", Nature Methods 18, 2021 (arXiv 1904.08128).

We differ from the paper: probabilities are averaged, not logits, since an exported model gives no others. The weights
of rows and columns are separate and add up to 1, so that a row of windows is final, and leaves memory, before the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from petseg.data.dataset import IGNORE, UInt8
from petseg.data.images import draft_side, resize_ids

if TYPE_CHECKING:  # predict loads this, and no pydantic
    from petseg.config import DataConfig, Fit

Floats = npt.NDArray[np.float32]
Size = tuple[int, int]  # height and width
Network = Callable[[UInt8], Floats]  # uint8 [N, S, S, 3] -> probabilities [N, C, S, S]
FITS = ("square", "pad", "crop")
GREY = 127  # the padding: near zero after every model's normalisation
WHOLE = 1 << 22  # pixels of an image up to which its maps are kept whole; of a larger one, only what follows from them
WINDOWS = 8  # windows a call of the network: more are no faster on a processor, and take its memory


@dataclass(frozen=True)
class Geometry:
    """How images are fitted to a model."""

    size: int  #: side in pixels of the square that the model sees
    fit: Fit = "square"
    reduce_to: int = 0  #: fit crop: the longer side to which larger images are reduced; 0: none is

    @classmethod
    def of(cls, config: DataConfig) -> Self:
        """Returns the geometry of a recipe."""
        return cls(config.size, config.fit, config.reduce_to)

    def __str__(self) -> str:
        if self.fit == "crop":
            return f"{self.fit} of {self.size} px" + (f" from {self.reduce_to} px" if self.reduce_to else "")
        return f"{self.size} px" + (", padded" if self.fit == "pad" else "")

    @property
    def name(self) -> str:
        """Names it in a cache's path; a square is its size."""
        names = {"square": f"{self.size}", "pad": f"{self.size}-pad", "crop": f"{self.size}-crop-{self.reduce_to}"}
        return names[self.fit]

    @property
    def draft(self) -> int | None:
        """How many pixels the JPEG decoder must leave of each side; None: all."""
        side = self.reduce_to if self.fit == "crop" else self.size
        return draft_side(side) if side else None

    def content(self, own: Size) -> Size:
        """Returns height and width that an image of the size `own` has as the model sees it.

        >>> [Geometry(96, fit).content((60, 120)) for fit in ("square", "pad", "crop")]
        [(96, 96), (48, 96), (60, 120)]
        """
        if self.fit == "square":
            return self.size, self.size
        longer = max(own)
        side = self.size if self.fit == "pad" else min(longer, self.reduce_to or longer)
        height, width = (max(1, round(length * side / longer)) for length in own)
        return height, width

    def canvas(self, content: Size) -> Size:
        """Returns height and width of the array that holds the content at its top left: at least the square's."""
        return max(content[0], self.size), max(content[1], self.size)

    def image(self, opened: Image.Image, own: Size) -> UInt8:
        """Returns an RGB image, which had the size `own` before the decoder reduced it, as uint8 [h, w, 3] `canvas`."""
        height, width = content = self.content(own)
        resized = np.asarray(opened.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0))
        return _filled(resized, self.canvas(content), GREY)

    def ids(self, ids: UInt8) -> UInt8:
        """Returns class ids [H, W] as `image` does, uint8 [h, w], nearest; the padding is ignored."""
        content = self.content((ids.shape[0], ids.shape[1]))
        return _filled(resize_ids(ids, content), self.canvas(content), IGNORE)

    def count(self, content: Size, *, step: int = 0) -> int:
        """Returns how many windows `bands` looks through."""
        return math.prod(len(_starts(length, self.size, step or self.size // 2)) for length in self.canvas(content))

    def bands(self, image: UInt8, content: Size, network: Network, *, step: int = 0) -> Iterator[Floats]:
        """Yields probabilities [C, rows, w] of bands of the content, from the top, seen in windows of the canvas.

        Windows lie `step` pixels apart, by default half their side. Memory is of one row of windows.
        """
        side, (height, width) = self.size, content
        tops, lefts = (_starts(length, side, step or side // 2) for length in image.shape[:2])
        down, across = (_shares(starts, side) for starts in (tops, lefts))
        pending: Floats | None = None  # [C, side, width of the canvas] from `top` on
        for top, following, share in zip(tops, [*tops[1:], height], down, strict=True):
            for first in range(0, len(lefts), WINDOWS):
                some = slice(first, first + WINDOWS)
                batch = np.stack([image[top : top + side, left : left + side] for left in lefts[some]])
                for seen, left, of_column in zip(network(batch), lefts[some], across[some], strict=True):
                    if pending is None:
                        pending = np.zeros((len(seen), side, image.shape[1]), np.float32)
                    pending[:, :, left : left + side] += seen * (share[:, None] * of_column)
            assert pending is not None, "there is a window"
            final = following - top
            yield pending[:, :final, :width]
            pending = np.concatenate([pending[:, final:], np.zeros_like(pending[:, :final])], axis=1)


def _filled(values: UInt8, size: Size, value: int) -> UInt8:
    """Returns [h, w, ...] with rows below and columns beside it, so that it has a size."""
    height, width = values.shape[:2]
    if (height, width) == size:
        return values
    filled = np.full((*size, *values.shape[2:]), value, np.uint8)
    filled[:height, :width] = values
    return filled


def _starts(length: int, side: int, step: int) -> list[int]:
    """Returns where windows begin: `step` apart, so that pooling falls alike in each, but the last at the end."""
    return [*range(0, length - side, step), length - side]


def _shares(starts: list[int], side: int) -> list[Floats]:
    """Returns the weights [side] of each window along one axis; all those of one pixel add up to 1."""
    weights = np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / 8)) ** 2)
    total = np.zeros(starts[-1] + side)
    for start in starts:
        total[start : start + side] += weights
    return [(weights / total[start : start + side]).astype(np.float32) for start in starts]
