"""How much of a dataset each class is."""

import numpy as np
import numpy.typing as npt

from petseg.data.dataset import UInt8

Counts = npt.NDArray[np.int64]


def class_pixels(ids: UInt8, num_classes: int) -> Counts:
    """Returns how many pixels of class ids, of any shape, each class has, int64 [C]; 255 is not counted."""
    return np.bincount(ids.ravel(), minlength=256)[:num_classes]


def median_frequency(counts: Counts) -> npt.NDArray[np.float64]:
    """Returns each class's weight, float64 [C]: median(f) / f_c, f_c being its share in the images that hold it.

    Counts are pixels of N images by class, [N, C]; an absent class weighs 0. SegNet's weights: Eigen and Fergus, arXiv
    1411.4734, 6.3.2.
    """
    pixels = counts.sum(axis=1, keepdims=True)
    totals = (pixels * (counts > 0)).sum(axis=0).astype(np.float64)
    frequency = np.divide(counts.sum(axis=0), totals, out=np.zeros(len(totals)), where=totals > 0)
    middle = np.median(frequency[frequency > 0]) if frequency.any() else 0.0
    weights: npt.NDArray[np.float64] = np.divide(middle, frequency, out=np.zeros(len(totals)), where=frequency > 0)
    return weights
