"""`petseg study`."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from petseg.cli.data import data_folder, prepare_data
from petseg.cli.options import DataOption, DeviceOption, ThreadsOption, chosen_hardware
from petseg.cli.terminal import print_table, progress_bar, resumable


def study(
    recipe: Annotated[str, typer.Argument(help="The shipped study or a TOML file.")] = "study",
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study.", show_default="runs/RECIPE")] = None,
    show: Annotated[bool, typer.Option("--list", help="Print the runs and their time, and run nothing.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs made at once; they share the cores.")] = 1,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Make a matrix of runs, each once; Ctrl-C is safe, and the same command goes on."""
    from petseg.experiments.study.plan import durations, plan, sizes
    from petseg.experiments.study.recipe import load_study
    from petseg.experiments.study.run import Making, open_study, run_study
    from petseg.units import duration

    loaded = load_study(recipe)
    folder = out or Path("runs") / Path(recipe).stem
    if show:
        manifest = open_study(loaded, folder)
        planned = plan(manifest)
        seconds = durations(manifest, folder, planned)
        rows = []
        left = 0.0
        for number, run in enumerate(planned, start=1):
            purpose = "; ".join(f"{row.experiment} {row.arm}" for row in run.rows)
            state = run.state(folder)
            left += seconds[run.name] if state in ("missing", "waiting") else 0
            # its config is not known yet, so neither is its name
            name = run.name.rpartition("-")[0] if run.waits else run.name
            rows.append((str(number), name, purpose, duration(seconds[run.name]), state))
        print_table(f"{loaded.title}: {folder}", (">", "run", "for", ">time", "state"), rows)
        print(f"{duration(sum(seconds.values()))} in all, {duration(left)} left, by the epochs that were measured")
        return
    place = data_folder(data)
    prepared = {size: prepare_data(place, loaded.data.model_copy(update={"size": size})) for size in sizes(loaded)}
    chosen_hardware(loaded.train.precision, device, threads, folder)
    with resumable("run the same command again to go on"), progress_bar() as advance:

        def show_status(line: str, ended: int, total: int) -> None:
            advance("study", ended, total)
            print(line, flush=True)

        manifest = run_study(loaded, folder, prepared, Making(place, device, jobs, show_status))
    counts = ", ".join(f"{count} {state}" for state, count in Counter(run.state for run in manifest.runs).items())
    print(f"{folder}: {len(manifest.runs)} runs: {counts}")
