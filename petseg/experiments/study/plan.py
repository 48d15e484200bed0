"""The runs that follow from a study: each once, however many experiments share it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from petseg import storage
from petseg.config import ModelConfig, RunConfig
from petseg.evaluation.corruptions import corruptions
from petseg.experiments.study.recipe import Experiment, Study, matched_to, tuning_cells
from petseg.experiments.study.results import DIVERGED, ROBUSTNESS, TUNING
from petseg.models import model_options
from petseg.models.segnet import VGG16_CONVS
from petseg.training import runs

State = Literal["finished", "diverged", "missing", "waiting"]


@dataclass(frozen=True)
class Row:
    """What a run stands for: an experiment's arm in one seed."""

    experiment: str
    arm: str
    seed: int


@dataclass(frozen=True)
class Run:
    """One training and its evaluations."""

    number: int
    """Its place in the study, from 1; shards go by it."""
    config: RunConfig
    splits: tuple[str, ...]
    """What it is scored on; beside splits "robustness", worse test pictures."""
    rows: tuple[Row, ...]
    waits: str = ""
    """What must be known before its config is: the shape of a matched arm, or the outcome of the tuning."""

    @property
    def name(self) -> str:
        """Its folder's name."""
        return run_name(self.config)

    @property
    def key(self) -> str:
        """Names its model and size among a study's costs."""
        return cost_key(self.config.model, self.config.data.size)


def run_name(config: RunConfig) -> str:
    """Returns a run's name, by its config: the same run in another study, order or shard has the same."""
    fields = json.dumps(config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    digest = hashlib.sha256(fields.encode()).hexdigest()[:8]
    return f"{config.model.name}-{config.data.size}px-s{config.train.seed}-{digest}"


def plan(study: Study, matches: Mapping[str, Mapping[str, Any]], tuned: Mapping[str, Mapping[str, Any]]) -> list[Run]:
    """Returns every run of a study, in the order in which they are made: tuning, then each experiment seed by seed.

    Args:
        study: the recipe.
        matches: `EXPERIMENT:ARM` -> what was found for it, its `model` the fields of the shape.
        tuned: model -> its best `learning_rate` and `warmup`.
    """
    found: dict[tuple[str, str], Run] = {}
    numbers: dict[tuple[str, str], int] = {}
    # a number must not depend on what is known yet: shards go by it, and may know different things
    for unknown, (row, config, splits, waits) in zip(_rows(study, {}, {}), _rows(study, matches, tuned), strict=True):
        number = numbers.setdefault((run_name(unknown[1]), unknown[3]), len(numbers) + 1)
        # what waits for the same thing is the same run
        key = (run_name(config), waits)
        if key in found:
            known = found[key]
            found[key] = replace(known, rows=(*known.rows, row), splits=max(known.splits, splits, key=len))
        else:
            found[key] = Run(number, config, splits, (row,), waits)
    return list(found.values())


def _rows(
    study: Study, matches: Mapping[str, Mapping[str, Any]], tuned: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[Row, RunConfig, tuple[str, ...], str]]:
    if study.tuning is not None:
        for cell in tuning_cells(study.tuning):
            for model in study.tuning.models:
                arm = f"{model}/{cell['learning_rate']:g}-{cell['warmup']:g}"
                changes = [study.tuning.fields, {"train": cell}]
                config = study.config(model, study.tuning.seed, changes, source="study: tuning")
                yield Row(TUNING, arm, study.tuning.seed), plain(config), ("val",), ""
    for experiment in study.experiments:
        splits: tuple[str, ...] = ("val", "test") if experiment.test else ("val",)
        if study.robustness is not None and study.robustness.experiment == experiment.name:
            splits += (ROBUSTNESS,)
        for seed in experiment.seeds:
            for arm in experiment.arms():
                config, waits = _arm_config(study, experiment, arm, seed, matches, tuned)
                yield Row(experiment.name, arm, seed), config, splits, waits


def _arm_config(
    study: Study,
    experiment: Experiment,
    arm: str,
    seed: int,
    matches: Mapping[str, Mapping[str, Any]],
    tuned: Mapping[str, Mapping[str, Any]],
) -> tuple[RunConfig, str]:
    """Returns an arm's config, and what it still waits for ("" for nothing)."""
    model = arm.partition("/")[0]
    known: dict[str, Mapping[str, Any]] = {}
    waits = []
    if matched_to(experiment, arm) is not None:
        key = match_key(experiment, arm)
        if key in matches:
            known["matched"] = matches[key]["model"]
        else:
            waits.append(f"the shape of {key}")
    if experiment.tuned:
        if model in tuned:
            known["tuned"] = {name: tuned[model][name] for name in ("learning_rate", "warmup")}
        else:
            waits.append(f"the tuning of {model}")
    return plain(study.arm_config(experiment, arm, seed, **known)), " and ".join(waits)


def match_key(experiment: Experiment, arm: str) -> str:
    """Names a matched arm in the manifest."""
    return f"{experiment.name}:{arm}"


def cost_key(model: ModelConfig, size: int) -> str:
    """Names a model's shape and size, for people.

    >>> cost_key(ModelConfig(name="segnet", base_channels=12), 96)
    'segnet base_channels=12 96px'
    """
    given = model.model_dump(mode="json", exclude_none=True)
    name = given.pop("name")
    return " ".join([name, *(f"{field}={json.dumps(value)}".replace(" ", "") for field, value in given.items())]) + (
        f" {size}px"
    )


def plain(config: RunConfig) -> RunConfig:
    """Returns the config without fields of the model that say what its preset says, so that one run has one name."""
    usual = model_options(ModelConfig(name=config.model.name))
    given = config.model.options
    if "convs" in usual:
        depth = given.get("depth", usual["depth"])
        usual["convs"] = usual["convs"] or (VGG16_CONVS + VGG16_CONVS[-1:] * depth)[:depth]
    kept = {name: value for name, value in given.items() if value is not None and usual.get(name) != value}
    return config.model_copy(update={"model": ModelConfig(name=config.model.name, **kept)})


# --- what is there ---------------------------------------------------------------------------------------------------


def run_folder(folder: Path, run: Run) -> Path:
    """Returns where a run of the study in `folder` lies."""
    return folder / "runs" / run.name


def state(folder: Path, run: Run) -> State:
    """Returns how far a run is; one that was interrupted is missing still."""
    if run.waits:
        return "waiting"
    place = run_folder(folder, run)
    if (place / DIVERGED).is_file():
        return "diverged"
    done = all((place / "evaluations" / f"{split}.json").is_file() for split in run.splits)
    return "finished" if done else "missing"


def tuning_outcome(study: Study, folder: Path) -> dict[str, dict[str, Any]]:
    """Returns each model's best cell by mIoU on validation, for the models whose cells are all there.

    The first of equals; a cell that diverged has no score.
    """
    if study.tuning is None:
        return {}
    cells: dict[str, list[dict[str, Any]]] = {model: [] for model in study.tuning.models}
    incomplete: set[str] = set()
    for run in plan(study, {}, {}):
        if run.rows[0].experiment != TUNING:
            continue
        model, found = run.config.model.name, state(folder, run)
        if found == "missing":
            incomplete.add(model)
        if found == "finished":
            scores = storage.read_json(run_folder(folder, run) / "evaluations" / "val.json")
            train = run.config.train
            cells[model].append(
                {
                    "learning_rate": train.learning_rate,
                    "warmup": train.warmup,
                    "miou": scores["miou"],
                    "run": run.name,
                }
            )
    return {
        model: max(found, key=lambda cell: float(cell["miou"]))
        for model, found in cells.items()
        if found and model not in incomplete
    }


# --- how long --------------------------------------------------------------------------------------------------------

SECONDS_PER_MAC = 14e-12
"""Of training, before an epoch was measured: a 16-channel U-Net on 2 cores of an Intel Xeon with AMX in bf16 takes 10.5
ms an image at 128 px (759 million multiply-accumulates forward), 6 at 96 px (427 million)."""

START_SECONDS = 6.0
"""Of a run's process, until it trains."""

SCORING_SECONDS = 0.008
"""A picture, at its own size with boundaries."""

ROBUSTNESS_SHARE = 0.2
"""A third of the pictures, and no boundaries."""

OFFICIAL_PICTURES = {"train": 3312, "val": 368, "test": 3669}
"""Assumed before the data set was looked at."""


@dataclass
class Pace:
    """Seconds that runs take, from the epochs that were measured."""

    macs: Mapping[str, int]
    """`Run.key` -> multiply-accumulates of one image."""
    pictures: Mapping[str, int]
    per_picture: dict[str, float] = field(default_factory=dict)
    """`Run.key` -> measured seconds of training a picture."""
    per_epoch: dict[str, float] = field(default_factory=dict)
    """The same of what an epoch takes beside training."""

    def measure(self, folder: Path, planned: Sequence[Run]) -> None:
        """Reads the epochs of every run that has some; the median, so that a pause does not count."""
        train: dict[str, list[float]] = {}
        beside: dict[str, list[float]] = {}
        for run in planned:
            for row in runs.read_metrics(run_folder(folder, run)):
                train.setdefault(run.key, []).append(row.train_seconds / self._trained(run))
                beside.setdefault(run.key, []).append(row.seconds - row.train_seconds)
        self.per_picture = {key: float(np.median(values)) for key, values in train.items()}
        self.per_epoch = {key: float(np.median(values)) for key, values in beside.items()}

    def seconds(self, run: Run) -> float:
        """Returns how long a run takes from start to end."""
        known = [self.per_picture[key] / self.macs[key] for key in self.per_picture if key in self.macs]
        rate = float(np.median(known)) if known else SECONDS_PER_MAC
        per_picture = self.per_picture.get(run.key, rate * self.macs[run.key])
        beside = self.per_epoch.get(run.key, 0.4 * per_picture * self.pictures["val"])
        epoch = self._trained(run) * per_picture + beside
        scored = float(sum(self.pictures[split] for split in run.splits if split != ROBUSTNESS))
        if ROBUSTNESS in run.splits:
            scored += len(corruptions()) * self.pictures["test"] * ROBUSTNESS_SHARE
        return START_SECONDS + run.config.train.epochs * epoch + SCORING_SECONDS * scored

    def _trained(self, run: Run) -> float:
        return self.pictures["train"] * run.config.data.fraction
