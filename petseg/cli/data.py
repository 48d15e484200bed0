"""`petseg data get | check | prepare`, and the prepared data that other commands ask for."""

import shlex
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petseg.cli.options import DataOption, SetOption, SizeOption, checked_size, data_config
from petseg.cli.terminal import print_lines, print_table, progress_bar
from petseg.errors import PetsegError
from petseg.units import plural

if TYPE_CHECKING:
    from petseg.config import DataConfig
    from petseg.data.cache import Prepared
    from petseg.data.dataset import Dataset
    from petseg.schema import DataCheck

SHOWN = 10  # images left out that are named on the terminal
STYLES = {"error": "bold red", "warning": "yellow", "note": ""}  # of `schema.Level`
app = typer.Typer(help="Get, check and prepare the dataset.", no_args_is_help=True)


@app.command()
def get(
    data: Annotated[Path | None, typer.Option(help="Where to put them.", show_default="the user's data folder")] = None,
) -> None:
    """Download the two official archives (811 MB) and verify them. An interrupted transfer goes on where it stopped."""
    folder = _download(data)
    print(f"{folder}: images.tar.gz and annotations.tar.gz, checksums right")
    if data is not None:
        print(f"Use it with --data {shlex.quote(str(folder))} or PETSEG_DATA")


@app.command()
def check(
    folder: Annotated[Path | None, typer.Argument(help="The same as --data.", show_default=False)] = None,
    data: DataOption = None,
    settings: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Open every pair, print class balance and what is wrong. Exit code 1 if it would spoil training."""
    from petseg.data.check import check_dataset

    if folder and data:
        raise PetsegError(f"two folders were given, {folder} and --data {data}; give one")
    config = data_config(settings)
    dataset = open_data(data_folder(folder or data), config)
    with progress_bar() as advance:
        found = check_dataset(dataset, config.size, partial(advance, "check"))
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        _print_check(found)
    if found.spoiled:
        raise typer.Exit(1)


def _print_check(found: "DataCheck") -> None:
    sizes = [f"{width} x {height}" for width, height in dict.fromkeys(filter(None, (found.smallest, found.largest)))]
    print_lines(f"{found.name}: {found.provenance}")
    counts = f"{_images(found.images, found.unlabelled)}, {found.usable:,} usable"
    print_lines(f"{counts}, {' to '.join(sizes) or 'none'} px; training sees them at {found.size} px")
    rows = [
        (
            entry.name,
            f"{100 * entry.share:.2f} %",
            *(f"{count:,}" for count in entry.images.values()),
            f"{entry.weight:.3g}",
        )
        for entry in found.classes
    ]
    columns = ("class", ">pixels", *(f">{part}" for part in found.splits), ">weight")
    print_lines("Share of the training pixels, images that hold the class, its weight under median_frequency:")
    print_table("", columns, rows)
    if found.ignored:
        print_lines(f"Ignored: {100 * found.ignored:.2f} % of all pixels")
    for finding in found.findings:
        names = ", ".join(finding.names[:6]) + (f", ... (+{len(finding.names) - 6:,})" if finding.names[6:] else "")
        head = f"{finding.level}: {finding.found}: {finding.count:,} ({finding.action})"
        print_lines(head, style=STYLES[finding.level])
        print_lines(names, indent=4)
        if finding.reason:
            print_lines(f"{finding.names[0]}: {finding.reason}", indent=4)
        print_lines(finding.advice, indent=4)
    warnings = sum(finding.level == "warning" for finding in found.findings)
    if found.spoiled:
        errors = plural(found.spoiled, "error")
        print_lines(f"{errors} above would spoil training: mend what they name, and check again.")
    elif warnings:
        print_lines(f"No errors. Look at the {plural(warnings, 'warning')} before you train.")
    else:
        print_lines("Nothing here would spoil training.")


@app.command()
def prepare(data: DataOption = None, size: SizeOption = 128, settings: SetOption = None) -> None:
    """Decode and resize all images into the cache that training reads."""
    config = data_config([f"data.size={checked_size(size)}", *(settings or ())])
    prepared = prepare_data(data_folder(data), config)
    print(f"{prepared.folder}: {len(prepared.samples):,} pairs at {config.size} px")


def data_of(run: Path, given: Path | None) -> Path | None:
    """Returns what was given as --data, else where the images of a run or a comparison lay."""
    from petseg.data import oxford_pets
    from petseg.training.runs import read_data, read_place

    place = read_place(run)
    if given or place is None or place.exists():
        return given or place
    if not (run / "data.json").is_file() or read_data(run).name == oxford_pets.NAME:
        return None  # which may lie anywhere
    raise PetsegError(f"{run}: its images lay in {place}, which is not there; name their folder (--data)")


def data_folder(given: Path | None, *, fetch: bool = False) -> Path:
    """Returns the folder of the dataset: what was given, PETSEG_DATA, what was downloaded, or is now if asked for."""
    from petseg.data.sources import find_data

    if folder := find_data(given):
        return folder
    if not fetch:
        raise PetsegError(
            "no dataset: neither --data nor PETSEG_DATA is given and nothing was downloaded; run `petseg data get`"
        )
    return _download()


def data_or_synthetic(given: Path | None) -> tuple[Path, bool]:
    """Returns a data folder and whether its pets are synthetic; a folder that was named must be right, though."""
    from petseg.data.oxford_pets import is_synthetic
    from petseg.data.sources import find_data, synthetic_data

    try:
        folder = find_data(given) or _download(rounds=1)
        return folder, is_synthetic(folder)
    except PetsegError as error:
        from rich.console import Console

        console = Console(stderr=True, soft_wrap=True)
        console.print(f"petseg: {error}", style="dim", highlight=False)
        warning = "the real dataset is not at hand and cannot be downloaded; training on drawn animals, whose figures"
        console.print(f"SYNTHETIC PETS: {warning} mean nothing for real ones", style="bold white on red")
        return synthetic_data(), True


def _download(data: Path | None = None, rounds: int = 4) -> Path:
    from petseg.data.sources import default_data_folder, get_data

    folder = data or default_data_folder()
    with progress_bar(transfer=True) as advance:
        get_data(folder, rounds=rounds, on_progress=lambda name, done, total: advance(f"download {name}", done, total))
    return folder


def open_data(folder: Path, config: "DataConfig", run: Path | None = None, trained_on: str = "") -> "Dataset":
    """Returns the dataset in a folder or an archive, with a run's splits; prints in one line what was recognised.

    `trained_on` is as of `open_dataset`.
    """
    from petseg.data.sources import open_dataset, recognise, unpacked

    recorded = None
    if run is not None:
        from petseg.training.runs import read_splits

        recorded = read_splits(run)
    _, line = recognise(unpacked(folder))
    with progress_bar() as advance:
        given = recorded.model_dump() if recorded else None
        dataset = open_dataset(folder, config, splits=given, trained_on=trained_on, on_progress=advance)
    splits = ", ".join(f"{part} {len(ids):,}" for part, ids in dataset.splits.items())
    counts = f"{_images(len(dataset.samples), dataset.unlabelled)}, {len(dataset.classes)} classes; {splits}"
    print(f"{folder}: {line}: {counts}", file=sys.stderr)
    return dataset


def _images(labelled: int, unlabelled: int) -> str:
    return f"{labelled:,} of {labelled + unlabelled:,} images have a mask" if unlabelled else plural(labelled, "image")


def run_name(recipe: str, data: Path | None) -> str:
    """Returns what a default run folder's name starts with: the recipe's name, or the data's where they are no pets."""
    from petseg.data import oxford_pets
    from petseg.data.sources import find_data, recognise, unpacked

    place = find_data(data)
    folder = place and unpacked(place)
    if folder is None or recognise(folder)[0] is oxford_pets:
        return Path(recipe).stem
    return folder.resolve().name + ("" if recipe == "default" else f"-{Path(recipe).stem}")


def prepare_data(folder: Path, config: "DataConfig", run: Path | None = None) -> "Prepared":
    """Returns the prepared dataset, with a run's splits; prints a warning about each sample left out."""
    from petseg.data.cache import prepare
    from petseg.data.geometry import Geometry
    from petseg.data.oxford_pets import UNOFFICIAL

    dataset, geometry = open_data(folder, config, run), Geometry.of(config)
    with progress_bar() as advance:
        prepared = prepare(dataset, geometry, on_progress=partial(advance, f"prepare {geometry}"))
    if run is not None:
        _warn_of_names(run, folder, prepared)
    if dataset.provenance == UNOFFICIAL:
        print(f"petseg: warning: {folder}: {UNOFFICIAL}; figures are of these images", file=sys.stderr)
    for name, reason in islice(prepared.left_out.items(), SHOWN):
        print(f"petseg: left out: {name}: {reason.removeprefix(f'{name}: ')}", file=sys.stderr)
    if (more := len(prepared.left_out) - SHOWN) > 0:
        print(f"petseg: left out: {more:,} more; `petseg data check` lists them", file=sys.stderr)
    return prepared


def _warn_of_names(run: Path, folder: Path, prepared: "Prepared") -> None:
    """Warns where images that lie elsewhere have a run's splits by their names alone."""
    from petseg.training.runs import read_data, read_place, read_splits

    splits = read_splits(run)
    if not splits or read_place(run) == folder.resolve():
        return
    content, own = (key.partition("-")[0] for key in (prepared.key, read_data(run).key))
    if content != own and {*splits.val} & {*prepared.dataset.splits.get("val", ())}:
        what = "its names agree with those of the run's images, but the images differ; the run's splits are taken"
        print(f"petseg: warning: {folder}: {what}", file=sys.stderr)
