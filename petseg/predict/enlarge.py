"""Resizing maps to a photo's size, window by window: a map of a 50-megapixel photo takes 200 MB in one piece.

No library gives the masks that are scored with torch: Pillow's averages, scipy and OpenCV are 143 and 153 MB installed.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from petseg.data.dataset import UInt8

Floats = npt.NDArray[np.float32]
Size = tuple[int, int]  # height and width


Places = npt.NDArray[np.int64]
STRIP = 1 << 18  # numbers worked on at once, which fit a processor's cache


def enlarged(maps: Floats, size: Size, rows: slice | Places, columns: slice | Places) -> Floats:
    """Returns a window [D, rows, columns] of maps [D, h, w] resized, as the evaluation does: bilinear, by centres.

    Rows and columns rise.
    """
    above, below, down = _neighbours(maps.shape[1], size[0], rows)
    left, right, across = _neighbours(maps.shape[2], size[1], columns)
    first, last = int(above[0]), int(below[-1]) + 1
    near = maps[:, first:last]
    wide = near[:, :, left]
    wide += (near[:, :, right] - wide) * across
    window = wide[:, above - first]
    window += (wide[:, below - first] - window) * down[:, None]
    return window


def painted(maps: Floats, size: Size, value: Callable[[Floats], UInt8]) -> UInt8:
    """Returns uint8 [H, W] of `size`: the value, [rows, columns], of each window [D, rows, columns] of resized maps.

    Where four neighbours have one value, all between them must have it: so is the largest of the maps, or a sign. Only
    the rest is resized.
    """
    own, result = value(maps), np.empty(size, np.uint8)
    left, right, _ = _neighbours(maps.shape[2], size[1], slice(0, size[1]))
    height = max(1, STRIP // (len(maps) * size[1]))
    for top in range(0, size[0], height):
        rows = slice(top, min(top + height, size[0]))
        above, below, _ = _neighbours(maps.shape[1], size[0], rows)
        near = own[above[0] : below[-1] + 1]
        alike = (near == near[0]).all(axis=0)
        result[rows] = near[0, left]
        mixed = np.flatnonzero(~alike[left] | ~alike[right] | (near[0, left] != near[0, right]))
        if mixed.size:
            result[rows, mixed] = value(enlarged(maps, size, rows, mixed))
    return result


def windows(size: Size, step: Size) -> Iterator[tuple[slice, slice]]:
    """Yields rows and columns of windows of at most `step` that cover `size`, row by row."""
    for top in range(0, size[0], step[0]):
        for left in range(0, size[1], step[1]):
            yield slice(top, min(top + step[0], size[0])), slice(left, min(left + step[1], size[1]))


def _neighbours(own: int, wanted: int, part: slice | Places) -> tuple[Places, Places, Floats]:
    """Returns for each place of `part` the two it lies between, and how far on the way to the second, 0..1."""
    places = np.arange(part.start, part.stop) if isinstance(part, slice) else part
    at = ((places + 0.5) * (own / wanted) - 0.5).clip(0, own - 1)
    first = at.astype(np.int64)
    return first, np.minimum(first + 1, own - 1), (at - first).astype(np.float32)
