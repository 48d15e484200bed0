"""`petseg study`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petseg.cli.data import data_folder, prepare_data
from petseg.cli.options import DataOption, DeviceOption, chosen_hardware
from petseg.cli.progress import progress_bar, resumable
from petseg.errors import PetsegError

if TYPE_CHECKING:
    from petseg.experiments.study.recipe import Study


def study(
    recipe: Annotated[str, typer.Argument(help="The shipped study or a TOML file.")] = "study",
    data: DataOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study.", show_default="runs/RECIPE")] = None,
    only: Annotated[
        str | None, typer.Option(help="Make one shard of the runs, for example 3/8.", show_default=False)
    ] = None,
    collect: Annotated[
        list[Path] | None,
        typer.Option(help="Copy what a shard's folder holds into this one, and run nothing. Repeatable."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Print the runs and the time they take, and run nothing.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs made at once; they share the cores.")] = 1,
    device: DeviceOption = None,
) -> None:
    """Make a matrix of runs, each once; Ctrl-C is safe, and the same command goes on."""
    from petseg.experiments.study import run as studies
    from petseg.experiments.study.recipe import load_study
    from petseg.units import duration

    loaded = load_study(recipe)
    folder = out or Path("runs") / Path(recipe).stem
    if (only is not None) + bool(collect) + show > 1:
        raise PetsegError("--only, --collect and --list exclude each other; give one")
    if show:
        _print_runs(loaded, folder)
        return
    if collect:
        manifest = studies.collect(loaded, folder, collect)
    else:
        shard = studies.parse_shard(only) if only else studies.Shard()
        found = data_folder(data)
        prepared = {
            size: prepare_data(found, loaded.data.model_copy(update={"size": size})) for size in studies.sizes(loaded)
        }
        chosen_hardware(loaded.train.precision, device)
        with resumable("run the same command again to go on"), progress_bar() as advance:

            def tell(status: studies.Status) -> None:
                left = f"{status.words}; {duration(status.left)} left"
                advance("study", round(status.done), round(status.total), left)
                if status.run_ended:
                    print(left, flush=True)

            manifest = studies.run_study(
                loaded, folder, found, prepared, shard=shard, device=device, at_once=jobs, tell=tell
            )
    states = [run["state"] for run in manifest["runs"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"{folder}: {len(states)} runs: {counts}")
    if "waiting" in states and not collect:
        print("What waits needs other shards' runs: merge them with --collect, then run the shards again from there")


def _print_runs(study: Study, folder: Path) -> None:
    """Prints a study's runs in their order, with what they are for, and the time they take."""
    from rich.console import Console
    from rich.table import Table

    from petseg.experiments.study import run as studies
    from petseg.experiments.study.plan import state
    from petseg.units import duration

    manifest = studies.open_study(study, folder)
    known = studies.pace(study, manifest, folder)
    table = Table(title=f"{study.title}: {folder}")
    for column in ("", "run", "for", "time", "state"):
        table.add_column(column, justify="right" if column in ("", "time") else "left", overflow="fold")
    total = left = 0.0
    for run in studies.planned(study, manifest):
        rows: dict[str, list[str]] = {}
        for row in run.rows:
            rows.setdefault(row.experiment, []).append(row.arm)
        stands_for = "; ".join(f"{name} {', '.join(arms)}" for name, arms in rows.items())
        seconds, found = known.seconds(run), state(folder, run)
        total += seconds
        left += seconds if found in ("missing", "waiting") else 0
        # its config is not known yet, so neither is its name
        name = run.name.rpartition("-")[0] if run.waits else run.name
        table.add_row(str(run.number), name, stands_for, duration(seconds), found)
    Console().print(table)
    measured = "from measured epochs" if known.per_picture else "no epoch measured yet: as on two cores with AMX"
    print(f"{duration(total)} in all, {duration(left)} left ({measured})")
