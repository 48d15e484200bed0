"""What a study's folder holds, read back: every run's scores, history and per-picture counts.

A study that was published has its counts in a compact form, from which the same arrays are read:

    pictures.gz            a section for each split: name and true pixels by class of each picture
    runs/NAME/counts.gz    the same sections: of each picture the wrong pixels, by true and predicted class
    runs/NAME/edges.gz     the splits' sections: of each picture the boundary F-score of each class

All are gzipped text (`zcat`); the right pixels are the true ones less the wrong ones.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from petseg import storage
from petseg.errors import PetsegError
from petseg.evaluation.corruptions import corruptions
from petseg.experiments.study.recipe import Experiment, Study
from petseg.metrics import PARTS, Confusion, Score
from petseg.schema import EpochRow
from petseg.training import runs

MANIFEST = "study.json"
DIVERGED = "diverged.json"
"""In a run folder: training lost its numbers, which is a result too."""

TUNING = "tuning"
"""Name of the first experiment, which the recipe's [tuning] describes."""

ROBUSTNESS = "robustness"
"""Among a run's splits: the test pictures, changed in every way of `petseg.evaluation.corruptions`; a section each."""

PICTURES, COUNTS, EDGES = "pictures.gz", "counts.gz", "edges.gz"

Counts = tuple[tuple[str, ...], Confusion]
"""Names of pictures, and their confusion matrices int64 [N, C, C]."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns study.json of a study's folder.

    Raises:
        PetsegError: no such file, or another kind or version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise PetsegError(f"{folder}: no {MANIFEST} in it; name a study's folder, or start one with `petseg study`")
    manifest = storage.read_json(path)
    if (manifest.get("kind"), manifest.get("version")) != ("study", 1):
        raise PetsegError(
            f"{path}: kind {manifest.get('kind')!r}, version {manifest.get('version')!r}; this petseg reads studies of "
            "version 1"
        )
    return manifest


@dataclass(frozen=True)
class Result:
    """One run, as far as it is there."""

    name: str
    state: str
    cost: Mapping[str, Any]
    """As in the manifest; empty where it is not known yet."""
    splits: tuple[str, ...]
    """What it is scored on."""
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole config."""
        return storage.read_json(self.folder / "config.json")

    @cached_property
    def history(self) -> list[EpochRow]:
        """One entry an epoch."""
        return runs.read_metrics(self.folder)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The machine that trained it."""
        return storage.read_json(self.folder / "environment.json")

    def scores(self, split: str) -> dict[str, Any]:
        """Returns what `evaluations/SPLIT.json` holds."""
        return storage.read_json(self.folder / "evaluations" / f"{split}.json")

    @cached_property
    def diverged(self) -> dict[str, Any]:
        """Where and how it lost its numbers."""
        return storage.read_json(self.folder / DIVERGED)


@dataclass(frozen=True)
class Results:
    """A study's folder, in the form that `petseg study` makes or that was published."""

    folder: Path
    manifest: Mapping[str, Any]
    study: Study
    _known: dict[tuple[str, str], Counts] = field(default_factory=dict)
    _known_edges: dict[tuple[str, str], Score] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Returns the results in a folder.

        Raises:
            PetsegError: as `read_manifest`, or a recipe that this version does not understand.
        """
        manifest = read_manifest(folder)
        try:
            study = Study.model_validate_json(json.dumps(manifest["recipe"]))
        except (KeyError, ValueError) as error:
            told = str(error).partition("\n")[0]
            raise PetsegError(
                f"{folder / MANIFEST}: its recipe cannot be read ({told}); read it with the petseg that made it"
            ) from None
        return cls(folder, manifest, study)

    @cached_property
    def _rows(self) -> dict[tuple[str, str, int], Result]:
        found = {}
        for run in self.manifest["runs"]:
            cost = self.manifest["costs"].get(run["cost"], {})
            place = self.folder / "runs" / run["name"]
            result = Result(run["name"], run["state"], cost, tuple(run["splits"]), place)
            for row in run["rows"]:
                found[row["experiment"], row["arm"], row["seed"]] = result
        return found

    def all_runs(self) -> list[Result]:
        """Returns every run once."""
        return list({run.name: run for run in self._rows.values()}.values())

    def run(self, experiment: str, arm: str, seed: int) -> Result | None:
        """Returns the run of an arm, None where the manifest has none."""
        return self._rows.get((experiment, arm, seed))

    def arm(self, experiment: Experiment, arm: str, state: str = "finished") -> dict[int, Result]:
        """Returns seed -> run of those runs of an arm that are in this state."""
        found = {seed: self.run(experiment.name, arm, seed) for seed in experiment.seeds}
        return {seed: run for seed, run in found.items() if run is not None and run.state == state}

    def counts(self, run: Result, section: str) -> Counts:
        """Returns a run's per-picture confusion matrices.

        Args:
            run: a finished run.
            section: a split, or a change of `petseg.evaluation.corruptions`.

        Raises:
            PetsegError: they are missing or damaged.
        """
        key = (run.name, section)
        if key not in self._known:
            if (run.folder / COUNTS).is_file():
                found = read_counts(self._pictures, run.folder / COUNTS)
            else:
                found = _working_counts(run.folder, section)
            if section not in found:
                raise PetsegError(f"{run.folder / COUNTS}: no section {section}; restore the file")
            self._known.update({(run.name, name): counts for name, counts in found.items()})
        return self._known[key]

    def edges(self, run: Result, split: str) -> Score:
        """Returns the boundary F-score of each class in each picture, float64 [N, C], nan where it has no boundary.

        Raises:
            PetsegError: they are missing or damaged.
        """
        key = (run.name, split)
        if key not in self._known_edges:
            if (run.folder / EDGES).is_file():
                found = read_edges(run.folder / EDGES)
                if split not in found or found[split].shape != self.counts(run, split)[1].shape[:2]:
                    raise PetsegError(f"{run.folder / EDGES}: not the scores of the {split} pictures; restore the file")
            else:
                found = {split: _working_edges(run.folder, split)}
            self._known_edges.update({(run.name, name): scores for name, scores in found.items()})
        return self._known_edges[key]

    def splits(self, run: Result) -> list[str]:
        """Returns the splits that a run is scored on as they are."""
        return [split for split in run.splits if split != ROBUSTNESS]

    def sections(self, run: Result) -> dict[str, Counts]:
        """Returns all counts of a finished run, by section."""
        sections = self.splits(run)
        if ROBUSTNESS in run.splits:
            sections += [change.name for change in corruptions()]
        return {section: self.counts(run, section) for section in sections}

    @cached_property
    def _pictures(self) -> dict[str, tuple[tuple[str, ...], Confusion]]:
        return read_pictures(self.folder / PICTURES)


def _working_counts(folder: Path, section: str) -> dict[str, Counts]:
    worse = section in {change.name for change in corruptions()}
    path = folder / "evaluations" / f"{ROBUSTNESS if worse else section}.images.json"
    content = storage.read_json(path)
    try:
        rows = content["corruptions"] if worse else {section: content["images"]}
        return {name: _parsed(part, path) for name, part in rows.items()}
    except (AttributeError, KeyError) as error:
        raise PetsegError(f"{path}: not per-picture counts ({error}); score the run again") from None


def _working_edges(folder: Path, split: str) -> Score:
    path = folder / "evaluations" / f"{split}.images.json"
    try:
        return np.array([row[2] for row in storage.read_json(path)["images"]], np.float64)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise PetsegError(f"{path}: no boundary scores in it ({error}); score the run again") from None


def _parsed(rows: Sequence[Any], path: Path) -> Counts:
    try:
        counts = np.array([row[1] for row in rows], np.int64)
        classes = round(counts.shape[1] ** 0.5)
        return tuple(row[0] for row in rows), counts.reshape(len(rows), classes, classes)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise PetsegError(f"{path}: not per-picture counts ({error}); score the run again") from None


# --- the compact form ------------------------------------------------------------------------------------------------


def write_pictures(path: Path, sections: Mapping[str, Counts]) -> None:
    """Writes names and true pixels by class, for `read_counts`; every run of a study has the same."""
    _write_sections(
        path,
        {
            section: [
                " ".join([name, *map(str, true)]) for name, true in zip(names, counts.sum(axis=2).tolist(), strict=True)
            ]
            for section, (names, counts) in sections.items()
        },
    )


def add_pictures(path: Path, more: Path) -> None:
    """Adds to pictures.gz the sections that another study's has beyond it.

    Raises:
        PetsegError: a file is damaged, or a section that both have is of other pictures.
    """
    found = dict(_read_sections(path)) if path.is_file() else {}
    for section, rows in _read_sections(more):
        if found.setdefault(section, rows) != rows:
            raise PetsegError(f"{more}: its {section} pictures are not those of {path}; collect runs of one data set")
    _write_sections(path, found)


def write_counts(path: Path, sections: Mapping[str, Counts]) -> None:
    """Writes one run's wrong pixels: of each picture those of each true class, taken for each other class in turn."""
    _write_sections(
        path,
        {
            section: [" ".join(map(str, row)) for row in counts[:, ~np.eye(counts.shape[1], dtype=bool)].tolist()]
            for section, (_, counts) in sections.items()
        },
    )


def write_edges(path: Path, splits: Mapping[str, Score]) -> None:
    """Writes one run's boundary F-scores [N, C] in ten-thousandths, -1 where a class has no boundary."""
    _write_sections(
        path,
        {
            split: [
                " ".join(map(str, row)) for row in np.nan_to_num(np.round(scores * PARTS), nan=-1).astype(int).tolist()
            ]
            for split, scores in splits.items()
        },
    )


def read_edges(path: Path) -> dict[str, Score]:
    """Returns split -> boundary F-scores, float64 [N, C], nan where a class has no boundary.

    Raises:
        PetsegError: the file is damaged.
    """
    found = {split: _numbers(rows, path) for split, rows in _read_sections(path)}
    return {split: np.where(parts < 0, np.nan, parts / PARTS) for split, parts in found.items()}


def read_pictures(path: Path) -> dict[str, tuple[tuple[str, ...], Confusion]]:
    """Returns section -> names and true pixels by class, int64 [N, C].

    Raises:
        PetsegError: the file is missing or damaged.
    """
    found = {}
    for section, rows in _read_sections(path):
        names = tuple(row.partition(" ")[0] for row in rows)
        found[section] = names, _numbers([row.partition(" ")[2] for row in rows], path)
    return found


def read_counts(pictures: Mapping[str, tuple[tuple[str, ...], Confusion]], path: Path) -> dict[str, Counts]:
    """Returns section -> names and confusion matrices of one run.

    Args:
        pictures: of the whole study, as `read_pictures`.
        path: what `write_counts` wrote.

    Raises:
        PetsegError: the file is damaged, or belongs to other pictures.
    """
    found = {}
    for section, rows in _read_sections(path):
        names, true = pictures.get(section, ((), np.zeros((0, 1), np.int64)))
        classes = true.shape[1]
        wrong = _numbers(rows, path)
        if wrong.shape != (len(names), classes * (classes - 1)):
            raise PetsegError(
                f"{path}: section {section} holds {wrong.shape[0]} pictures of {wrong.shape[1]} counts, {PICTURES} "
                f"{len(names)} of {classes} classes; restore both files"
            )
        counts = np.zeros((len(names), classes, classes), np.int64)
        counts[:, ~np.eye(classes, dtype=bool)] = wrong
        counts[:, range(classes), range(classes)] = true - counts.sum(axis=2)
        found[section] = names, counts
    return found


def _write_sections(path: Path, sections: Mapping[str, Sequence[str]]) -> None:
    text = "".join("\n".join([f"# {section}", *rows, ""]) for section, rows in sections.items())
    content = gzip.compress(text.encode(), 9, mtime=0)  # no time in it: the same counts are the same bytes
    storage.write_atomically(path, lambda unfinished: unfinished.write_bytes(content))


def _read_sections(path: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, ValueError) as error:
        raise PetsegError(f"{path}: cannot be read ({error}); restore the file") from None
    for part in text.split("# ")[1:]:
        section, *rows = part.splitlines()
        yield section, rows


def _numbers(rows: Sequence[str], path: Path) -> Confusion:
    try:
        return np.array([row.split() for row in rows], np.int64)
    except ValueError as error:
        raise PetsegError(f"{path}: a row is not all numbers ({error}); restore the file") from None
