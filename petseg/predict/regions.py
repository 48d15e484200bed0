"""Connected regions of a mask at the photo's own size: runs of set pixels, joined where they touch in the row above.

Why no library: scipy and OpenCV return a label for each pixel (200 MB for 50 megapixels) and are not installed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from petseg.data.dataset import UInt8

Ints = npt.NDArray[np.int64]
STRIP = 1 << 18  # pixels looked at at once, which fit a processor's cache


@dataclass(frozen=True, eq=False)
class Regions:
    """The runs of a mask [H, W] and the region, 0..R-1, that each belongs to."""

    width: int
    starts: Ints  # [runs] first pixel of each run in the flattened mask, rising
    ends: Ints  # [runs] one past its last pixel
    owner: Ints  # [runs] its region
    count: int  # R

    def areas(self) -> Ints:
        """Returns the pixels of each region, int64 [R]."""
        return np.bincount(self.owner, weights=self.ends - self.starts, minlength=self.count).astype(np.int64)

    def boxes(self) -> Ints:
        """Returns left, top, right, bottom of each region, [R, 4]; right and bottom are one past the last pixel."""
        rows, columns = np.divmod(self.starts, self.width)
        low, high = np.full((self.count, 2), np.iinfo(np.int64).max), np.zeros((self.count, 2), np.int64)
        np.minimum.at(low, self.owner, np.stack([columns, rows], axis=1))
        np.maximum.at(high, self.owner, np.stack([columns + self.ends - self.starts, rows + 1], axis=1))
        return np.concatenate([low, high], axis=1)

    def pixels(self, chosen: npt.NDArray[np.bool_], height: int) -> npt.NDArray[np.bool_]:
        """Returns the pixels, [H, W], of the regions that are `chosen`, [R]."""
        if not chosen.any():  # most often, and a tenth of the time
            return np.zeros((height, self.width), np.bool_)
        runs = chosen[self.owner]
        edges = np.zeros(height * self.width + 1, np.int8)
        edges[self.starts[runs]] = 1
        edges[self.ends[runs]] -= 1  # where the next row's run begins, 0
        return edges.cumsum(dtype=np.int8)[:-1].astype(np.bool_).reshape(height, self.width)

    def at(self, rows: Ints, columns: Ints) -> Ints:
        """Returns the region at each pixel, -1 outside all of them; `rows` and `columns` may broadcast."""
        places = rows * self.width + columns
        if not self.count:
            return np.full(places.shape, -1)
        run = np.searchsorted(self.starts, places, side="right") - 1
        return np.where((run >= 0) & (places < self.ends[run]), self.owner[run], -1)


def find_regions(mask: UInt8) -> Regions:
    """Returns the regions of a mask uint8 [H, W], zero outside; pixels belong together that share an edge."""
    width = mask.shape[1]
    height, found = max(1, STRIP // (width + 1)), [np.zeros(0, np.int64)]
    for top in range(0, len(mask), height):
        strip = mask[top : top + height]
        # the column of zeros ends a run that reaches the right side, the one before them lets the first pixel begin one
        flat = np.zeros(1 + len(strip) * (width + 1), np.bool_)
        np.not_equal(strip, 0, out=flat[1:].reshape(-1, width + 1)[:, :-1])
        found.append(np.flatnonzero(flat[1:] != flat[:-1]) + top * (width + 1))
    edges = np.concatenate(found)
    rows = edges[::2] // (width + 1)
    starts, ends = edges[::2] - rows, edges[1::2] - rows
    first = _first_joined(starts, ends, width)
    numbers = np.cumsum(first == np.arange(len(first)))
    return Regions(width, starts, ends, numbers[first] - 1, int(numbers[-1]) if len(numbers) else 0)


def _first_joined(starts: Ints, ends: Ints, width: int) -> Ints:
    """Returns the first run of the region that each run belongs to, [runs]."""
    runs = np.arange(len(starts))
    # runs of the row above that overlap a run are neighbours in `starts`: one search finds the first and the last
    first = np.searchsorted(ends, starts - width, side="right")
    past = np.minimum(np.searchsorted(starts, ends - width, side="left"), runs)
    further = np.maximum(past - first - 1, 0)
    joins = np.repeat(runs, further)
    others = np.arange(len(joins)) + np.repeat(first + 1 - np.cumsum(further) + further, further)
    parent = _roots(np.where(first < past, first, runs))
    # of regions that a run joins, each is named after the lowest neighbour: half of the names go in a round
    while (apart := parent[joins] != parent[others]).any():
        joins, others = joins[apart], others[apart]
        low, high = np.sort([parent[joins], parent[others]], axis=0)
        np.minimum.at(parent, high, low)
        parent = _roots(parent)
    return parent


def _roots(parent: Ints) -> Ints:
    """Returns where each chain of parents ends."""
    while not np.array_equal(above := parent[parent], parent):
        parent = above
    return parent
