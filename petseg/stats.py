"""Intervals: what a difference between two models is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petseg.metrics import Confusion, mean_iou

RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """A difference of mIoU, first model less second, in points (hundredths)."""

    points: float
    low: float
    high: float
    share_first_better: float
    """Of the resamples, 0..1."""
    resamples: int
    confidence: float


def paired_bootstrap(
    first: Confusion, second: Confusion, *, resamples: int = RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Returns the difference of two models' mIoU with its percentile interval over pictures.

    Both models see the same resampled pictures (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
    chapter 13), each resample's matrices are added and scored anew. The interval covers the choice of pictures, not the
    seed of training.

    Args:
        first: per-picture confusion matrices, int64 [N, C, C].
        second: of the other model on the same pictures.
        resamples: how many.
        confidence: of the interval, 0..1.
        seed: of the resampling.
    """
    assert first.shape == second.shape, "paired: both models score the same pictures"
    count = len(first)
    generator = np.random.default_rng(seed)
    times_drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)

    def resampled(confusions: Confusion) -> Confusion:
        # floats carry these counts exactly (below 2**53) and use the fast matrix product
        flat = times_drawn @ confusions.reshape(count, -1).astype(np.float64)
        return flat.astype(np.int64).reshape(resamples, *confusions.shape[1:])

    differences = 100 * (mean_iou(resampled(first)) - mean_iou(resampled(second)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return Difference(
        points=float(100 * (mean_iou(first.sum(axis=0)) - mean_iou(second.sum(axis=0)))),
        low=float(low),
        high=float(high),
        share_first_better=float((differences > 0).mean()),
        resamples=resamples,
        confidence=confidence,
    )
