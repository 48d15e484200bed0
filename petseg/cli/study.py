"""`petseg study`."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petseg.cli.data import data_folder, prepare_data
from petseg.cli.options import DataOption, DeviceOption, ThreadsOption, chosen_hardware
from petseg.cli.terminal import print_table, progress_bar, results_only, resumable
from petseg.errors import PetsegError, unknown_name

if TYPE_CHECKING:
    from petseg.config import RunConfig
    from petseg.experiments.executor import Executor
    from petseg.experiments.study.recipe import Study
    from petseg.training.device import Hardware

JOBS_HELP = "Runs made at once; those on this machine share its cores."
FROM_HELP = "A published form of this study, as in results/: what has ended there is not made again."
ONLY_HELP = "An experiment of the recipe, with the tuning that it needs; more by repeating. Default: all."
RAY_HELP = "Make the runs on a Ray cluster: auto, HOST:6379 or ray://HOST:10001. Each has --threads cores (1)."


def study(
    recipe: Annotated[str, typer.Argument(help="The shipped study or a TOML file.")] = "study",
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study.", show_default="runs/RECIPE")] = None,
    start: Annotated[Path | None, typer.Option("--from", help=FROM_HELP, show_default=False)] = None,
    only: Annotated[list[str] | None, typer.Option(help=ONLY_HELP, show_default=False)] = None,
    show: Annotated[bool, typer.Option("--list", help="Print the runs and their time, and run nothing.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help=JOBS_HELP, show_default="1, or what fits")] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    ray: Annotated[str | None, typer.Option(help=RAY_HELP, show_default=False)] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each run under --ray; 0.25: four share one.")] = 0,
) -> None:
    """Make a matrix of runs, each once. Ctrl-C is safe, and the same command goes on."""
    from petseg.experiments.study.plan import sizes
    from petseg.experiments.study.recipe import load_study
    from petseg.experiments.study.run import Making, go_on_from, run_study

    loaded = load_study(recipe)
    part = tuple(only or ())
    known = [experiment.name for experiment in loaded.experiments]
    if wrong := [name for name in part if name not in known]:
        raise unknown_name("--only", wrong[0], known)
    folder = out or Path("runs") / Path(recipe).stem
    if show:
        _show(loaded, folder, data, part, jobs or 1, lambda: chosen_hardware(loaded.train.precision, device, threads))
        return
    if start is not None:
        go_on_from(start, loaded, folder)
    executor = _executor(ray, jobs, threads, gpus, folder)
    place = data_folder(data)
    prepared = {
        size: prepare_data(place, loaded.data.model_copy(update={"size": size})) for size in sizes(loaded, part)
    }
    if not ray:
        chosen_hardware(loaded.train.precision, device, threads, folder)
    again = "whole epochs are kept: run the same command again to go on"
    with resumable(again), results_only() as results, progress_bar() as advance:

        def show_status(line: str, ended: int, total: int) -> None:
            advance("study", ended, total)
            print(line, file=results, flush=True)

        manifest = run_study(loaded, folder, prepared, Making(place, device, executor, part, show_status))
    counts = ", ".join(f"{count} {state}" for state, count in Counter(run.state for run in manifest.runs).items())
    print(f"{folder}: {len(manifest.runs)} runs: {counts}")


def _show(
    study: "Study",
    folder: Path,
    data: Path | None,
    only: tuple[str, ...],
    jobs: int,
    choose: Callable[[], "Hardware"],
) -> None:
    """Prints the runs and their time: of shapes that were trained, by their epochs; of others, by a few steps now.

    The steps have the threads that one of `jobs` runs at a time has.
    """
    from petseg.data.sources import find_data
    from petseg.experiments.study.plan import durations, plan, sizes
    from petseg.experiments.study.run import open_study
    from petseg.training.runs import describe, read_metrics
    from petseg.units import duration

    with results_only():
        manifest = open_study(study, folder)
        if manifest.data is None and (place := find_data(data)):
            smallest = prepare_data(place, study.data.model_copy(update={"size": min(sizes(study, only))}))
            manifest = manifest.model_copy(update={"data": describe(smallest)})
        planned = plan(manifest, only)
        trained = {run.cost for run in planned if read_metrics(run.place(folder))}
        new = {run.cost: run.config for run in planned if run.cost not in trained}
        measured = _timed(new, len(manifest.data.classes) if manifest.data else 3, choose(), jobs) if new else {}
    seconds = durations(manifest, folder, planned, measured)
    rows = []
    whole = left = 0.0
    for number, run in enumerate(planned, start=1):
        purpose = "; ".join(f"{row.experiment} {row.arm}" for row in run.rows)
        state = run.state(folder)
        whole += seconds[run.name]
        left += seconds[run.name] if state in ("missing", "waiting") else 0
        # its config is not known yet, so neither is its name
        name = run.name.rpartition("-")[0] if run.waits else run.name
        rows.append((str(number), name, purpose, duration(seconds[run.name]), state))
    print_table(f"{study.title}: {folder}", (">", "run", "for", ">time", "state"), rows)
    at_a_time = "one run" if jobs == 1 else f"{jobs} runs"
    print(f"{duration(whole / jobs)} in all, {duration(left / jobs)} left, {at_a_time} at a time")


def _timed(configs: Mapping[str, "RunConfig"], num_classes: int, hardware: "Hardware", jobs: int) -> dict[str, float]:
    """Returns cost -> seconds of a training image, by a few steps of each shape."""
    import torch

    from petseg.evaluation.cost import image_seconds

    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))  # as runs at a time share them
    found = {}
    with progress_bar() as advance:
        for number, (cost, config) in enumerate(configs.items()):
            advance("time some steps", number, len(configs))
            found[cost] = image_seconds(config, num_classes, hardware)
    return found


def _executor(ray: str | None, jobs: int | None, threads: int | None, gpus: float, folder: Path) -> "Executor":
    """Returns what makes the runs; a cluster is joined first of all, so that a wrong address is said at once."""
    from petseg.experiments.executor import LocalProcesses
    from petseg.threads import recorded_threads, thread_count

    if ray is None:
        if gpus:
            raise PetsegError("--gpus is of runs on a Ray cluster; add --ray, or choose with --device")
        return LocalProcesses(jobs or 1)
    from petseg.experiments.ray_tasks import RayTasks, Share

    return RayTasks(ray, Share(thread_count(threads) or recorded_threads(folder) or 1, gpus), jobs)
