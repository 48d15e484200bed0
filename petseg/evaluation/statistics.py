"""Intervals: what a difference between two models is worth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.special import ndtri, stdtrit

from petseg.metrics import Confusion, Score, iou, mean_iou, mean_over_classes, truths
from petseg.schema import Estimate, LatencyInfo, PairedDifference, Ratio

FEW = 100  # images below which intervals are widened; from there on it would be by less than 2 %
Interval = tuple[float, float]
Scoring = Callable[[Confusion], Score]  # of [..., C, C], or of sums with a row a class (`boundary_sums`), to [...]


@dataclass(frozen=True)
class Resampling:
    """How an interval is made."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0  #: of the draws


def paired_bootstrap(
    first: Confusion, second: Confusion, *, score: Scoring = mean_iou, how: Resampling = Resampling()
) -> PairedDifference:
    """Returns the first score less the second with its interval over images and, where there are any, seeds.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; docs/statistics.md derives the part of
    the seeds. Both are per-image confusion matrices, int64 [N, C, C] or, of S seeds, [S, N, C, C]: of the same images,
    and of the same seeds in the same order.
    """
    assert first.shape == second.shape, "paired: both models score the same images, from the same seeds"
    own, resampled, worth = _compared(Pair(first, second, score), how)
    return _difference(own, _drawn(own, resampled, worth, how), how)


@dataclass(frozen=True)
class Pair:
    """Two arms' matrices, as `paired_bootstrap` takes them, and their score."""

    first: Confusion
    second: Confusion
    score: Scoring = mean_iou


def family_intervals(pairs: Sequence[Pair], *, how: Resampling = Resampling()) -> list[Interval]:
    """Returns the simultaneous intervals of differences, in points, of any arms, seeds and images.

    Those of the same images are resampled alike; what their seeds add is drawn independently, which is the wider.
    """
    drawn = []
    for place, pair in enumerate(pairs):
        drawn.append(_drawn(*_compared(pair, how), _of_many(how, len(pairs)), place))
    together = simultaneous_intervals(np.stack(drawn, axis=1), how.confidence) if pairs else []
    return [(max(-100.0, low), min(100.0, high)) for low, high in together]


def summed_by(groups: Sequence[str], counts: Confusion) -> Confusion:
    """Returns per-image matrices [..., N, C, C] added up by group, [..., G, C, C]: resampled, they are drawn whole.

    Images of a patient or a film are alike: an interval over images as if each came alone is too narrow. Davison and
    Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.
    """
    _, places = np.unique(groups, return_inverse=True)
    return np.stack([counts[..., places == place, :, :].sum(axis=-3) for place in range(places.max() + 1)], axis=-3)


def ratio_of(one: LatencyInfo, other: LatencyInfo) -> Ratio:
    """Returns the ratio of two latencies that were measured in turn, with its 95 % interval: Student's t over rounds.

    The rounds' ratios are averaged as logarithms; what slows a round slows both.
    """
    ratios = np.log(np.array(one.rounds) / np.array(other.rounds))
    wide = stdtrit(len(ratios) - 1, 0.975) * ratios.std(ddof=1) / np.sqrt(len(ratios))
    middle, low, high = (round(float(np.exp(ratios.mean() + way)), 4) for way in (0, -wide, wide))
    return Ratio(ratio=middle, low=low, high=high)


def simultaneous_intervals(drawn: Score, confidence: float) -> list[Interval]:
    """Returns (low, high) of K estimates such that all K hold at once with the given confidence.

    `drawn` are the resamples, float64 [resamples, K], a row of the same images. Mandel and Betensky, "Simultaneous
    confidence intervals based on the percentile bootstrap approach", 2008: percentile intervals of a higher level, the
    same for all, so wide that this share of the rows lies within every one of them.
    """
    ranks = (drawn.argsort(axis=0).argsort(axis=0) + 0.5) / len(drawn)
    outward = np.abs(2 * ranks - 1) * (np.ptp(drawn, axis=0) > 0)  # equal models take no part
    level = np.quantile(outward.max(axis=1), confidence)
    ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [(float(low), float(high)) for low, high in ends.T]


def bootstrap(confusions: Confusion, *, score: Scoring = mean_iou, how: Resampling = Resampling()) -> Estimate:
    """Returns one model's score with its interval; arguments and method are those of `paired_bootstrap`."""
    (confusions,) = _counted(_by_seed(confusions))
    own = 100 * score(confusions.sum(axis=1))
    worth = _worth(confusions, _left_out(confusions, score))
    drawn = _drawn(own, 100 * _resampled(confusions, score, how), worth, how)
    return _estimate(own, drawn.clip(0, 100), how.confidence)


@lru_cache(maxsize=2)
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
    sums = flat.astype(np.int64).reshape(how.resamples, seeds, *matrix).swapaxes(0, 1)
    return _of_part(sums, confusions.sum(axis=1, keepdims=True), score).T


def _of_part(sums: Confusion, whole: Confusion, score: Scoring) -> Score:
    """Returns the score of some of the images, float64 [...], of their sums [..., C, C] and those of all images."""
    if score is not mean_iou:
        return score(sums)
    # else one pixel that is wrongly of a class without a true one takes a whole class from a mean; a class that no
    # image holds does so in the score itself, which lies within its interval
    scored = (truths(sums) > 0) | (truths(whole) == 0)
    return mean_over_classes(np.where(scored, iou(sums), np.nan))


def _counted(*arms: Confusion) -> list[Confusion]:
    """Returns arms' matrices [S, N, C, C] of the images that count in any: a resample of others alone has no score."""
    counts = np.any([arm.any(axis=(0, 2, 3)) for arm in arms], axis=0)
    return [arm[:, counts] if counts.any() else arm for arm in arms]


def _compared(pair: Pair, how: Resampling) -> tuple[Score, Score, float]:
    """Returns each seed's difference in points, float64 [S], its resamples [resamples, S] and the images' worth."""
    first, second = _counted(_by_seed(pair.first), _by_seed(pair.second))
    own = pair.score(first.sum(axis=1)) - pair.score(second.sum(axis=1))
    resampled = _resampled(first, pair.score, how) - _resampled(second, pair.score, how)
    worth = _worth(first, _left_out(first, pair.score) - _left_out(second, pair.score))
    return 100 * own, 100 * resampled, worth


def _left_out(confusions: Confusion, score: Scoring) -> Score:
    """Returns by how much each image raises the score, mean over seeds, float64 [N]: the jackknife."""
    whole = confusions.sum(axis=1, keepdims=True)
    raised: Score = _of_part(whole, whole, score) - _of_part(whole - confusions, whole, score)
    return np.asarray(np.nan_to_num(raised).mean(axis=0))


def _worth(confusions: Confusion, raised: Score) -> float:
    """Returns how many images an interval is worth: less than there are where few hold a class and make its variance.

    One more than the degrees of freedom of Welch, "The Generalization of Student's Problem when Several Different
    Population Variances are Involved", Biometrika 34, 1947, where the images are parted by the rarest class in each.
    """
    held = confusions[0].sum(axis=-1) > 0
    rarest = np.where(held, held.sum(axis=0), len(held) + 1).argmin(axis=1)
    images, variances = np.bincount(rarest), np.bincount(rarest, raised**2)
    if not variances.any():
        return len(held)
    degrees = variances.sum() ** 2 / (variances**2 / np.maximum(1, images - 1)).sum()
    return min(len(held), float(degrees) + 1)


def _of_many(how: Resampling, number: int) -> Resampling:
    """Returns how resamples are widened whose intervals are to hold all at once: by Bonferroni's level."""
    return replace(how, confidence=1 - (1 - how.confidence) / max(1, number))


def _widened(own: Score, resampled: Score, count: float, confidence: float) -> Score:
    """Returns resamples of few images further from the score: alone they are too near, and of one image all alike.

    By sqrt(N / (N - 1)) and by Student's t over the normal quantile: the narrowness bias of Hesterberg, "What Teachers
    Should Know About the Bootstrap", The American Statistician 69, 2015, section 3.2.
    """
    if count == 1:
        return np.linspace(own - 100, own + 100, len(resampled))
    tail = (1 + confidence) / 2
    widened: Score = own + (resampled - own) * np.sqrt(count / (count - 1)) * stdtrit(count - 1, tail) / ndtri(tail)
    return widened


def _drawn(own: Score, resampled: Score, worth: float, how: Resampling, place: int | None = None) -> Score:
    """Returns the resamples of the mean over seeds, float64 [resamples], from `own` [S] and `resampled` of images.

    `worth` is of how many images, `place` that of a difference among others, whose seeds are drawn apart.
    """
    if worth < FEW:
        resampled = _widened(own, resampled, worth, how.confidence)
    resamples, seeds = resampled.shape
    over_images = resampled.mean(axis=1)
    if seeds == 1:
        return np.asarray(over_images)
    covariance = np.cov(resampled, rowvar=False)
    shared = max(0.0, (covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1)))
    spread = over_images.var(ddof=1)
    shrink = np.sqrt(shared / spread) if spread else 0.0
    middle = own.mean()
    drawn = np.random.default_rng([how.seed, seeds, *([place] if place else [])])
    levels = drawn.permutation((np.arange(resamples) + 0.5) / resamples)
    deviations = stdtrit(seeds - 1, levels) * (-1 if middle < 0 else 1)
    return np.asarray(middle + shrink * (over_images - middle) + deviations * own.std(ddof=1) / np.sqrt(seeds))


def _difference(own: Score, drawn: Score, how: Resampling) -> PairedDifference:
    interval = _estimate(own, drawn.clip(-100, 100), how.confidence)
    return PairedDifference(**interval.model_dump(), share_left_better=float((drawn > 0).mean()))


def _estimate(own: Score, drawn: Score, confidence: float) -> Estimate:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(points=float(own.mean()), low=float(low), high=float(high))


def _by_seed(confusions: Confusion) -> Confusion:
    """Returns [S, N, C, C]; one training's matrices [N, C, C] are those of one seed."""
    return confusions.reshape(-1, *confusions.shape[-3:])
