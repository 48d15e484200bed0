"""The runs that follow from a study: each once, however many experiments share it."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from petseg.config import DataConfig, ModelConfig, RunConfig, flat_fields
from petseg.data.geometry import Geometry
from petseg.data.oxford_pets import OFFICIAL_IMAGES
from petseg.evaluation.corruptions import corruptions
from petseg.evaluation.cost import count_macs
from petseg.experiments.study.recipe import WIDENED, Experiment, Quantity, Study, Tuning, own_fields
from petseg.experiments.study.results import DIVERGED, ROBUSTNESS, TUNING, Row, RunEntry, StudyManifest
from petseg.models import folder_name, model_options
from petseg.models.segnet import vgg16_convs
from petseg.schema import RunState, Scores, TunedCell, read_record
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


def plan(manifest: StudyManifest, only: Collection[str] = ()) -> list[Run]:
    """Returns every run of a study, in the order in which they are made: tuning, then each seed of all experiments.

    What is not in the manifest yet, a shape of equal cost or a tuned setting, is what runs wait for. `only` names
    experiments: their runs, and the tuning where they need it.
    """
    found: dict[tuple[str, str], Run] = {}
    later = sorted(_experiment_runs(manifest), key=lambda numbered: numbered[0])
    for run in (*(run for *_, run in _tuning_runs(manifest)), *(run for _, run in later)):
        key = (run.name, run.waits)  # what waits for the same thing is the same run
        if key in found:
            rows, splits = (*found[key].rows, *run.rows), max(found[key].splits, run.splits, key=len)
            run = replace(run, rows=rows, splits=splits)
        found[key] = run
    if not only:
        return list(found.values())
    chosen = [one for one in manifest.recipe.experiments if one.name in only]
    needed = {*only, *([TUNING] if any(one.tuned for one in chosen) else [])}
    return [run for run in found.values() if any(row.experiment in needed for row in run.rows)]


def _tuning_runs(manifest: StudyManifest) -> Iterator[tuple[str, dict[str, Any], Run]]:
    """Yields model and fields of each cell with its run in each seed."""
    study, tuning = manifest.recipe, manifest.recipe.tuning
    if tuning is None:
        return
    for seed in tuning.seeds:
        for model, cell in tuning_cells(tuning, manifest.tuned):
            config = study.config(model, seed, [tuning.fields, cell], source="study: tuning")
            row = Row(experiment=TUNING, arm=tuning_arm(model, cell), seed=seed)
            yield model, cell, Run(plain(config), ("val",), (row,))


def tuning_arm(model: str, cell: Mapping[str, Any]) -> str:
    """Names a cell of the tuning as an arm."""
    return f"{model}/{'-'.join(f'{value:g}' if isinstance(value, float) else str(value) for value in cell.values())}"


def tuning_cells(tuning: Tuning, ended: Sequence[TunedCell]) -> list[tuple[str, dict[str, Any]]]:
    """Returns model and fields of every cell: the grid, then what is beyond it while the best lies at an edge."""
    scores = {_cell_key(cell.model, cell.fields): cell.miou for cell in ended}
    found = []
    for model in tuning.models:
        alike: dict[str, list[dict[str, Any]]] = {}  # cells that differ in fields of `WIDENED` alone compete
        for cell in tuning.cells(model):
            alike.setdefault(str([value for name, value in cell.items() if name not in WIDENED]), []).append(cell)
        for cells in alike.values():
            while all(_cell_key(model, cell) in scores for cell in cells):
                scored = [(scores[_cell_key(model, cell)], cell) for cell in cells]
                reached = [(miou, cell) for miou, cell in scored if miou is not None]
                more = list(_around(max(reached, key=lambda one: one[0])[1], cells, tuning)) if reached else []
                if not more:
                    break
                cells += more
            found += [(model, cell) for cell in cells]
    return found


def _around(best: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], tuning: Tuning) -> Iterator[dict[str, Any]]:
    """Yields the cells that bound the best in each field of `WIDENED` and are not there; one that diverged bounds too.

    A step beyond the grid is as large as the grid's last; `tuning.widen` of them are made at most.
    """
    grid = dict(flat_fields(tuning.grid))
    for name in WIDENED:
        values = sorted(grid.get(name, ()))
        line = [cell[name] for cell in cells if name in cell and {**cell, name: 0} == {**best, name: 0}]
        for near, last, end in ((1, 0, min), (-2, -1, max)) if len(values) > 1 else ():
            step = values[last] / values[near]
            new = float(f"{best[name] * step:.3g}")
            steps = round(np.log(new / values[last]) / np.log(step))
            if steps <= tuning.widen and new < 1 and end(line) == best[name]:
                yield {**best, name: new}


def _cell_key(model: str, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    return (model, *sorted(fields.items()))


def tuned_cell(manifest: StudyManifest, experiment: Experiment, arm: str) -> TunedCell | None:
    """Returns the best cell of an arm's model among those that agree with what the recipe says of it; None: not known.

    A value of the arm that no cell has is the arm's own business.
    """
    tuning, model = manifest.recipe.tuning, arm.rpartition("/")[0]
    cells = [cell for cell in manifest.tuned if cell.model == model]
    ended = {_cell_key(model, cell.fields) for cell in cells}
    wanted = tuning_cells(tuning, manifest.tuned) if tuning else []
    if not experiment.tuned or any(one == model and _cell_key(one, cell) not in ended for one, cell in wanted):
        return None
    for name, value in own_fields(experiment, arm).items():
        cells = [cell for cell in cells if cell.fields.get(name, value) == value] or cells
    return best_cell(cells)


def best_cell(cells: Sequence[TunedCell]) -> TunedCell | None:
    """Returns the first cell of the highest score; one that diverged has none."""
    return max((cell for cell in cells if cell.miou is not None), key=lambda cell: cell.miou or 0.0, default=None)


def tuning_outcome(manifest: StudyManifest, folder: Path) -> tuple[TunedCell, ...]:
    """Returns the cells all of whose seeds have ended, with their mean mIoU on validation."""
    while True:
        cells: dict[str, list[tuple[str, dict[str, Any], Run]]] = {}
        for model, cell, run in _tuning_runs(manifest):
            cells.setdefault(run.rows[0].arm, []).append((model, cell, run))
        ended = []
        for seeds in cells.values():
            (model, cell, _), states = seeds[0], {run.state(folder) for *_, run in seeds}
            if "missing" not in states:
                places = [run.place(folder) / "evaluations" / "val.json" for *_, run in seeds]
                mious = [read_record(path, Scores).miou for path in places] if states == {"finished"} else []
                ended.append(TunedCell(model=model, fields=cell, miou=float(np.mean(mious)) if mious else None))
        if tuple(ended) == manifest.tuned:  # else cells beyond the grid may have become known
            return manifest.tuned
        manifest = manifest.model_copy(update={"tuned": tuple(ended)})


def _experiment_runs(manifest: StudyManifest) -> Iterator[tuple[int, Run]]:
    """Yields each run of the experiments, and the place of its seed among its experiment's."""
    study = manifest.recipe
    for experiment in study.experiments:
        splits: tuple[str, ...] = ("val", "test") if experiment.test else ("val",)
        if study.robustness is not None and study.robustness.experiment == experiment.name:
            splits += (ROBUSTNESS,)
        for arm in experiment.arms():
            tuned, question = tuned_cell(manifest, experiment, arm), MatchQuestion.of(manifest, experiment, arm)
            match = manifest.matches.get(question.key) if question else None
            waits = [f"the shape of {arm}, {question.key}"] if question and not match else []
            for one in filter(None, (arm, experiment.matched_to(arm))):
                if experiment.tuned and tuned_cell(manifest, experiment, one) is None:
                    waits.append(f"the tuning of {one.rpartition('/')[0]}")
            for place, seed in enumerate(experiment.seeds):
                fields, shape = tuned.fields if tuned else {}, match.options if match else {}
                config = study.arm_config(experiment, arm, seed, fields, shape)
                for fold in range(max(1, study.data.folds)):
                    one_fold = config.data.model_copy(update={"fold": fold})
                    row = Row(experiment=experiment.name, arm=arm, seed=seed, fold=fold)
                    run = Run(plain(config.model_copy(update={"data": one_fold})), splits, (row,), " and ".join(waits))
                    yield place, run


@dataclass(frozen=True)
class MatchQuestion:
    """Which shape of one model costs as much as another."""

    model: ModelConfig
    reference: ModelConfig
    size: int
    quantity: Quantity

    @classmethod
    def of(cls, manifest: StudyManifest, experiment: Experiment, arm: str) -> "MatchQuestion | None":
        """Returns what is searched for an arm; None: its shape is given, or not known before the tuning."""
        target, quantity = experiment.matched_to(arm), experiment.variants[arm.rpartition("/")[2]].match
        if target is None or quantity is None:
            return None
        cells = [tuned_cell(manifest, experiment, one) if experiment.tuned else None for one in (arm, target)]
        if experiment.tuned and None in cells:
            return None
        config, reference = (
            manifest.recipe.arm_config(experiment, one, tuned=cell.fields if cell else {})
            for one, cell in zip((arm, target), cells, strict=True)
        )
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


def sizes(study: Study, only: Collection[str] = ()) -> list[int]:
    """Returns every side in pixels at which a study needs its images."""
    return sorted({run.config.data.size for run in plan(StudyManifest(petseg="", recipe=study), only)})


SECONDS_PER_MAC = 14e-12
"""Of training, where nothing was measured: a 16-channel U-Net on 2 cores of an Intel Xeon with AMX in bf16 takes
10.5 ms an image at 128 px (759 million multiply-accumulates forward)."""


def durations(
    manifest: StudyManifest, folder: Path, planned: Sequence[Run], measured: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Returns run -> estimated seconds of its epochs, and of scoring it.

    By the epochs in `folder` of runs of its shape, else by `measured` (cost -> seconds of a training image), else by
    arithmetic at the median speed of all epochs in `folder`.
    """
    images: Mapping[str, int] = manifest.data.splits if manifest.data else OFFICIAL_IMAGES
    num_classes = len(manifest.data.classes) if manifest.data else 3
    macs: dict[str, int] = {}  # shape -> of an image
    known: dict[str, list[float]] = defaultdict(list)  # shape -> seconds of an image in each epoch
    work: dict[str, float] = {}  # run -> images of an epoch; one that is scored costs a third of one that is learnt
    for run in planned:
        if run.cost not in macs:
            cost, config = manifest.costs.get(run.cost), run.config
            macs[run.cost] = cost.macs if cost else count_macs(config.model, num_classes, config.data.size)
        side_by_side = _windows(run.config.data, manifest, overlapping=False)
        work[run.name] = (images["train"] * run.config.data.fraction + images["val"] / 3) * side_by_side
        known[run.cost] += [row.seconds / work[run.name] for row in runs.read_metrics(run.place(folder))]
    by_macs = [second / macs[cost] for cost, seconds in known.items() for second in seconds]
    speed = float(np.median(by_macs)) if by_macs else SECONDS_PER_MAC
    of_image = {cost: speed * count for cost, count in macs.items()} | dict(measured or {})
    of_image |= {cost: float(np.median(seconds)) for cost, seconds in known.items() if seconds}
    scored = {**images, ROBUSTNESS: images.get("test", 0) * len(corruptions())}
    return {
        run.name: of_image[run.cost]
        * (
            run.config.train.epochs * work[run.name]
            + sum(scored[split] for split in run.splits) / 3 * _windows(run.config.data, manifest, overlapping=True)
        )
        for run in planned
    }


def _windows(config: DataConfig, manifest: StudyManifest, *, overlapping: bool) -> int:
    """Returns how many windows of fit crop an image has, as if all were squares of the largest side; else 1."""
    if config.fit != "crop" or manifest.data is None:
        return 1
    geometry, side = Geometry.of(config), manifest.data.largest_side
    return geometry.count(geometry.content((side, side)), step=0 if overlapping else geometry.size)
