"""What a study's folder holds, read back: the manifest, and every run's scores, history and per-image counts.

A study that is being made holds its runs as plain run folders, `runs/NAME/`. One that was published holds the same in
three files, from which the same arrays are read:

    study.json         the manifest
    runs.jsonl.gz      a line a run: config, environment, history, scores
    images.jsonl.gz    first a line a section: the ids of its images, and their true pixels class by class; then a line
                       a run and section: wrong pixels, for each true class those taken for each other class, and
                       boundary F-scores class by class in ten-thousandths, -1 where an image has no boundary

A section is a split, or the test images under one corruption; of cross-validation one fold's (test, test/1, ...). The
right pixels are the true ones less the wrong ones.
"""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from petseg import schema, storage
from petseg.config import RunConfig
from petseg.errors import PetsegError, first_line
from petseg.evaluation.corruptions import corruptions
from petseg.evaluation.evaluate import Evaluation, ImageScores, read_images, write_evaluation
from petseg.evaluation.robustness import Robustness
from petseg.experiments.study.recipe import Experiment, Study
from petseg.metrics import PARTS, Confusion
from petseg.schema import Record, read_record, write_record
from petseg.training import runs

MANIFEST, RUNS, IMAGES = "study.json", "runs.jsonl.gz", "images.jsonl.gz"

DIVERGED = "diverged.json"  # in a run folder: why its training diverged, which is a result too
TUNING = "tuning"  # name of the first experiment, which the recipe's [tuning] describes
ROBUSTNESS = "robustness"  # among a run's splits: the test images under every corruption, a section each


class Row(Record):
    """What a run stands for: an experiment's arm in one seed."""

    experiment: str
    arm: str
    seed: int
    fold: int = 0


class RunEntry(Record):
    """A run in the manifest."""

    name: str
    state: schema.RunState
    cost: str  # its key among the manifest's costs
    splits: tuple[str, ...]  # what it is scored on; beside splits "robustness"
    rows: tuple[Row, ...]


class StudyManifest(Record):
    """study.json: the recipe, what was found on the way, and every run with what it is for."""

    kind: Literal["study"] = "study"
    version: Literal[4] = 4
    petseg: str
    recipe: Study
    data: schema.DataInfo | None = None
    matches: dict[str, schema.CostMatch] = Field(default_factory=dict)  # `plan.MatchQuestion.key` -> shape
    costs: dict[str, schema.CostInfo] = Field(default_factory=dict)  # `plan.cost_key` -> cost
    latency_environment: schema.LatencyEnvironment | None = None
    tuned: tuple[schema.TunedCell, ...] = ()  # the cells whose seeds have all ended
    runs: tuple[RunEntry, ...] = ()


Runs = tuple[RunEntry, ...]  # of one seed, a run each fold


class RunResult(Record):
    """All that a run left but weights and per-image counts; a line of runs.jsonl.gz."""

    name: str
    config: RunConfig
    environment: schema.EnvironmentInfo
    history: tuple[schema.EpochRow, ...]
    evaluations: dict[str, schema.Scores]
    diverged: str = ""  # why its training did; "": it did not


def read_manifest(folder: Path) -> StudyManifest:
    """Returns study.json of a study's folder."""
    if not (folder / MANIFEST).is_file():
        raise PetsegError(f"{folder}: no {MANIFEST} in it; name a study's folder, or start one with `petseg study`")
    return read_record(folder / MANIFEST, StudyManifest)


class Results:
    """A study's folder, as `petseg study` makes it or as it was published; it is read when something is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        self.study = self.manifest.recipe
        self._entries = {row: entry for entry in self.manifest.runs for row in entry.rows}
        self._results: dict[str, RunResult] = {}
        self._images: dict[tuple[str, str], ImageScores] = {}
        if (folder / IMAGES).is_file():
            self._results, self._images = _read_published(folder)

    def runs(self, experiment: str, arm: str, seed: int) -> Runs:
        """Returns the runs of an arm in one seed, a run each fold; none where the manifest has none."""
        folds = range(max(1, self.study.data.folds))
        rows = (Row(experiment=experiment, arm=arm, seed=seed, fold=fold) for fold in folds)
        return tuple(self._entries[row] for row in rows if row in self._entries)

    def arm(
        self, experiment: Experiment, arm: str, state: schema.RunState = "finished", split: str = ""
    ) -> dict[int, Runs]:
        """Returns seed -> an arm's runs where all of them are in this state and, if one is given, have a split.

        An arm diverged in a seed where one of its folds did.
        """
        found = {seed: self.runs(experiment.name, arm, seed) for seed in experiment.seeds}
        enough = any if state == "diverged" else all
        return {
            seed: runs
            for seed, runs in found.items()
            if runs and enough(run.state == state and (not split or split in run.splits) for run in runs)
        }

    def result(self, entry: RunEntry) -> RunResult:
        """Returns what a run left that finished or diverged."""
        if entry.name not in self._results:
            self._results[entry.name] = read_run(self.folder / "runs" / entry.name, entry)
        return self._results[entry.name]

    def images(self, runs: Runs, section: str) -> ImageScores:
        """Returns the per-image counts of finished runs, fold by fold; a corruption's boundary scores are [N, 0]."""
        parts = [self._of_run(entry, section) for entry in runs]
        return ImageScores(
            tuple(name for part in parts for name in part.ids),
            np.concatenate([part.confusions for part in parts]),
            np.concatenate([part.boundaries for part in parts]),
        )

    def _of_run(self, entry: RunEntry, section: str) -> ImageScores:
        key, place = (entry.name, section), self.folder / "runs" / entry.name / "evaluations"
        if key not in self._images and section in (scored := self.result(entry).evaluations):
            self._images[key] = read_images(place / f"{section}.json", len(scored[section].iou))
        elif key not in self._images and ROBUSTNESS in entry.splits:
            found = read_record(place / f"{ROBUSTNESS}.json", Robustness)
            for name in found.confusions:
                images = ImageScores(found.ids, found.counts(name), np.zeros((len(found.ids), 0)))
                self._images[entry.name, name] = images
        if key not in self._images:
            raise PetsegError(f"{self.folder}: run {entry.name} is not scored on {section}; score it again")
        return self._images[key]


def published_section(entry: RunEntry, section: str) -> str:
    """Names the images of a section: of cross-validation each fold has its own."""
    fold = entry.rows[0].fold
    return f"{section}/{fold}" if fold else section


def sections(entry: RunEntry) -> list[str]:
    """Returns the sections that a run has."""
    if entry.state != "finished":
        return []
    corrupted = [corruption.name for corruption in corruptions()] if ROBUSTNESS in entry.splits else []
    return [*(split for split in entry.splits if split != ROBUSTNESS), *corrupted]


def read_run(place: Path, entry: RunEntry) -> RunResult:
    """Returns what a run folder holds of a run that finished or diverged."""
    splits = [split for split in entry.splits if split != ROBUSTNESS] if entry.state == "finished" else []
    return RunResult(
        name=entry.name,
        config=runs.read_config(place),
        environment=read_record(place / "environment.json", schema.EnvironmentInfo),
        history=tuple(runs.read_metrics(place)),
        evaluations={split: read_record(place / "evaluations" / f"{split}.json", schema.Scores) for split in splits},
        diverged="" if splits else storage.read_json(place / DIVERGED)["reason"],
    )


def publish(source: Path, folder: Path) -> None:
    """Writes what has ended of the study in `source` in the published form, without findings.json."""
    results = Results(source)
    entries = [entry for entry in results.manifest.runs if entry.state in ("finished", "diverged")]
    shared: dict[str, dict[str, Any]] = {}
    lines = []
    for entry in entries:
        for section in sections(entry):
            images, key = results.images((entry,), section), published_section(entry, section)
            counts, boundary = images.confusions, np.nan_to_num(np.round(images.boundaries * PARTS), nan=-1)
            own = {"section": key, "ids": images.ids, "true": counts.sum(axis=2).T.tolist()}
            if shared.setdefault(key, own) != own:
                raise PetsegError(f"{source}: {entry.name} was scored on other {section} images; score it again")
            wrong = counts[:, ~np.eye(counts.shape[1], dtype=bool)]
            columns = {"wrong": wrong.T.tolist(), "boundary": boundary.astype(int).T.tolist()}
            lines.append({"section": key, "run": entry.name, **columns})
    write_record(folder / MANIFEST, results.manifest)
    _write_lines(folder / RUNS, (results.result(entry).model_dump(mode="json") for entry in entries))
    _write_lines(folder / IMAGES, [*shared.values(), *lines])


def take_over(published: Path, folder: Path) -> None:
    """Puts what has ended of a published study into the folder of a new one, as runs without weights.

    What that folder holds already is kept, so that a take-over that was killed goes on.
    """
    results = Results(published)
    if not (folder / MANIFEST).is_file():
        write_record(folder / MANIFEST, results.manifest)
    for entry in results.manifest.runs:
        place = folder / "runs" / entry.name
        if entry.state not in ("finished", "diverged") or (place / "config.json").is_file():
            continue
        left = results.result(entry)
        if left.diverged:
            storage.write_json(place / DIVERGED, {"reason": left.diverged})
        for split, scores in left.evaluations.items():
            stored = place / "evaluations" / f"{split}.json"
            write_evaluation(Evaluation(scores, results.images((entry,), split)), stored)
        if ROBUSTNESS in entry.splits and not left.diverged:
            scored = left.evaluations["test"]
            images = {name: results.images((entry,), name) for name in sections(entry) if name not in left.evaluations}
            counts = {name: one.confusions.reshape(len(one.ids), -1).tolist() for name, one in images.items()}
            robustness = Robustness(
                weights=scored.weights,
                epoch=scored.epoch,
                data=scored.data,
                ids=next(iter(images.values())).ids,
                confusions={name: tuple(map(tuple, rows)) for name, rows in counts.items()},
            )
            write_record(place / "evaluations" / f"{ROBUSTNESS}.json", robustness)
        write_record(place / "environment.json", left.environment)
        runs.write_metrics(place, left.history)
        storage.write_json(place / "config.json", left.config.model_dump(mode="json"))  # last: the run is whole


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    content = gzip.compress(text.encode(), 9, mtime=0)  # no time in it: the same results are the same bytes
    storage.write_bytes(path, content)


def _read_published(folder: Path) -> tuple[dict[str, RunResult], dict[tuple[str, str], ImageScores]]:
    """Returns name -> run, and (name, section) -> per-image counts."""
    path = folder / RUNS
    try:
        results = {line["name"]: RunResult.model_validate(line, strict=False) for line in _read_lines(path)}
        path = folder / IMAGES
        shared: dict[str, tuple[tuple[str, ...], Confusion]] = {}
        images = {}
        for line in _read_lines(path):
            if "ids" in line:
                shared[line["section"]] = tuple(line["ids"]), np.array(line["true"], np.int64).T
            else:
                ids, true = shared[line["section"]]
                wrong, edges = (
                    np.array(line[name], np.int64).reshape(-1, len(ids)).T for name in ("wrong", "boundary")
                )
                counts, off = np.zeros((*true.shape, true.shape[1]), np.int64), ~np.eye(true.shape[1], dtype=bool)
                counts[:, off] = wrong
                counts[:, ~off] = true - counts.sum(axis=2)
                scored = ImageScores(ids, counts, np.where(edges < 0, np.nan, edges / PARTS))
                images[line["run"], line["section"].partition("/")[0]] = scored
    except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
        raise PetsegError(f"{path}: cannot be read ({first_line(error)}); restore the file") from None
    return results, images


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
