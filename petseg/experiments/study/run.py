"""Making a study: `run_study` makes every run that is missing, each in a process of its own.

A study is a folder:

    study.json    the recipe, what was found on the way (shapes, settings, costs), and every run with its rows
    runs/NAME/    the run folders, as `petseg train` and `petseg evaluate` make them

All that a run depends on stands in the recipe, in study.json or in other runs, so a study that was killed goes on to
the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from petseg import __version__, storage
from petseg.data.cache import Prepared, prepare
from petseg.data.sources import open_dataset
from petseg.errors import DivergedError, PetsegError
from petseg.evaluation.cost import count_cost
from petseg.evaluation.evaluate import evaluate_run
from petseg.evaluation.robustness import evaluate_robustness
from petseg.experiments.executor import LocalProcesses
from petseg.experiments.study.plan import Run, durations, plan, questions, tuning_outcome
from petseg.experiments.study.recipe import Study, check_against_data
from petseg.experiments.study.results import DIVERGED, MANIFEST, ROBUSTNESS, TUNING, StudyManifest, read_manifest
from petseg.schema import LatencyEnvironment, Scores, read_record, write_record
from petseg.training import runs
from petseg.training.batches import load_splits
from petseg.training.checkpoint import PREVIOUS_RESUME, RESUME
from petseg.training.device import choose_hardware
from petseg.training.loop import Execution, train

MOST_FAILURES = 3  # after which a study stops: what failed so often is not the run
POLL_SECONDS = 0.3  # between looks at how the runs get on


OnStatus = Callable[[str, float, float, bool], None]
"""Takes what is being done, estimated seconds done and in all, and whether it is a run's outcome, worth a line."""


@dataclass(frozen=True)
class Making:
    """How a study is carried out; nothing of it is part of what the study is."""

    data: Path  # the data folder, for the runs' processes
    device: str | None = None  # as `choose_hardware`
    at_once: int = 1
    """Runs made at a time, which share torch's threads. Small networks gain by it: of 16 channels two runs with a
    thread each were 1.21 times as fast at 64 px as one after the other with two threads, 1.14 times at 96 px (2 cores
    of an Intel Xeon with AMX, torch 2.13, 2026-11-22)."""
    on_status: OnStatus = lambda detail, done, total, run_ended: None


def open_study(study: Study, folder: Path) -> StudyManifest:
    """Returns the manifest of a study that goes on in `folder`, or a new one, not yet written."""
    if not (folder / MANIFEST).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise PetsegError(f"study folder {folder}: holds no {MANIFEST}, but other files; choose another with --out")
        return StudyManifest(petseg=__version__, recipe=study)
    known = read_manifest(folder)
    made = {row.experiment for run in known.runs if run.state == "finished" for row in run.rows}
    before = _expected(known.recipe)
    for (part, experiment), expected in _expected(study).items():
        if experiment in made and before.get((part, experiment), expected) != expected:
            raise PetsegError(
                f"study: {part}: what was expected changed after runs were made; an expectation stands before its "
                "result: restore it, or choose another folder with --out"
            )
    return known.model_copy(update={"petseg": __version__, "recipe": study})


def _expected(study: Study) -> dict[tuple[str, str], object]:
    """Returns (part of the recipe, experiment whose runs it is about) -> what is expected."""
    found: dict[tuple[str, str], object] = {(f"experiment {e.name!r}", e.name): e.expected for e in study.experiments}
    if study.tuning is not None:
        found["tuning", TUNING] = study.tuning.expected, study.tuning.loses_more
    for part, recheck in study.rechecks().items():
        found[part, recheck.experiment] = recheck.expected
    return found


def run_study(study: Study, folder: Path, prepared: Mapping[int, Prepared], making: Making) -> StudyManifest:
    """Returns the manifest after every run that can be made is made.

    Shapes are searched and costs measured first, then runs are made in the plan's order. What the folder holds is kept,
    and an interrupted run goes on. Where runs failed, the others are made before the error, unless `MOST_FAILURES` did.

    `prepared` holds the dataset by side in pixels, for every size of the study.
    """
    manifest = _claim_data(open_study(study, folder), next(iter(prepared.values())), folder)
    manifest = _find_shapes(_save(manifest, folder), folder, making)
    manifest = _count_costs(manifest, folder, making)
    at_once = tuple(sorted({*manifest.at_once, making.at_once}))
    with LocalProcesses(making.at_once) as executor:
        work = _Work(manifest.model_copy(update={"at_once": at_once}), folder, making, executor)
        while work.start():
            work.follow()
    if work.failed:
        reasons = "; ".join(f"run {name}: {error}" for name, error in work.failed.items())
        raise PetsegError(f"{reasons} (the same command tries again, from the last whole epoch)")
    if waits := [run.waits for run in plan(work.manifest) if run.waits]:
        raise PetsegError(f"study: runs wait for {waits[0]}: every cell diverged; add lower rates to [tuning]")
    return work.manifest


class _Work:
    """The runs that are being made, and what became of the others."""

    def __init__(self, manifest: StudyManifest, folder: Path, making: Making, executor: Executor) -> None:
        self.manifest, self.folder, self.making, self.executor = manifest, folder, making, executor
        self.jobs: dict[Future[None], Run] = {}
        self.failed: dict[str, PetsegError] = {}
        self.threads = max(1, torch.get_num_threads() // making.at_once)

    def start(self) -> bool:
        """Starts runs as long as there is room; returns whether any is being made."""
        tuned = tuning_outcome(self.manifest.recipe, self.folder)
        self.manifest = _save(self.manifest.model_copy(update={"tuned": tuned}), self.folder)
        planned = plan(self.manifest)
        self.seconds = durations(self.manifest, self.folder, planned)
        states = {entry.name: entry.state for entry in self.manifest.runs}
        running = {run.name for run in self.jobs.values()}  # one may have ended since it was looked at
        self.ended = [name for name in states if states[name] in ("finished", "diverged") and name not in running]
        todo = [run for run in planned if states[run.name] == "missing" and run.name not in {*running, *self.failed}]
        room = self.making.at_once - len(self.jobs) if len(self.failed) < MOST_FAILURES else 0
        for run in todo[: max(0, room)]:
            making = self.making
            future = self.executor.submit(make_run, run, self.folder, making.data, making.device, self.threads)
            self.jobs[future] = run
        return bool(self.jobs)

    def follow(self) -> None:
        """Returns when a run has ended; reports until then how the work goes on."""
        while not (done := wait(self.jobs, POLL_SECONDS, FIRST_COMPLETED).done):
            for run in self.jobs.values():
                self._report(run, _progress(run, self.folder)[1])
        for future in done:
            run = self.jobs.pop(future)
            try:
                future.result()
                self._report(run, _outcome(run.place(self.folder)), run_ended=True)
            except PetsegError as error:
                self.failed[run.name] = error
                self._report(run, str(error), run_ended=True)

    def _report(self, run: Run, detail: str, *, run_ended: bool = False) -> None:
        words = f"{len(self.ended) + 1} of {len(self.seconds)}, {run.name}: {detail}"
        if run_ended:
            self.ended.append(run.name)
        shares = {other.name: _progress(other, self.folder)[0] for other in self.jobs.values()}
        shares |= dict.fromkeys(self.ended, 1.0)
        done = sum(share * self.seconds[name] for name, share in shares.items())
        at_once = self.making.at_once
        self.making.on_status(words, done / at_once, sum(self.seconds.values()) / at_once, run_ended)


def _progress(run: Run, folder: Path) -> tuple[float, str]:
    """Returns the share of a run that is done, and what it is at, by the files in its folder."""
    if run.state(folder) in ("finished", "diverged"):
        return 1.0, "done"
    epochs = len(runs.read_metrics(run.place(folder)))
    if epochs < run.config.train.epochs:
        return 0.9 * epochs / run.config.train.epochs, f"epoch {epochs + 1} of {run.config.train.epochs}"
    return 0.9, "score"


def _outcome(place: Path) -> str:
    if (place / DIVERGED).is_file():
        return str(storage.read_json(place / DIVERGED)["reason"])
    return f"validation mIoU {100 * read_record(place / 'evaluations' / 'val.json', Scores).miou:.1f}"


def make_run(run: Run, folder: Path, data: Path, device: str | None, threads: int) -> None:
    """Trains a run, from its last whole epoch, and scores it; that it diverged is written down as its result."""
    torch.set_num_threads(threads)
    config, place = run.config, run.place(folder)
    hardware = choose_hardware(config.train.precision, device)
    prepared = prepare(open_dataset(data, config.data), config.data.size)
    splits = load_splits(prepared, config, hardware.device)
    try:
        if (place / RESUME).is_file() or len(runs.read_metrics(place)) < config.train.epochs:
            train(config, prepared, place, Execution(hardware, resume=True, splits=splits))
    except DivergedError as error:
        storage.write_json(place / DIVERGED, {"reason": str(error)})
        return
    for split in run.splits:
        if split == ROBUSTNESS:
            evaluate_robustness(place, hardware, splits["test"])
        else:
            evaluate_run(place, hardware, splits, split)
    for name in (RESUME, PREVIOUS_RESUME):
        (place / name).unlink(missing_ok=True)  # of no use any more, and three times the weights


# --- what is found on the way ----------------------------------------------------------------------------------------


def _save(manifest: StudyManifest, folder: Path) -> StudyManifest:
    """Returns the manifest with the present state of its runs, now written."""
    manifest = manifest.model_copy(update={"runs": tuple(run.entry(folder) for run in plan(manifest))})
    write_record(folder / MANIFEST, manifest)
    return manifest


def _claim_data(manifest: StudyManifest, prepared: Prepared, folder: Path) -> StudyManifest:
    """Returns the manifest with its dataset, which is checked against the recipe and what the folder holds."""
    data = runs.describe(prepared)
    data = data.model_copy(update={"key": data.key.partition("-")[0]})  # without the size: the study has several
    if manifest.data is not None and manifest.data.key != data.key:
        raise PetsegError(
            f"study folder {folder}: holds work on other images ({manifest.data.provenance}); choose another with --out"
        )
    check_against_data(manifest.recipe, data)
    return manifest.model_copy(update={"data": data})


def _num_classes(manifest: StudyManifest) -> int:
    assert manifest.data is not None, "claimed before anything is searched"
    return len(manifest.data.classes)


def _find_shapes(manifest: StudyManifest, folder: Path, making: Making) -> StudyManifest:
    from petseg.experiments.study.match import find_shape  # needs the extra `export`

    for question in questions(manifest.recipe):
        if question.key not in manifest.matches:
            making.on_status(f"search {question.key}", 0, 1, False)
            found = find_shape(question, _num_classes(manifest))
            manifest = manifest.model_copy(update={"matches": {**manifest.matches, question.key: found}})
            manifest = _save(manifest, folder)
    return manifest


def _count_costs(manifest: StudyManifest, folder: Path, making: Making) -> StudyManifest:
    """Counts every shape's cost, and measures all latencies in turn where one is missing."""
    from petseg.experiments.study.match import measure_onnx_latencies

    classes = _num_classes(manifest)
    shapes = {run.cost: (run.config.model, run.config.data.size) for run in plan(manifest)}
    costs = dict(manifest.costs)
    for key, (model, size) in shapes.items():
        if key not in costs:
            making.on_status(f"count {key}", 0, 1, False)
            costs[key] = count_cost(model, classes, size)
    changes: dict[str, object] = {"costs": costs}
    if any(costs[key].latency_ms is None for key in shapes):
        making.on_status("measure latencies", 0, 1, False)
        for key, latency in measure_onnx_latencies(shapes, classes).items():
            costs[key] = costs[key].model_copy(update={"latency_ms": latency})
        machine = choose_hardware("fp32", "cpu").environment()
        changes["latency_environment"] = LatencyEnvironment(
            engine="ONNX Runtime, one thread, batch 1, float32",
            **machine.model_dump(include={"processor", "commit", "started"}),
        )
    return _save(manifest.model_copy(update=changes), folder)
