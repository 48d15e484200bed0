"""Recomputes a study's primary differences of mIoU from the counts of each image, without petseg; exits 1 where one
differs from findings.json. `python recompute.py [FOLDER]`; docs/statistics.md derives both intervals. Where a study
names nothing primary, its first experiment's differences."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
from scipy.special import stdtrit


def mean_iou(sums):
    """Returns mIoU in points of [..., 2 * C]: the right pixels of each class, then those in truth or prediction."""
    right, either = np.split(sums, 2, axis=-1)
    return 100 * np.nanmean(np.where(either > 0, right / np.maximum(1, either), np.nan), axis=-1)


def drawn(first, second, resamples, *place):
    """Returns the difference of two arms [S, N, 2 * C] and its resamples."""
    seeds, count, _ = first.shape
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
    own = mean_iou(first.sum(axis=1)) - mean_iou(second.sum(axis=1))
    resampled = np.stack([mean_iou(weights @ a) - mean_iou(weights @ b) for a, b in zip(first, second, strict=True)])
    images, middle = resampled.mean(axis=0), own.mean()
    if seeds == 1:
        return middle, images
    covariance = np.cov(resampled)
    shared = max(0, (covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1)))
    levels = np.random.default_rng([0, seeds, *place]).permutation((np.arange(resamples) + 0.5) / resamples)
    over_seeds = stdtrit(seeds - 1, levels) * (-1 if middle < 0 else 1) * own.std(ddof=1) / seeds**0.5
    return middle, middle + (shared / images.var(ddof=1)) ** 0.5 * (images - middle) + over_seeds


folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent
found, true, counts = json.loads((folder / "findings.json").read_text()), {}, {}
with gzip.open(folder / "images.jsonl.gz", "rt") as lines:
    for line in map(json.loads, lines):
        if "ids" in line:
            true[line["section"]] = np.array(line["true"]).T
        else:
            own = true[line["section"]]
            wrong = np.zeros((*own.shape, own.shape[1]), int)
            wrong[:, ~np.eye(own.shape[1], dtype=bool)] = np.array(line["wrong"]).T
            counts[line["run"], line["section"]] = np.hstack([own - wrong.sum(axis=2), own + wrong.sum(axis=1)])
parts = [(part, one) for part in found["experiments"] for one in part["differences"] if one["metric"] == "miou"]
primary, differ = [each for each in parts if each[1].get("primary")] or [p for p in parts if p[0] is parts[0][0]], 0
for part, one in primary:
    runs = {arm["arm"]: dict(zip(arm["seeds"], arm["runs"], strict=True)) for arm in part["arms"]}
    sides = (np.stack([counts[runs[one[s]][n], part["split"]] for n in one["seeds"]]) for s in ("left", "right"))
    middle, values = drawn(*sides, found["resamples"])
    figures, published = [middle, *np.quantile(values, [0.025, 0.975])], list(one["difference"].values())[:3]
    differ += not np.allclose(figures, published, rtol=0, atol=1e-3)
    print(part["name"], one["left"], one["right"], np.round(figures, 2), "published", np.round(published, 2))
sys.exit(differ > 0)
