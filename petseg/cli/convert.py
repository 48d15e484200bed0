"""`petseg data convert | merge`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petseg.cli.options import SetOption, data_config
from petseg.cli.terminal import progress_bar
from petseg.errors import PetsegError
from petseg.units import plural

if TYPE_CHECKING:
    from petseg.data.dataset import Dataset

FORMAT_HELP = "png (images/, masks/, classes.toml), coco, cvat, voc or labelme."
POLYGONS_HELP = "Write outlines instead of run lengths; of coco and cvat."
UNSPLIT = "without splits, so training draws them anew and former scores do not compare; --splits RUN keeps a run's"
SPLITS_HELP = "Folder of a run or a comparison: its images keep their splits, new ones train."
OutOption = Annotated[Path, typer.Option(help="New folder to write to.", show_default=False)]
SplitsOption = Annotated[Path | None, typer.Option("--splits", help=SPLITS_HELP, show_default=False)]


def convert(
    data: Annotated[Path, typer.Argument(help="Folder or archive of labelled images, of any layout.")],
    out: OutOption,
    kind: Annotated[str, typer.Option("--format", help=FORMAT_HELP)] = "png",
    polygons: Annotated[bool, typer.Option("--polygons", help=POLYGONS_HELP)] = False,
    splits: SplitsOption = None,
    settings: SetOption = None,
) -> None:
    """Write a dataset in another format, with images and splits. Exit code 1 if something is left out."""
    from petseg.data.formats.convert import check_request
    from petseg.data.formats.convert import convert as write

    check_request(out, kind, polygons=polygons)
    (dataset,) = _opened([data], settings, splits)
    with progress_bar() as advance:
        written, left_out = write(dataset, out, kind, polygons=polygons, on_progress=partial(advance, "convert"))
    print(f"{out}: {plural(written, 'image')} as {kind}")
    _say_left_out(left_out)


def merge(
    data: Annotated[list[Path], typer.Argument(help="Folders of labelled images with the same classes.")],
    out: OutOption,
    splits: SplitsOption = None,
    settings: SetOption = None,
) -> None:
    """Write several datasets as one folder of images and masks. The later label of the same image wins."""
    from petseg.data.formats.convert import check_request
    from petseg.data.formats.convert import convert as write
    from petseg.data.formats.merge import merge as merged

    check_request(out, "png")
    if len(data) < 2:
        raise PetsegError(f"{data[0]} alone was given; name at least two folders to merge")
    datasets = _opened(data, settings, splits)
    with progress_bar() as advance:
        found = merged(datasets, on_progress=partial(advance, "compare images"))
        written, left_out = write(found.dataset, out, "png", on_progress=partial(advance, "write"))
    sizes = ", ".join(f"{part} {len(ids):,}" for part, ids in found.dataset.splits.items()) or "none"
    print(f"{out}: {plural(written, 'image')}; splits: {sizes}")
    if not found.dataset.splits:
        print(f"petseg: warning: {out}: {UNSPLIT}", file=sys.stderr)
    if found.relabelled:
        print(f"{plural(len(found.relabelled), 'image')} with the later label: {_some(found.relabelled)}")
    if found.renamed:
        pairs = [f"{old} -> {new}" for old, new in found.renamed.items()]
        print(f"{plural(len(pairs), 'image')} renamed: {_some(pairs)}")
    _say_left_out(left_out)


def _opened(folders: Sequence[Path], settings: Sequence[str] | None, run: Path | None) -> list[Dataset]:
    from petseg.data.sources import open_as_given, recognise, unpacked
    from petseg.data.splits import continued
    from petseg.training.runs import read_splits

    recorded = read_splits(run) if run else None
    if run and not recorded:
        raise PetsegError(f"--splits {run}: no splits.json in it; name the folder of a run or a comparison")
    config, datasets = data_config(settings), []
    for folder in folders:
        _, line = recognise(unpacked(folder))
        with progress_bar() as advance:
            datasets.append(open_as_given(folder, config, partial(advance, "read labels")))
        print(f"petseg: {folder}: {line}", file=sys.stderr)
    return continued(datasets, recorded.model_dump()) if recorded else datasets


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f", ... (+{len(names) - 6})" if len(names) > 6 else "")


def _say_left_out(left_out: Mapping[str, str]) -> None:
    for name, reason in left_out.items():
        print(f"petseg: left out: {name}: {reason.removeprefix(f'{name}: ')}", file=sys.stderr)
    if left_out:
        raise typer.Exit(1)
