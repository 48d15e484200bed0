"""Intervals: what a difference between two models is worth."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import stdtrit

from petseg.metrics import Confusion, Score, mean_iou
from petseg.schema import Estimate, PairedDifference

Scoring = Callable[[Confusion], Score]  # of [..., C, C], or of other sums such as `metrics.boundary_sums`, to [...]


@dataclass(frozen=True)
class Resampling:
    """How an interval is made."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0  # of the draws


def paired_bootstrap(
    first: Confusion, second: Confusion, *, score: Scoring = mean_iou, how: Resampling = Resampling()
) -> PairedDifference:
    """Returns the first score less the second with its interval over images and, where there are any, seeds.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; docs/statistics.md derives the part of
    the seeds. Both are per-image confusion matrices, int64 [N, C, C] or, of S seeds, [S, N, C, C]: of the same images,
    and of the same seeds in the same order.
    """
    assert first.shape == second.shape, "paired: both models score the same images, from the same seeds"
    first, second = (_by_seed(confusions) for confusions in (first, second))
    own = score(first.sum(axis=1)) - score(second.sum(axis=1))
    resampled = _resampled(first, score, how) - _resampled(second, score, how)
    drawn = _drawn(100 * own, 100 * resampled, how.seed)
    interval = _estimate(100 * own, drawn, how.confidence)
    return PairedDifference(**interval.model_dump(), share_left_better=float((drawn > 0).mean()))


def bootstrap(confusions: Confusion, *, score: Scoring = mean_iou, how: Resampling = Resampling()) -> Estimate:
    """Returns one model's score with its interval; arguments and method are those of `paired_bootstrap`."""
    confusions = _by_seed(confusions)
    own = 100 * score(confusions.sum(axis=1))
    drawn = _drawn(own, 100 * _resampled(confusions, score, how), how.seed)
    return _estimate(own, drawn, how.confidence)


@lru_cache(maxsize=4)
def _times_drawn(count: int, resamples: int, seed: int) -> Score:
    """Returns how often each resample holds each image, float64 [resamples, N]."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn.astype(np.float64)


def _resampled(confusions: Confusion, score: Scoring, how: Resampling) -> Score:
    """Returns the score of each resample of images, float64 [resamples, S], of matrices [S, N, C, C]."""
    # floats carry these counts exactly (below 2**53) and use the fast matrix product; all seeds in one, since what
    # takes time is to read the weights
    seeds, count, *matrix = confusions.shape
    weights = _times_drawn(count, how.resamples, how.seed)
    flat = weights @ confusions.swapaxes(0, 1).reshape(count, -1).astype(np.float64)
    return score(flat.astype(np.int64).reshape(how.resamples, seeds, *matrix).swapaxes(0, 1)).T


def _drawn(own: Score, resampled: Score, seed: int) -> Score:
    """Returns the resamples of the mean over seeds, float64 [resamples], from `own` [S] and `resampled` of images."""
    resamples, seeds = resampled.shape
    over_images = resampled.mean(axis=1)
    if seeds == 1:
        return np.asarray(over_images)
    covariance = np.cov(resampled, rowvar=False)
    shared = max(0.0, (covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1)))
    spread = over_images.var(ddof=1)
    shrink = np.sqrt(shared / spread) if spread else 0.0
    middle = own.mean()
    levels = np.random.default_rng([seed, seeds]).permutation((np.arange(resamples) + 0.5) / resamples)
    deviations = stdtrit(seeds - 1, levels) * (-1 if middle < 0 else 1)
    return np.asarray(middle + shrink * (over_images - middle) + deviations * own.std(ddof=1) / np.sqrt(seeds))


def _estimate(own: Score, drawn: Score, confidence: float) -> Estimate:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(points=float(own.mean()), low=float(low), high=float(high))


def _by_seed(confusions: Confusion) -> Confusion:
    """Returns [S, N, C, C]; one training's matrices [N, C, C] are those of one seed."""
    return confusions.reshape(-1, *confusions.shape[-3:])
