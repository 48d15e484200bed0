"""Other ways to look at the counts of the same runs: a part of the test images, or the border counted otherwise."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from petseg.data import oxford_pets
from petseg.metrics import Confusion

SUBSETS = {  # name -> what a reader is told
    "unleaked": "without the test images that have a near-identical one in trainval",
    "border_pet": "border counted as pet, two classes",
    "border_background": "border counted as background, two classes",
    "border_ignored": "border pixels not counted, predicted border as pet, two classes",
    "small": "the third of the images with the smallest pets",
    "medium": "the middle third",
    "large": "the third with the largest pets",
}

SIZES = ("small", "medium", "large")
Rows = NDArray[np.intp]


def subset_counts(counts: Confusion, name: str, ids: Sequence[str]) -> tuple[Sequence[str], Confusion]:
    """Returns (ids, matrices) of one of `SUBSETS`, of int64 [N, C, C] of images with `ids`; 0 is the foreground."""
    if name == "unleaked" or name in SIZES:
        rows = _unleaked(ids) if name == "unleaked" else _of_size(counts, SIZES.index(name))
        return [ids[row] for row in rows], counts[rows]
    # the border's true pixels are left out, or go to a class; what is predicted as border goes to one in any case
    into = 1 if name == "border_background" else 0
    merged = counts[:, :2, :2].copy()
    merged[..., into] += counts[:, :2, 2]
    if name != "border_ignored":
        merged[:, into, :] += counts[:, 2, :2]
        merged[:, into, into] += counts[:, 2, 2]
    return ids, merged


def _unleaked(ids: Sequence[str]) -> Rows:
    return np.flatnonzero([sample_id not in oxford_pets.COMMITTED_LEAKS for sample_id in ids])


def _of_size(counts: Confusion, third: int) -> Rows:
    """Returns the rows of a third of the images, by the foreground's share of them."""
    true = counts.sum(axis=2)
    order = np.argsort(true[:, 0] / np.maximum(1, true.sum(axis=1)), kind="stable")
    return np.sort(np.array_split(order, len(SIZES))[third])
