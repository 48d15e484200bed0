"""Scores what crosses from encoder to decoder on JPEG pictures: is it the skips that lose to SegNet there?

python scripts/jpeg_mechanism.py runs/study --runs runs/jpeg --out results/log/2026-11-24-jpeg.json

The study's runs of one U-Net with skips, indices or neither, not trained again, on every third test picture, as the
study does with its main runs. Expected, written before the first run of this script: over the three qualities the
network with skips loses more of its mIoU than each of those without, and indices lead skips.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from petseg import storage
from petseg.config import RunConfig
from petseg.data.cache import find_data, prepare
from petseg.errors import PetsegError
from petseg.evaluation.corruptions import STRENGTHS, Change
from petseg.evaluation.robustness import evaluate_robustness
from petseg.evaluation.statistics import paired_bootstrap
from petseg.experiments.study.results import Result, Results
from petseg.metrics import Confusion, Score, mean_iou
from petseg.training.loop import choose_hardware, environment, load_splits

KIND = "jpeg"

SECTIONS = tuple(Change(KIND, strength).name for strength in (1, 2, 3))


def fall(confusions: Confusion) -> Score:
    """Returns what of the mIoU is lost, the mean of three strengths below the unchanged pictures.

    Args:
        confusions: int64 [..., 4 * C, C], unchanged and in each strength, side by side.

    Returns:
        float64 [...].
    """
    scores = by_strength(confusions)
    return np.asarray(scores[..., 0] - scores[..., 1:].mean(axis=-1))


def worse(confusions: Confusion) -> Score:
    """Returns the mean mIoU over three strengths; arguments as `fall`."""
    return np.asarray(by_strength(confusions)[..., 1:].mean(axis=-1))


def by_strength(confusions: Confusion) -> Score:
    """Returns the mIoU unchanged and in each strength, float64 [..., 4]; arguments as `fall`."""
    *others, _, classes = confusions.shape
    return np.asarray(mean_iou(confusions.reshape(*others, -1, classes, classes)))


def score(study: Path, places: Path, data: Path, experiment: str) -> dict[str, Any]:
    """Returns each arm's mIoU by quality, and the first arm's difference from each other; copies each run to `places`.

    Raises:
        PetsegError: no study, or one without the runs' weights.
    """
    results = Results.read(study)
    mechanism = next(e for e in results.study.experiments if e.name == experiment)
    arms = {arm: results.arm(mechanism, arm) for arm in mechanism.arms()}
    seeds = sorted(set.intersection(*(set(arm) for arm in arms.values())))
    sample = next(iter(arms.values()))[seeds[0]]
    config = RunConfig.model_validate(sample.config)
    hardware = choose_hardware(config.train.precision)
    prepared = prepare(data, config.data.size)
    pictures = load_splits(prepared, config, hardware.device)["test"]
    counts = {}
    for arm, made in arms.items():
        for seed in seeds:
            place = places / "runs" / made[seed].name
            if not place.is_dir():
                shutil.copytree(made[seed].folder, place)
            evaluate_robustness(place, prepared, hardware, pictures=pictures, kinds=[KIND])
            print(f"{arm}, seed {seed}: scored", flush=True)
        counts[arm] = np.stack([_by_strength(results, made[seed], places) for seed in seeds])
    first, *others = counts
    return {
        "kind": "measurements",
        "environment": environment(hardware),
        "split": "test, every third picture",
        "pictures": int(next(iter(counts.values())).shape[1]),
        "size": config.data.size,
        "seeds": seeds,
        "qualities": list(STRENGTHS[KIND]),
        "miou": {
            arm: [round(100 * float(value), 2) for value in by_strength(found.sum(axis=1)).mean(axis=0)]
            for arm, found in counts.items()
        },
        "over_qualities": {f"{first} minus {arm}": _told(counts[first], counts[arm], worse) for arm in others},
        "lost_more": {f"{first} minus {arm}": _told(counts[first], counts[arm], fall) for arm in others},
    }


def _by_strength(results: Results, run: Result, places: Path) -> Confusion:
    """Returns matrices [N, 4 * C, C] of the same pictures unchanged and in each strength, side by side."""
    table = storage.read_json(places / "runs" / run.name / "evaluations" / "robustness.images.json")["changes"]
    names = [name for name, _ in table[SECTIONS[0]]]
    known, unchanged = results.counts(run, "test")
    own = unchanged[[known.index(name) for name in names]]
    changed = [np.array([matrix for _, matrix in table[section]]).reshape(own.shape) for section in SECTIONS]
    return np.concatenate([own, *changed], axis=1)


def _told(first: Confusion, second: Confusion, scoring: Any) -> dict[str, float]:
    found = paired_bootstrap(first, second, score=scoring)
    return {"points": round(found.points, 2), "low": round(found.low, 2), "high": round(found.high, 2)}


def main(argv: list[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the study's folder, with weights")
    parser.add_argument("--runs", type=Path, required=True, help="where copies of the runs keep their scores")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--data", type=Path, help="of the pictures; PETSEG_DATA otherwise")
    parser.add_argument("--experiment", default="mechanism", help="of the study")
    args = parser.parse_args(argv)
    data = find_data(args.data)
    if data is None:
        print("no data set; wanted --data or PETSEG_DATA; name its folder", file=sys.stderr)
        return 2
    try:
        storage.write_json(args.out, score(args.study, args.runs, data, args.experiment))
    except PetsegError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
