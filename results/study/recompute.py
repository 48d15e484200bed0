"""`python recompute.py [FOLDER]`: a study's main mIoU differences without petseg; exits 1 where findings differ."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
from scipy.special import ndtri, stdtrit


def mean_iou(sums):
    """Returns mIoU in points of [..., 2 * C]: the right pixels of each class, then those in truth or prediction."""
    right, either = np.split(sums, 2, axis=-1)
    return 100 * np.nanmean(np.where(either > 0, right / np.maximum(1, either), np.nan), axis=-1)


def drawn(first, second, resamples, tail, *place):
    """Returns the difference of two arms [S, N, 2 * C] and its resamples."""
    seeds, count, _ = first.shape
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
    own = mean_iou(first.sum(axis=1)) - mean_iou(second.sum(axis=1))
    resampled = np.stack([mean_iou(weights @ a) - mean_iou(weights @ b) for a, b in zip(first, second, strict=True)])
    images, middle = resampled.mean(axis=0), own.mean()
    wide = (count / (count - 1)) ** 0.5 * stdtrit(count - 1, tail) / ndtri(tail) if count < 100 else 1
    if seeds == 1:
        return middle, middle + wide * (images - middle)
    shared = max(0, ((covariance := np.cov(resampled)).sum() - np.trace(covariance)) / (seeds * (seeds - 1)))
    levels = np.random.default_rng([0, seeds, *place]).permutation((np.arange(resamples) + 0.5) / resamples)
    over_seeds = stdtrit(seeds - 1, levels) * (-1 if middle < 0 else 1) * own.std(ddof=1) / seeds**0.5
    return middle, middle + wide * (shared / images.var(ddof=1)) ** 0.5 * (images - middle) + over_seeds


folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent
found, counts, pairs, differ = json.loads((folder / "findings.json").read_text()), {}, [], 0
lines = [json.loads(line) for line in gzip.decompress((folder / "images.jsonl.gz").read_bytes()).splitlines()]
true = {line["section"]: np.array(line["true"]).T for line in lines if "ids" in line}
for line, own in ((line, true[line["section"]]) for line in lines if "run" in line):
    wrong = np.zeros((*own.shape, own.shape[1]), int)
    wrong[:, ~np.eye(own.shape[1], dtype=bool)] = np.array(line["wrong"]).T
    of_run = counts.setdefault(line["run"], {})  # of cross-validation a run has one fold's section, such as test/1
    of_run[line["section"].partition("/")[0]] = np.hstack([own - wrong.sum(axis=2), own + wrong.sum(axis=1)])
parts = [(part, one) for part in found["experiments"] for one in part["differences"] if one["metric"] == "miou"]
claims = [each for each in parts if each[1].get("primary")] or [each for each in parts if each[0] is parts[0][0]]
for part, one in claims:
    pairs.append([])
    for arm in (arm for side in ("left", "right") for arm in part["arms"] if arm["arm"] == one[side]):
        runs = np.reshape(arm["runs"], (len(arm["seeds"]), -1))[[arm["seeds"].index(seed) for seed in one["seeds"]]]
        pairs[-1].append(np.stack([np.vstack([counts[run][part["split"]] for run in folds]) for folds in runs]))
    middle, values = drawn(*pairs[-1], found["resamples"], 0.975)
    figures = np.array([[middle, *np.quantile(values, [0.025, 0.975])], [*one["difference"].values()][:3]])
    differ += not np.allclose(*figures, rtol=0, atol=1e-3)
    print(part["name"], one["left"], one["right"], "recomputed, published:", *figures.round(2))
if family := found.get("family"):  # one level for all, so high that 1 - error of the resamples lie within all of them
    how = family["resamples"], 1 - family["error"] / 2 / len(pairs)
    values = np.stack([drawn(*pair, *how, *([place] if place else []))[1] for place, pair in enumerate(pairs)], axis=1)
    outward = np.abs(2 * (values.argsort(axis=0).argsort(axis=0) + 0.5) / len(values) - 1).max(axis=1)
    ends = np.quantile(values, 0.5 + np.array([-0.5, 0.5]) * np.quantile(outward, 1 - family["error"]), axis=0).T
    differ += not np.allclose(ends, [one["together"] for _, one in claims], rtol=0, atol=1e-3)
sys.exit(differ > 0)
