"""Other ways to look at the counts of the same runs: a part of the test images, or the border counted otherwise."""

from collections.abc import Sequence

import numpy as np

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


def subset_counts(counts: Confusion, name: str, ids: Sequence[str]) -> Confusion:
    """Returns the matrices of one of `SUBSETS`, of int64 [N, C, C] of images with these `ids`; 0 is the foreground."""
    if name == "unleaked":
        return counts[[sample_id not in oxford_pets.COMMITTED_LEAKS for sample_id in ids]]
    if name in SIZES:
        true = counts.sum(axis=2)
        order = np.argsort(true[:, 0] / np.maximum(1, true.sum(axis=1)), kind="stable")
        return counts[np.sort(np.array_split(order, len(SIZES))[SIZES.index(name)])]
    # the border's true pixels are left out, or go to a class; what is predicted as border goes to one in any case
    into = 1 if name == "border_background" else 0
    merged = counts[:, :2, :2].copy()
    merged[..., into] += counts[:, :2, 2]
    if name != "border_ignored":
        merged[:, into, :] += counts[:, 2, :2]
        merged[:, into, into] += counts[:, 2, 2]
    return merged
