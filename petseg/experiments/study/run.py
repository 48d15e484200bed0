"""Making a study: `run_study` makes every run that is missing, each in a process of its own.

A study is a folder:

    study.json    the recipe, what was found on the way (shapes, settings, costs), and every run with its rows
    runs/NAME/    the run folders, as `petseg train` and `petseg evaluate` make them

All that a run depends on stands in the recipe, in study.json or in other runs, so a study that was killed goes on to
the same results, and its shards may be made on different machines.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from petseg import __version__, storage
from petseg.config import RunConfig
from petseg.data.cache import Prepared, prepare
from petseg.data.oxford_pets import get_task
from petseg.data.sources import open_dataset
from petseg.errors import DivergedError, PetsegError
from petseg.evaluation.cost import count_cost, count_macs
from petseg.evaluation.evaluate import evaluate_run
from petseg.evaluation.robustness import evaluate_robustness
from petseg.experiments.study.plan import (
    OFFICIAL_PICTURES,
    Pace,
    Run,
    match_key,
    plan,
    run_folder,
    state,
    tuning_outcome,
)
from petseg.experiments.study.recipe import Experiment, Study, matched_to
from petseg.experiments.study.results import (
    DIVERGED,
    MANIFEST,
    PICTURES,
    ROBUSTNESS,
    TUNING,
    add_pictures,
    read_manifest,
)
from petseg.training import runs
from petseg.training.batches import load_splits
from petseg.training.checkpoint import PREVIOUS_RESUME, RESUME
from petseg.training.device import choose_hardware
from petseg.training.loop import Execution, Progress, train

MOST_FAILURES = 3
"""After which a study stops: what failed so often is not the run."""


@dataclass(frozen=True)
class Shard:
    """Every N-th run from the K-th: what one machine of several makes."""

    number: int = 1
    of: int = 1

    def holds(self, run: Run) -> bool:
        """Returns whether the run is this shard's."""
        return (run.number - self.number) % self.of == 0


def parse_shard(text: str) -> Shard:
    """Returns the shard that `K/N` names.

    Raises:
        PetsegError: not two numbers, or K not within 1..N.
    """
    first, slash, last = text.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise PetsegError(f"--only {text}: wanted K/N with K from 1 to N, for example --only 3/8")
    return Shard(int(first), int(last))


@dataclass(frozen=True)
class Status:
    """What a progress bar needs."""

    words: str
    """What is being done."""
    done: float
    """Of the shard's work, in estimated seconds until all of it is done."""
    total: float
    run_ended: bool = False
    """Whether these are a run's last words, worth a line of the log."""

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.total - self.done)


Tell = Callable[[Status], None]


def open_study(study: Study, folder: Path) -> dict[str, Any]:
    """Returns the manifest of a study that goes on in `folder`, or a new one, not yet written.

    Raises:
        PetsegError: the folder holds something else, or expectations changed after their runs were made.
    """
    recipe = study.model_dump(mode="json")
    if not (folder / MANIFEST).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise PetsegError(f"study folder {folder}: holds no {MANIFEST}, but other files; choose another with --out")
        manifest: dict[str, Any] = {"kind": "study", "version": 1}
        known: dict[str, Any] = {}
    else:
        manifest = read_manifest(folder)
        known = {experiment["name"]: experiment["expected"] for experiment in manifest["recipe"]["experiments"]}
        made = {row["experiment"] for run in manifest["runs"] if run["state"] == "finished" for row in run["rows"]}
        for experiment in study.experiments:
            name = experiment.name
            if name in made and known.get(name) != list(experiment.expected):
                raise PetsegError(
                    f"study: experiment {name!r}: its `expected` changed after runs were made; an expectation stands "
                    "before its result: restore it, or choose another folder with --out"
                )
        for part in ("tuning", "robustness", "honesty"):
            now, before = recipe[part], manifest["recipe"].get(part)
            if not now or not before or now.get("experiment", TUNING) not in made:
                continue
            if any(now.get(name) != before.get(name) for name in ("expected", "loses_more")):
                raise PetsegError(
                    f"study: {part}: what was expected changed after runs were made; an expectation stands before "
                    "its result: restore it, or choose another folder with --out"
                )
    manifest |= {"petseg": __version__, "title": study.title, "recipe": recipe}
    empty: dict[str, Any] = {
        "data": None,
        "matches": {},
        "costs": {},
        "latency_environment": None,
        "tuned": {},
        "at_once": [],
        "runs": [],
    }
    return manifest | {name: manifest.get(name, nothing) for name, nothing in empty.items()}


def planned(study: Study, manifest: Mapping[str, Any]) -> list[Run]:
    """Returns the runs as far as the manifest tells their configs."""
    return plan(study, _valid_matches(study, manifest), manifest["tuned"])


def pace(study: Study, manifest: Mapping[str, Any], folder: Path) -> Pace:
    """Returns how long runs take, from the epochs that the folder holds."""
    found = planned(study, manifest)
    classes = _num_classes(study)
    macs = {key: cost["macs"] for key, cost in manifest["costs"].items()}
    for run in found:
        if run.key not in macs:
            macs[run.key] = count_macs(run.config.model, classes, run.config.data.size)
    known = Pace(macs, (manifest["data"] or {}).get("pictures", OFFICIAL_PICTURES))
    known.measure(folder, found)
    return known


def run_study(
    study: Study,
    folder: Path,
    data: Path,
    prepared: Mapping[int, Prepared],
    *,
    shard: Shard = Shard(),
    device: str | None = None,
    at_once: int = 1,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Returns the manifest after every run of the shard that can be made is made.

    Shapes are searched and costs measured first, by shard 1 where latency is asked for, so that shards agree. Runs that
    wait for what other shards make stay "waiting".

    Args:
        study: the recipe.
        folder: of the study; what it holds is kept, and an interrupted run goes on.
        data: the data folder, for the runs' processes.
        prepared: side in pixels -> the data set at that size, for every size of the study.
        shard: which runs to make.
        device: as `choose_hardware`.
        at_once: runs made at a time, which share torch's threads. Small networks gain by it: of 16 channels two runs
            with a thread each were 1.21 times as fast at 64 px as one after the other with two threads, 1.14 times at
            96 px (2 cores of an Intel Xeon with AMX, torch 2.13, 2026-11-22).
        tell: called often.

    Raises:
        PetsegError: as `open_study`; other pictures than the folder's; no shape of equal cost; or runs failed. The
            others are made first, unless `MOST_FAILURES` failed.
    """
    tell = tell or (lambda status: None)
    manifest = open_study(study, folder)
    _claim_data(study, manifest, prepared, folder)
    _write(study, manifest, folder)
    _find_matches(study, manifest, folder, shard, tell)
    _count_costs(study, manifest, folder, shard, tell)
    manifest["at_once"] = sorted({*manifest["at_once"], at_once})
    jobs: list[_Job] = []
    failed: dict[str, str] = {}
    try:
        while len(failed) < MOST_FAILURES:
            manifest["tuned"] = tuning_outcome(study, folder)
            _write(study, manifest, folder)
            mine = [run for run in planned(study, manifest) if shard.holds(run)]
            states = {run.name: state(folder, run) for run in mine}
            taken = {*failed, *(job.run.name for job in jobs)}
            todo = [run for run in mine if states[run.name] == "missing" and run.name not in taken]
            jobs += [_start(run, folder, data, device, at_once) for run in todo[: at_once - len(jobs)]]
            if not jobs:
                break
            known = pace(study, manifest, folder)
            ended = _follow(jobs, {run: known.seconds(run) for run in mine}, states, at_once, tell)
            jobs.remove(ended)
            if ended.failure:
                failed[ended.run.name] = ended.failure
    finally:
        for job in jobs:
            job.stop()
    if failed:
        told = "; ".join(f"run {name}: {why}" for name, why in failed.items())
        raise PetsegError(f"{told} (the same command tries again, from the last whole epoch)")
    _refuse_hopeless(study, folder)
    return manifest


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """A run that is being made in a process of its own."""

    run: Run
    place: Path
    process: BaseProcess
    receiver: Connection
    share: float = 0.0
    """Done, 0 to 1."""
    words: str = ""
    failure: str = ""
    """Why it ended without a result."""

    def listen(self) -> bool:
        """Waits for the process's next word; returns whether the run has ended, or failed."""
        try:
            kind, *message = self.receiver.recv()
        except EOFError:
            self.process.join()
            kind, message = "error", [f"its process ended with exit code {self.process.exitcode} (out of memory?)"]
        if kind == "progress":
            self.share, self.words = message
            return False
        self.process.join()
        if kind == "error":
            self.failure = self.words = message[0]
        else:
            self.share, self.words = 1.0, _outcome(self.place)
        return True

    def stop(self) -> None:
        """Ends the process; its whole epochs are kept."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()
        self.receiver.close()


def _outcome(place: Path) -> str:
    if (place / DIVERGED).is_file():
        return str(storage.read_json(place / DIVERGED)["reason"])
    return f"validation mIoU {100 * storage.read_json(place / 'evaluations' / 'val.json')['miou']:.1f}"


def _start(run: Run, folder: Path, data: Path, device: str | None, at_once: int) -> _Job:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    place = run_folder(folder, run)
    threads = max(1, torch.get_num_threads() // at_once)
    arguments = (sender, run.config.model_dump_json(), place, data, run.splits, device, threads)
    process = context.Process(target=_work, args=arguments, daemon=True)
    process.start()
    sender.close()
    return _Job(run, place, process, receiver)


def _follow(
    jobs: Sequence[_Job], seconds: Mapping[Run, float], states: Mapping[str, str], at_once: int, tell: Tell
) -> _Job:
    """Returns the first job that ends, and tells until then how the shard's work goes on.

    Args:
        jobs: those that are running.
        seconds: how long each run of the shard takes.
        states: name -> state when the jobs were started.
        at_once: how many there may be.
        tell: called with each word of a job.
    """
    by_name = {run.name: length for run, length in seconds.items()}
    running = {job.run.name for job in jobs}  # one may have ended on disk and not yet said so
    ended = [run for run in seconds if states[run.name] in ("finished", "diverged") and run.name not in running]
    while True:
        for ready in wait([job.receiver for job in jobs]):
            job = next(job for job in jobs if job.receiver is ready)
            has_ended = job.listen()
            done = sum(seconds[run] for run in ended) + sum(job.share * by_name[job.run.name] for job in jobs)
            words = f"{len(ended) + 1} of {len(seconds)}, {job.run.name}: {job.words}"
            tell(Status(words, done / at_once, sum(seconds.values()) / at_once, run_ended=has_ended))
            if has_ended:
                job.stop()
                return job


def _work(
    pipe: Connection,
    config_json: str,
    place: Path,
    data: Path,
    splits: Sequence[str],
    device: str | None,
    threads: int,
) -> None:
    """The run's process: trains, scores, and reports through the pipe; ends when nobody listens any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the study's, which ends this process
    torch.set_num_threads(threads)
    try:
        try:
            _train_and_score(pipe, RunConfig.model_validate_json(config_json), place, data, splits, device)
        except DivergedError as error:
            storage.write_json(place / DIVERGED, {"reason": str(error)})
        except PetsegError as error:
            pipe.send(("error", str(error)))
            return
        pipe.send(("done",))
    except BrokenPipeError:
        os._exit(1)  # the study was killed


def _train_and_score(
    pipe: Connection, config: RunConfig, place: Path, data: Path, splits: Sequence[str], device: str | None
) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # a study that was killed may have left this process at its last step
    with FileLock(place.with_name(f".{place.name}.lock")):
        pipe.send(("progress", 0.0, "starting"))
        hardware = choose_hardware(config.train.precision, device)
        prepared = prepare(open_dataset(data, config.data), config.data.size)
        pictures = load_splits(prepared, config, hardware.device)

        def step(progress: Progress) -> None:
            pipe.send(("progress", 0.9 * progress.step / progress.steps, progress.detail))

        checkpoint = place / RESUME
        if checkpoint.is_file() or len(runs.read_metrics(place)) < config.train.epochs:
            train(config, prepared, place, Execution(hardware, resume=True, splits=pictures, on_step=step))
        for split in splits:

            def tell(done: int, total: int, split: str = split) -> None:
                pipe.send(("progress", 0.9 + 0.1 * done / total, f"score {split}"))

            if split == ROBUSTNESS:
                test = pictures["test"]
                evaluate_robustness(place, hardware, test, on_progress=tell)
            else:
                evaluate_run(place, hardware, pictures, split, tell)
        for name in (RESUME, PREVIOUS_RESUME):
            (place / name).unlink(missing_ok=True)  # of no use any more, and three times the weights


# --- what is found on the way ----------------------------------------------------------------------------------------


def _write(study: Study, manifest: dict[str, Any], folder: Path) -> None:
    manifest["runs"] = [
        {
            "name": run.name,
            "state": state(folder, run),
            "waits": run.waits,
            "cost": run.key,
            "splits": list(run.splits),
            "rows": [asdict(row) for row in run.rows],
        }
        for run in planned(study, manifest)
    ]
    storage.write_json(folder / MANIFEST, manifest)


def _claim_data(study: Study, manifest: dict[str, Any], prepared: Mapping[int, Prepared], folder: Path) -> None:
    first = next(iter(prepared.values()))
    found = {
        "source": first.dataset.provenance,
        "key": first.key.partition("-")[0],
        "pictures": {part: len(first.rows(part_names)) for part, part_names in first.dataset.splits.items()},
    }
    if manifest["data"] is None:
        manifest["data"] = found
    elif manifest["data"]["key"] != found["key"]:
        raise PetsegError(
            f"study folder {folder}: holds work on other pictures ({manifest['data']['source']}); choose another with "
            "--out"
        )


def _matched(study: Study) -> list[tuple[Experiment, str]]:
    return [
        (experiment, arm)
        for experiment in study.experiments
        for arm in experiment.arms()
        if matched_to(experiment, arm) is not None
    ]


def _shapes(study: Study, experiment: Experiment, arm: str) -> tuple[RunConfig, RunConfig]:
    """Returns an arm's config before it is matched, and that of the arm which it is matched to."""
    target = matched_to(experiment, arm)
    assert target is not None, "the caller asks for matched arms"
    return study.arm_config(experiment, arm), study.arm_config(experiment, target)


def _question(study: Study, experiment: Experiment, arm: str) -> dict[str, Any]:
    """Returns what a match answers; one whose question has changed since is searched anew."""
    config, target = _shapes(study, experiment, arm)
    return {
        "of": config.model.model_dump(mode="json", exclude_none=True),
        "to": target.model.model_dump(mode="json", exclude_none=True),
        "size": config.data.size,
        "quantity": experiment.variants[arm.partition("/")[2]].match,
    }


def _valid_matches(study: Study, manifest: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for experiment, arm in _matched(study):
        known = manifest["matches"].get(match_key(experiment, arm))
        if known is not None and known["question"] == _question(study, experiment, arm):
            found[match_key(experiment, arm)] = known
    return found


def _find_matches(study: Study, manifest: dict[str, Any], folder: Path, shard: Shard, tell: Tell) -> None:
    from petseg.experiments.study.match import count_parameters, find_shape, time_shapes  # needs the extra `export`

    manifest["matches"] = _valid_matches(study, manifest)
    classes = _num_classes(study)
    for experiment, arm in _matched(study):
        key = match_key(experiment, arm)
        quantity = experiment.variants[arm.partition("/")[2]].match
        if key in manifest["matches"] or (quantity == "latency" and shard.number > 1):
            continue
        assert quantity is not None, "a matched arm has one"
        tell(Status(f"search {arm} of equal {quantity}", 0, 1))
        config, target = _shapes(study, experiment, arm)
        measure = count_parameters(classes) if quantity == "parameters" else time_shapes(classes, config.data.size)
        found = find_shape(config.model, target.model, quantity, measure)
        manifest["matches"][key] = {"question": _question(study, experiment, arm), **found}
        _write(study, manifest, folder)


def _count_costs(study: Study, manifest: dict[str, Any], folder: Path, shard: Shard, tell: Tell) -> None:
    """Counts every shape's cost, and measures all latencies in turn where one is missing."""
    from petseg.experiments.study.match import measure_onnx_latencies

    classes = _num_classes(study)
    shapes = {run.key: run.config for run in planned(study, manifest) if "the shape of" not in run.waits}
    for key, config in shapes.items():
        if key not in manifest["costs"]:
            tell(Status(f"count {key}", 0, 1))
            manifest["costs"][key] = asdict(count_cost(config.model, classes, config.data.size))
    if shard.number == 1 and any("latency_ms" not in manifest["costs"][key] for key in shapes):
        tell(Status("measure latencies", 0, 1))
        found = measure_onnx_latencies(
            {key: (config.model, config.data.size) for key, config in shapes.items()}, classes
        )
        machine = choose_hardware("fp32", "cpu").environment().model_dump()
        for key, latency in found.items():
            manifest["costs"][key]["latency_ms"] = asdict(latency)
        manifest["latency_environment"] = {
            "engine": "ONNX Runtime, one thread, batch 1, float32",
            **{name: machine[name] for name in ("processor", "platform", "commit", "started")},
        }
    _write(study, manifest, folder)


def _num_classes(study: Study) -> int:
    return len(get_task(study.data.oxford_pets).classes)


def _refuse_hopeless(study: Study, folder: Path) -> None:
    """Tells if a model's whole grid diverged, so that its tuned runs can never be made."""
    if study.tuning is None:
        return
    grid = [run for run in plan(study, {}, {}) if run.rows[0].experiment == "tuning"]
    for model in study.tuning.models:
        states = {state(folder, run) for run in grid if run.config.model.name == model}
        if states == {"diverged"}:
            raise PetsegError(
                f"study: every cell of {model}'s tuning diverged; add lower rates to tuning.learning_rate"
            )


# --- shards ----------------------------------------------------------------------------------------------------------


def collect(study: Study, folder: Path, shards: Sequence[Path]) -> dict[str, Any]:
    """Returns the manifest of `folder` after copying into it what the shards' folders hold beyond it.

    Args:
        study: the recipe.
        folder: of the study.
        shards: folders that `run_study` made, or published ones.

    Raises:
        PetsegError: a folder of another study or other pictures, or shapes that differ between shards.
    """
    manifest = open_study(study, folder)
    for shard in shards:
        theirs = read_manifest(shard)
        if theirs["recipe"] != manifest["recipe"]:
            raise PetsegError(f"{shard}: a shard of another study ({theirs['title']}); collect shards of one recipe")
        if manifest["data"] is None:
            manifest["data"] = theirs["data"]
        elif theirs["data"] is not None and theirs["data"]["key"] != manifest["data"]["key"]:
            raise PetsegError(f"{shard}: made on other pictures ({theirs['data']['source']}); collect those of one set")
        for key, match in theirs["matches"].items():
            if manifest["matches"].setdefault(key, match)["model"] != match["model"]:
                raise PetsegError(
                    f"{shard}: found another shape for {key} than the shards before; give all shards one {MANIFEST} "
                    "to start from"
                )
        for key, cost in theirs["costs"].items():
            if "latency_ms" not in manifest["costs"].get(key, {}):
                manifest["costs"][key] = cost
        manifest["latency_environment"] = manifest["latency_environment"] or theirs["latency_environment"]
        manifest["at_once"] = sorted({*manifest["at_once"], *theirs["at_once"]})
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        if (shard / PICTURES).is_file():  # published runs, whose counts go with it
            add_pictures(folder / PICTURES, shard / PICTURES)
    for _ in range(2):  # tuning first: it tells which the other runs are
        for run in planned(study, manifest):
            for shard in shards:
                _copy(run, shard, folder)
        manifest["tuned"] = tuning_outcome(study, folder)
    _write(study, manifest, folder)
    return manifest


def _copy(run: Run, shard: Path, folder: Path) -> None:
    """Copies a run that the shard has and the folder lacks; it appears whole."""
    target = run_folder(folder, run)
    if state(shard, run) not in ("finished", "diverged") or state(folder, run) != "missing":
        return
    unfinished = target.with_name(f".{target.name}.copy{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(run_folder(shard, run), unfinished)
    shutil.rmtree(target, ignore_errors=True)  # the beginning of the same run
    unfinished.rename(target)


def sizes(study: Study) -> list[int]:
    """Returns every side in pixels at which a study needs its pictures."""
    return sorted({run.config.data.size for run in plan(study, {}, {})})
