"""What the benchmarks share: contenders take turns, ratios carry an interval, results are JSON."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from petseg import storage
from petseg.config import RunConfig
from petseg.data.cache import Prepared, prepare
from petseg.data.geometry import Geometry
from petseg.data.sources import find_data, open_dataset
from petseg.errors import PetsegError
from petseg.evaluation.evaluate import evaluate_run
from petseg.evaluation.statistics import paired_bootstrap
from petseg.export import bench
from petseg.training import runs
from petseg.training.batches import load_splits
from petseg.training.device import choose_hardware
from petseg.training.loop import Execution, train


def take_turns(contenders: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Returns each contender's figures, one a turn, printed as they come."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for name, figure in bench.take_turns(contenders, turns):
        figures[name].append(figure)
        print(f"turn {len(figures[name])} of {turns}: {name} {figure:.4g}", file=sys.stderr, flush=True)
    return figures


def ratio(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Returns the median over turns of first / second, and the lowest and highest turn.

    >>> ratio([4.0, 6.0, 5.0], [1.0, 1.0, 1.0])
    {'median': 5.0, 'low': 4.0, 'high': 6.0}
    """
    found = np.divide(first, second)
    return {"median": float(np.median(found)), "low": float(found.min()), "high": float(found.max())}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="the dataset; default: PETSEG_DATA, then what was downloaded")
    parser.add_argument("--turns", type=int, default=5, help="how often each contender is measured")
    parser.add_argument("--out", type=Path, help="JSON to write")
    return parser


def prepared(folder: Path, config: RunConfig) -> Prepared:
    """Returns the dataset of a folder as a run wants it."""
    return prepare(open_dataset(folder, config.data), Geometry.of(config.data))


def data_folder(given: Path | None) -> Path:
    """Returns the dataset's folder.

    Raises:
        PetsegError: there is none.
    """
    if (folder := find_data(given)) is None:
        raise PetsegError("no dataset: give --data or PETSEG_DATA, or run `petseg data get`")
    return folder


def trained_arms(
    options: argparse.Namespace, arms: Mapping[str, Callable[[int], RunConfig]], seeds: Sequence[int]
) -> dict[str, Any]:
    """Returns test scores of each arm's runs and how much more the last arm has than each other one, with intervals.

    An arm makes the config of a seed. Runs lie in `options.folder`; finished ones are kept, others are resumed.
    """
    if options.out is None:
        raise PetsegError("--out is missing; name the JSON to write")
    hardware, confusions, scores = choose_hardware(), defaultdict(list), defaultdict(list)
    for seed in seeds:
        for arm, config_of in arms.items():
            config, place = config_of(seed), options.folder / f"{arm}-{seed}"
            images = prepared(data_folder(options.data), config)
            splits = load_splits(images, config, hardware.device)
            how = Execution(hardware, resume=place.exists(), splits=splits, on_epoch=lambda row: print(row, flush=True))
            train(config, images, place, how)
            found = evaluate_run(place, hardware, splits, "test")
            confusions[arm].append(found.images.confusions)
            scores[arm].append({"seed": seed, "miou": found.scores.miou})
            print(arm, scores[arm][-1], flush=True)
    stacked = {arm: np.stack(some) for arm, some in confusions.items()}
    *others, last = arms
    return {
        "environment": hardware.environment().model_dump(),
        "data": runs.describe(images).model_dump(exclude={"left_out"}),
        "images": runs.describe(images).images,
        "labelled_images": len(splits["train"].rows),
        "scores": scores,
        "more_than": {arm: paired_bootstrap(stacked[last], stacked[arm]).model_dump() for arm in others},
    }


def train_speed(run: Path) -> float:
    """Returns the training images a second of a run's last epoch, without validation."""
    images = runs.read_data(run).splits["train"] * runs.read_config(run).data.fraction
    return images / runs.read_metrics(run)[-1].train_seconds


def finish(out: Path | None, result: Mapping[str, Any], words: str = "ratio {ratio:.1f} x") -> None:
    """Writes the result, if asked to, and prints its ratio in words as the last line."""
    if out is not None:
        storage.write_json(out, result)
    print(words.format(ratio=result["ratio"]["median"]))


def main(run: Callable[[], None]) -> None:
    """Runs a benchmark; a caller's mistake is one line and exit code 2."""
    try:
        run()
    except PetsegError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
