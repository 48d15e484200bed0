"""`python recompute.py [FOLDER]`: a study's main mIoU differences without petseg; exits 1 where findings differ."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
from scipy.special import ndtri, stdtrit


def lead(sums, whole):
    """Returns the first arm's lead in mIoU, in points, of [2, ..., 3 * C]: right pixels, true or predicted, true."""
    (right, either, true), absent = np.split(sums, 3, axis=-1), np.split(whole, 3, axis=-1)[2] == 0
    scores = np.where(((true > 0) | absent) & (either > 0), right / np.maximum(1, either), np.nan)
    return -100 * np.diff(np.nanmean(scores, axis=-1), axis=0)[0]


def drawn(arms, resamples, tail, *place):
    """Returns the difference of two arms [2, S, N, 3 * C] and its resamples."""
    seeds, count, whole = *arms.shape[1:3], arms.sum(axis=2, keepdims=True)
    own, held = lead(whole, whole), np.split(arms[0, 0], 3, axis=-1)[2] > 0
    rarest = np.where(held, held.sum(axis=0), count + 1).argmin(axis=1)  # class in each image
    parts = np.bincount(rarest, (lead(whole, whole) - lead(whole - arms, whole)).mean(axis=0) ** 2)
    worth = min(count, 1 + parts.sum() ** 2 / (parts**2 / np.maximum(1, np.bincount(rarest) - 1)).sum())  # Welch, 1947
    wide = (worth / (worth - 1)) ** 0.5 * stdtrit(worth - 1, tail) / ndtri(tail) if worth < 100 else 1
    off = wide * (lead(np.random.default_rng(0).multinomial(count, [1 / count] * count, resamples) @ arms, whole) - own)
    if seeds == 1:
        return own.mean(), own.mean() + off[0]
    shared = max(0, ((covariance := np.cov(off)).sum() - np.trace(covariance)) / (seeds * (seeds - 1)))
    levels = np.random.default_rng([0, seeds, *place]).permutation((np.arange(resamples) + 0.5) / resamples)
    over_seeds = stdtrit(seeds - 1, levels) * (-1 if own.mean() < 0 else 1) * own.std(ddof=1) / seeds**0.5
    return own.mean(), own.mean() + (shared / off.mean(axis=0).var(ddof=1)) ** 0.5 * off.mean(axis=0) + over_seeds


folder, counts, pairs, differ = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent, {}, [], 0
found = json.loads((folder / "findings.json").read_text())
assert not any(found["settings"].get("data.groups", [])), "intervals over data.groups; here they are over images"
lines = [json.loads(line) for line in gzip.decompress((folder / "images.jsonl.gz").read_bytes()).splitlines()]
true = {line["section"]: np.array(line["true"], float) for line in lines if "ids" in line}
for line, own in ((line, true[line["section"]]) for line in lines if "run" in line):
    wrong = np.insert(line["wrong"], range(0, len(own) ** 2, len(own)), 0, axis=0).reshape(len(own), *own.shape)
    counts[line["run"], line["section"].partition("/")[0]] = np.vstack([own - wrong.sum(1), own + wrong.sum(0), own]).T
parts = [(of, d) for of in found["experiments"] for d in of["differences"] if d["metric"] == "miou" and d["difference"]]
claims = [each for each in parts if each[1].get("primary")] or [each for each in parts if each[0] is parts[0][0]]
for part, one in claims:
    arms = [arm for side in ("left", "right") for arm in part["arms"] if arm["arm"] == one[side]]
    runs = [np.reshape(arm["runs"], (len(arm["seeds"]), -1))[np.isin(arm["seeds"], one["seeds"])] for arm in arms]
    pairs.append(np.stack([[np.vstack([counts[run, part["split"]] for run in each]) for each in arm] for arm in runs]))
    middle, values = drawn(pairs[-1], found["resamples"], 0.975)
    figures = np.array([[middle, *np.quantile(values, [0.025, 0.975])], [*one["difference"].values()][:3]])
    differ += not np.allclose(*figures, rtol=0, atol=1e-3)
    print(part["name"], one["left"], one["right"], "recomputed, published:", *figures.round(2))
if pairs and (family := found.get("family")):  # a level so high that 1 - error of the resamples lie within all
    how = family["resamples"], 1 - family["error"] / 2 / len(pairs)
    values = np.stack([drawn(pair, *how, *([place] if place else []))[1] for place, pair in enumerate(pairs)], axis=1)
    outward = np.abs(2 * (values.argsort(axis=0).argsort(axis=0) + 0.5) / len(values) - 1).max(axis=1)
    ends = np.quantile(values, 0.5 + np.array([-0.5, 0.5]) * np.quantile(outward, 1 - family["error"]), axis=0).T
    differ += not np.allclose(ends, [one["together"] for _, one in claims], rtol=0, atol=1e-3)
sys.exit(differ > 0)
