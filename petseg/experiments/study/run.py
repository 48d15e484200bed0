"""Making a study: `run_study` makes every run that is missing, each a job of an executor.

All that a run depends on stands in study.json or in other runs, so a study that was killed goes on to the same results.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from petseg import __version__, storage
from petseg.data.cache import Prepared, prepare
from petseg.data.geometry import Geometry
from petseg.data.sources import open_dataset
from petseg.errors import DivergedError, PetsegError
from petseg.evaluation.cost import count_cost
from petseg.evaluation.evaluate import evaluate_run
from petseg.evaluation.robustness import evaluate_robustness
from petseg.experiments.executor import Executor, Input, LocalProcesses, Workplace
from petseg.experiments.study.plan import MatchQuestion, Run, durations, plan, tuning_outcome
from petseg.experiments.study.recipe import Study, check_against_data
from petseg.experiments.study.results import (
    DIVERGED,
    MANIFEST,
    ROBUSTNESS,
    TUNING,
    StudyManifest,
    read_manifest,
    take_over,
)
from petseg.schema import LatencyEnvironment, Scores, read_record, write_record
from petseg.training import runs
from petseg.training.batches import load_splits
from petseg.training.checkpoint import LAST, PREVIOUS_RESUME, RESUME
from petseg.training.device import choose_hardware
from petseg.training.loop import Execution, train
from petseg.units import duration

MOST_FAILURES = 3  # after which a study stops: what failed so often is not the run


@dataclass(frozen=True)
class Making:
    """How a study is carried out; nothing of it is part of what the study is."""

    data: Path  # the data folder, for the runs' jobs
    device: str | None = None  # as `choose_hardware`
    # runs made at a time share torch's threads: of 16 channels two runs with a thread each were 1.21 times as fast
    # at 64 px as in turn with two, 1.14 times at 96 px (2 cores of a Xeon with AMX, torch 2.13, 2026-11-22)
    executor: Executor = field(default_factory=partial(LocalProcesses, 1))
    only: tuple[str, ...] = ()  # experiments, as `plan`
    # called with a line on what ended or begins, and how many runs have ended, of how many
    on_status: Callable[[str, int, int], None] = lambda line, ended, total: None


def open_study(study: Study, folder: Path) -> StudyManifest:
    """Returns the manifest of a study that goes on in `folder`, or a new one, not yet written."""
    if not (folder / MANIFEST).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise PetsegError(
                f"study folder {folder}: holds no {MANIFEST}, but other files; choose another folder (--out)"
            )
        return StudyManifest(petseg=__version__, recipe=study)
    return agreed(read_manifest(folder), study)


def agreed(known: StudyManifest, study: Study) -> StudyManifest:
    """Returns a manifest with the recipe as it is now; refuses another expectation of runs that were made."""
    made = {row.experiment for run in known.runs if run.state == "finished" for row in run.rows}
    before = _expected(known.recipe)
    for (part, experiment), expected in _expected(study).items():
        if experiment in made and before.get((part, experiment), expected) != expected:
            raise PetsegError(
                f"study: {part}: what was expected changed after runs were made; an expectation stands before its "
                "result: restore it, or choose another folder (--out)"
            )
    return known.model_copy(update={"petseg": __version__, "recipe": study})


def _expected(study: Study) -> dict[tuple[str, str], object]:
    """Returns (part of the recipe, experiment whose runs it is about) -> what is expected."""
    found: dict[tuple[str, str], object] = {
        (f"experiment {each.name!r}", each.name): (each.primary, each.expected) for each in study.experiments
    }
    if study.tuning is not None:
        found["tuning", TUNING] = study.tuning.expected
    return found | {(part, recheck.experiment): recheck.expected for part, recheck in study.rechecks().items()}


def go_on_from(published: Path, study: Study, folder: Path) -> None:
    """Takes over what a published study has of this one's runs; refuses, before it writes, a study that has none."""
    known = agreed(read_manifest(published), study)
    wanted = {run.name for run in plan(known)}
    if not wanted & {run.name for run in known.runs if run.state in ("finished", "diverged")}:
        raise PetsegError(f"{published}: has no run of {study.title!r}; name the published form of the same study")
    take_over(published, folder)


def run_study(study: Study, folder: Path, prepared: Mapping[int, Prepared], making: Making) -> StudyManifest:
    """Returns the manifest after every run that can be made is made; `prepared` has the dataset by side in pixels.

    What the folder holds is kept, and an interrupted run goes on. Where runs failed, the others are made before the
    error, unless `MOST_FAILURES` did.
    """
    manifest = open_study(study, folder)
    data = runs.describe(next(iter(prepared.values())))
    data = data.model_copy(update={"key": data.key.partition("-")[0]})  # without the size: the study has several
    if manifest.data is not None and manifest.data.key != data.key:
        known = manifest.data.provenance
        raise PetsegError(f"study folder {folder}: holds work on other images ({known}); choose another folder (--out)")
    check_against_data(study, data)
    manifest = _save(manifest.model_copy(update={"data": data}), folder)
    jobs: dict[Future[None], Run] = {}
    failed: dict[str, PetsegError] = {}
    with making.executor as executor:
        threads = executor.threads or max(1, torch.get_num_threads() // executor.count)
        while True:
            manifest = _brought_on(manifest, folder, making, idle=not jobs)
            skipped = {*failed, *(run.name for run in jobs.values())}
            todo = [
                run for run in plan(manifest, making.only) if run.state(folder) == "missing" and run.name not in skipped
            ]
            room = max(0, executor.count - len(jobs)) if len(failed) < MOST_FAILURES else 0
            for run in todo[:room]:
                given = (Workplace(run.place(folder)), Input(making.data), making.device, threads)
                jobs[executor.submit(make_run, run, *given)] = run
            if not jobs:
                break
            for future in wait(jobs, return_when=FIRST_COMPLETED).done:
                run = jobs.pop(future)
                place = run.place(folder)
                try:
                    future.result()
                    if (place / DIVERGED).is_file():
                        outcome = str(storage.read_json(place / DIVERGED)["reason"])
                    else:
                        miou = read_record(place / "evaluations" / "val.json", Scores).miou
                        outcome = f"validation mIoU {100 * miou:.1f}"
                except PetsegError as error:
                    failed[run.name] = error
                    outcome = str(error)
                _report(manifest, folder, making, f"{run.name}: {outcome}", {run.name for run in jobs.values()})
    if failed:
        reasons = "; ".join(f"run {name}: {error}" for name, error in failed.items())
        raise PetsegError(f"{reasons} (the same command tries again, from the last whole epoch)")
    if waits := [run.waits for run in plan(manifest, making.only) if run.waits]:
        raise PetsegError(f"study: runs wait for {waits[0]}: every cell diverged; add lower rates to [tuning]")
    return manifest


def _report(manifest: StudyManifest, folder: Path, making: Making, outcome: str, running: set[str]) -> None:
    planned = plan(manifest, making.only)
    seconds = durations(manifest, folder, planned)
    left = {run.name for run in planned if run.state(folder) in ("missing", "waiting")} | running
    time_left = duration(sum(seconds[name] for name in left) / making.executor.count)
    ended = len(seconds) - len(left)
    making.on_status(f"{ended} of {len(seconds)}, {outcome}; {time_left} left", ended, len(seconds))


def make_run(run: Run, place: Path, data: Path, device: str | None, threads: int) -> None:
    """Trains a run, from its last whole epoch, and scores it; that it diverged is written down as its result."""
    torch.set_num_threads(threads)
    config = run.config
    hardware = choose_hardware(config.train.precision, device)
    prepared = prepare(open_dataset(data, config.data), Geometry.of(config.data))
    splits = load_splits(prepared, config, hardware.device)
    try:
        whole = len(runs.read_metrics(place)) == config.train.epochs and (place / LAST).is_file()
        if (place / RESUME).is_file() or not whole:
            train(config, prepared, place, Execution(hardware, resume=True, splits=splits))
    except DivergedError as error:
        storage.write_json(place / DIVERGED, {"reason": str(error)})
        return
    for split in run.splits:
        if split == ROBUSTNESS:
            evaluate_robustness(place, hardware, prepared)
        else:
            evaluate_run(place, hardware, splits, split)
    for name in (RESUME, PREVIOUS_RESUME):
        (place / name).unlink(missing_ok=True)  # of no use any more, and three times the weights


def _save(manifest: StudyManifest, folder: Path) -> StudyManifest:
    """Returns the manifest with the present state of its runs, now written."""
    manifest = manifest.model_copy(update={"runs": tuple(run.entry(folder) for run in plan(manifest))})
    write_record(folder / MANIFEST, manifest)
    return manifest


def _brought_on(manifest: StudyManifest, folder: Path, making: Making, *, idle: bool) -> StudyManifest:
    """Returns the manifest with what is known by now: settings and, timed while no run is made, shapes and costs."""
    tuned = tuning_outcome(manifest, folder)
    manifest = _save(manifest.model_copy(update={"tuned": tuned}), folder)
    if idle:
        manifest = _find_shapes(manifest, folder, making)
    waits = any(run.waits for run in plan(manifest, making.only))
    return _count_costs(manifest, folder, making) if idle and not waits else manifest


def _find_shapes(manifest: StudyManifest, folder: Path, making: Making) -> StudyManifest:
    from petseg.experiments.study.match import find_shape  # needs the extra `export`

    experiments = [one for one in manifest.recipe.experiments if not making.only or one.name in making.only]
    asked = [MatchQuestion.of(manifest, one, arm) for one in experiments for arm in one.arms()]
    for question in filter(None, asked):
        if question.key not in manifest.matches and manifest.data:
            making.on_status(f"search {question.key}", 0, 1)
            found = find_shape(question, len(manifest.data.classes))
            matches = {**manifest.matches, question.key: found}
            manifest = _save(manifest.model_copy(update={"matches": matches}), folder)
    return manifest


def _count_costs(manifest: StudyManifest, folder: Path, making: Making) -> StudyManifest:
    """Counts every shape's cost, and measures all latencies in turn where one is missing."""
    from petseg.experiments.study.match import MATCHED, measure_latencies

    assert manifest.data is not None
    classes = len(manifest.data.classes)
    shapes = {run.cost: (run.config.model, run.config.data.size) for run in plan(manifest, making.only)}
    new = [key for key in shapes if key not in manifest.costs]
    costs = manifest.costs | {key: count_cost(shapes[key][0], classes, shapes[key][1]) for key in new}
    changes: dict[str, object] = {"costs": costs}
    if any(costs[key].latency_ms is None for key in shapes):
        making.on_status("measure latencies", 0, 1)
        for key, latencies in measure_latencies(shapes, classes).items():
            measured = {"latency_ms": latencies[MATCHED], "latencies": latencies}
            costs[key] = costs[key].model_copy(update=measured)
        machine = choose_hardware("fp32", "cpu").environment()
        changes["latency_environment"] = LatencyEnvironment(
            engine=f"{MATCHED}, batch 1, float32",
            **machine.model_dump(include={"processor", "commit", "started"}),
        )
    return _save(manifest.model_copy(update=changes), folder)
