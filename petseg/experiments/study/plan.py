"""The runs that follow from a study: each once, however many experiments share it."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from petseg.config import ModelConfig, RunConfig
from petseg.data.oxford_pets import OFFICIAL_IMAGES
from petseg.evaluation.cost import count_macs
from petseg.experiments.study.recipe import Experiment, Quantity, Study
from petseg.experiments.study.results import DIVERGED, ROBUSTNESS, TUNING, Row, RunEntry, StudyManifest
from petseg.models import folder_name, model_options
from petseg.models.segnet import vgg16_convs
from petseg.schema import RunState, Scores, TunedSetting, read_record
from petseg.training import runs


@dataclass(frozen=True)
class Run:
    """One training and its evaluations."""

    config: RunConfig
    splits: tuple[str, ...]  # what it is scored on; beside splits "robustness", corrupted test images
    rows: tuple[Row, ...]
    waits: str = ""  # what must be known before its config is: the shape of a matched arm, or the outcome of the tuning

    @property
    def name(self) -> str:
        """Its folder's name, by its config: the same run in another study or order has the same."""
        fields = json.dumps(self.config.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        digest = hashlib.sha256(fields.encode()).hexdigest()[:8]
        return f"{folder_name(self.config.model.name)}-{self.config.data.size}px-s{self.config.train.seed}-{digest}"

    @property
    def cost(self) -> str:
        """Names its model and size among a study's costs."""
        return cost_key(self.config.model, self.config.data.size)

    def place(self, folder: Path) -> Path:
        """Returns its folder in that of the study."""
        return folder / "runs" / self.name

    def state(self, folder: Path) -> RunState:
        """Returns how far it is; one that was interrupted is missing still."""
        if self.waits:
            return "waiting"
        if (self.place(folder) / DIVERGED).is_file():
            return "diverged"
        scored = (self.place(folder) / "evaluations" / f"{split}.json" for split in self.splits)
        return "finished" if all(path.is_file() for path in scored) else "missing"

    def entry(self, folder: Path) -> RunEntry:
        """Returns the run as the manifest has it."""
        state = self.state(folder)
        return RunEntry(name=self.name, state=state, cost=self.cost, splits=self.splits, rows=self.rows)


def plan(manifest: StudyManifest) -> list[Run]:
    """Returns every run of a study, in the order in which they are made: tuning, then each experiment seed by seed.

    What is not in the manifest yet, a shape of equal cost or a tuned setting, is what runs wait for.
    """
    found: dict[tuple[str, str], Run] = {}
    for run in (*_tuning_runs(manifest.recipe), *_experiment_runs(manifest)):
        key = (run.name, run.waits)  # what waits for the same thing is the same run
        if key in found:
            rows, splits = (*found[key].rows, *run.rows), max(found[key].splits, run.splits, key=len)
            run = replace(run, rows=rows, splits=splits)
        found[key] = run
    return list(found.values())


def _tuning_runs(study: Study) -> Iterator[Run]:
    tuning = study.tuning
    if tuning is None:
        return
    for cell in tuning.cells():
        for model in tuning.models:
            config = study.config(model, tuning.seed, [tuning.fields, {"train": cell}], source="study: tuning")
            row = Row(experiment=TUNING, arm=tuning_arm(model, cell), seed=tuning.seed)
            yield Run(plain(config), ("val",), (row,))


def tuning_arm(model: str, cell: Mapping[str, float]) -> str:
    """Names a cell of the tuning as an arm."""
    return f"{model}/{cell['learning_rate']:g}-{cell['warmup']:g}"


def _experiment_runs(manifest: StudyManifest) -> Iterator[Run]:
    study, matches = manifest.recipe, manifest.matches
    for experiment in study.experiments:
        splits: tuple[str, ...] = ("val", "test") if experiment.test else ("val",)
        if study.robustness is not None and study.robustness.experiment == experiment.name:
            splits += (ROBUSTNESS,)
        for seed, arm in product(experiment.seeds, experiment.arms()):
            model, question = arm.rpartition("/")[0], MatchQuestion.of(study, experiment, arm)
            best = manifest.tuned.get(model) if experiment.tuned else None
            tuned = best.model_dump(include={"learning_rate", "warmup"}) if best else {}
            match = matches.get(question.key) if question else None
            waits = [f"the shape of {arm}, {question.key}"] if question and not match else []
            waits += [f"the tuning of {model}"] if experiment.tuned and not best else []
            config = plain(study.arm_config(experiment, arm, seed, tuned, match.options if match else {}))
            row = Row(experiment=experiment.name, arm=arm, seed=seed)
            yield Run(config, splits, (row,), " and ".join(waits))


@dataclass(frozen=True)
class MatchQuestion:
    """Which shape of one model costs as much as another."""

    model: ModelConfig
    reference: ModelConfig
    size: int
    quantity: Quantity

    @classmethod
    def of(cls, study: Study, experiment: Experiment, arm: str) -> "MatchQuestion | None":
        """Returns what is searched for an arm; None: its shape is given."""
        target, quantity = experiment.matched_to(arm), experiment.variants[arm.rpartition("/")[2]].match
        if target is None or quantity is None:
            return None
        config, reference = study.arm_config(experiment, arm), study.arm_config(experiment, target)
        return cls(config.model, reference.model, config.data.size, quantity)

    @property
    def key(self) -> str:
        """Names it in the manifest: another question is searched anew."""
        reference = cost_key(self.reference, self.size)
        return f"{cost_key(self.model, self.size)} of the {self.quantity} of {reference}"


def cost_key(model: ModelConfig, size: int) -> str:
    """Names a model's shape and size, for people: `segnet base_channels=12 96px`."""
    given = (f"{name}={json.dumps(value)}".replace(" ", "") for name, value in sorted(model.options.items()))
    return " ".join([model.name, *given, f"{size}px"])


def plain(config: RunConfig) -> RunConfig:
    """Returns the config without options of the model that its preset has anyway, so that one run has one name."""
    usual, given = model_options(ModelConfig(name=config.model.name)), config.model.options
    if "convs" in usual:
        depth = given.get("depth", usual["depth"])
        usual["convs"] = usual["convs"] or vgg16_convs(depth)
    kept = {
        name: value
        for name, value in given.items()
        if value is not None and usual.get(name) != (tuple(value) if isinstance(value, list) else value)
    }
    return config.model_copy(update={"model": ModelConfig(name=config.model.name, **kept)})


def sizes(study: Study) -> list[int]:
    """Returns every side in pixels at which a study needs its images."""
    return sorted({run.config.data.size for run in plan(StudyManifest(petseg="", recipe=study))})


def tuning_outcome(study: Study, folder: Path) -> dict[str, TunedSetting]:
    """Returns each model's best cell by mIoU on validation, for the models whose cells are all there.

    The first of equals; a cell that diverged has no score.
    """
    best: dict[str, TunedSetting] = {}
    cells = [(run, run.config.model.name, run.state(folder)) for run in _tuning_runs(study)]
    incomplete = {model for _, model, state in cells if state == "missing"}
    for run, model, state in cells:
        if state == "finished" and model not in incomplete:
            miou = read_record(run.place(folder) / "evaluations" / "val.json", Scores).miou
            if model not in best or miou > best[model].miou:
                rates = run.config.train.model_dump(include={"learning_rate", "warmup"})
                best[model] = TunedSetting(**rates, miou=miou, run=run.name)
    return best


SECONDS_PER_MAC = 14e-12
"""Of training, before an epoch was measured: a 16-channel U-Net on 2 cores of an Intel Xeon with AMX in bf16 takes
10.5 ms an image at 128 px (759 million multiply-accumulates forward)."""


def durations(manifest: StudyManifest, folder: Path, planned: Sequence[Run]) -> dict[str, float]:
    """Returns run -> estimated seconds of its epochs: by arithmetic, at the median speed of those in `folder`."""
    images, num_classes = OFFICIAL_IMAGES["train"], 3
    if manifest.data:
        images, num_classes = manifest.data.splits["train"], len(manifest.data.classes)
    macs: dict[str, int] = {}  # shape -> of an image
    work: dict[str, float] = {}  # run -> of an epoch
    speeds = []
    for run in planned:
        if run.cost not in macs:
            known, config = manifest.costs.get(run.cost), run.config
            macs[run.cost] = known.macs if known else count_macs(config.model, num_classes, config.data.size)
        work[run.name] = images * run.config.data.fraction * macs[run.cost]
        speeds += [row.seconds / work[run.name] for row in runs.read_metrics(run.place(folder))]
    speed = float(np.median(speeds)) if speeds else SECONDS_PER_MAC
    return {run.name: run.config.train.epochs * work[run.name] * speed for run in planned}
