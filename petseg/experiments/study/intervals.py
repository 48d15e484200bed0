"""Arms' scores and differences with their intervals, from per-image counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from petseg.evaluation.statistics import Resampling, Scoring, bootstrap, paired_bootstrap
from petseg.experiments.study.recipe import Experiment
from petseg.experiments.study.results import Results, RunEntry
from petseg.metrics import Confusion, Score, boundary_sums, iou, mean_boundary_f, mean_iou
from petseg.schema import Estimate, PairedDifference

HOW = Resampling()  # every interval is made so
BOUNDARY = "boundary_f"  # the metric that is no score of confusion matrices

EstimateT = TypeVar("EstimateT", bound=Estimate)
Arm = Mapping[int, RunEntry]  # seed -> run
Stacked = tuple[tuple[int, ...], list[Confusion]]
"""Seeds, and for each arm its counts of these, int64 [S, N, C, C]; no arrays without a seed."""


def rounded(value: float) -> float:
    """Returns what stands in JSON: what is beyond a ten-thousandth differs between machines."""
    return round(float(value), 4) + 0.0  # no -0.0


def estimate(counts: Confusion, score: Scoring = mean_iou) -> Estimate:
    """Returns an arm's score with its interval; counts are int64 [S, N, C, C]."""
    return _rounded(bootstrap(counts, score=score, how=HOW))


def difference(first: Confusion, second: Confusion, score: Scoring = mean_iou) -> PairedDifference:
    """Returns the difference of two arms' scores on the same images and seeds, with its interval."""
    return _rounded(paired_bootstrap(first, second, score=score, how=HOW))


def _rounded(found: EstimateT) -> EstimateT:
    return type(found)(**{name: rounded(value) for name, value in found})


def scoring(metric: str, classes: Sequence[str]) -> Scoring:
    """Returns the score that a metric names: "miou", "boundary_f", or a class's IoU."""
    if metric == BOUNDARY:
        return mean_boundary_f
    return mean_iou if metric == "miou" else lambda confusion: iou(confusion)[..., classes.index(metric)]


def stacked(results: Results, arms: Sequence[Arm], section: str, metric: str = "miou") -> Stacked:
    """Returns the counts of the seeds that all arms have; for the boundary F-score its sums, int64 [S, N, 2, C]."""
    seeds = tuple(sorted(set.intersection(*(set(arm) for arm in arms))))

    def counts(entry: RunEntry) -> Confusion:
        images = results.images(entry, section)
        return boundary_sums(images.boundaries) if metric == BOUNDARY else images.confusions

    return seeds, [np.stack([counts(arm[seed]) for seed in seeds]) for arm in arms] if seeds else []


def model_pairs(experiment: Experiment) -> list[tuple[str, str]]:
    """Returns the arms of one variant, model against model."""
    models = list(zip(experiment.models, experiment.models[1:], strict=False))
    return [(f"{one}/{variant}", f"{other}/{variant}") for variant in experiment.variants for one, other in models]


def distinct_pairs(results: Results, experiment: Experiment) -> list[tuple[str, str]]:
    """Returns `model_pairs` without those of the same runs as an earlier one: a shape that was equal all along."""
    kept: dict[tuple[RunEntry | None, ...], tuple[str, str]] = {}
    for pair in model_pairs(experiment):
        kept.setdefault(tuple(results.entry(experiment.name, arm, s) for arm in pair for s in experiment.seeds), pair)
    return list(kept.values())


def distinct(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """Returns the arms that have runs, without those whose runs another arm has already."""
    kept: dict[tuple[str, ...], str] = {}
    for name, arm in arms.items():
        if arm:
            kept.setdefault(tuple(entry.name for entry in arm.values()), name)
    return {name: arms[name] for name in kept.values()}


def side_by_side(counts: Sequence[Confusion]) -> Confusion:
    """Returns P matrices [..., C, C] of each image as one, int64 [..., P * C, C], for a score of all P."""
    return np.concatenate(counts, axis=-2)


def scores_of(parts: Confusion) -> Score:
    """Returns the mIoU of each of P matrices side by side, float64 [P, ...]."""
    *_, rows, classes = parts.shape
    return np.stack([mean_iou(part) for part in np.split(parts, rows // classes, axis=-2)])
