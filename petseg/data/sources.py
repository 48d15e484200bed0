"""Where a dataset comes from: `open_dataset(folder, config)` takes the first source that recognises a folder.

A source is a module that reads one layout of labelled images, see `Source`.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from platformdirs import user_data_path

from petseg.config import DataConfig
from petseg.data import archive, oxford_pets
from petseg.data import folder as image_folder
from petseg.data.cache import ADVICE, cache_root, locked
from petseg.data.dataset import Dataset, Progress, with_groups
from petseg.data.download import ARCHIVES, download
from petseg.data.formats import coco, cvat, label_studio, labelme, voc
from petseg.data.splits import of_others, with_recorded, with_splits
from petseg.data.synthetic import make_pets
from petseg.errors import PetsegError, disk_errors
from petseg.storage import new_folder


class Source(Protocol):
    """What a module offers that reads one layout."""

    WANTED: str  # the layout in a few words, as the error for an unknown folder lists it

    def recognise(self, folder: Path) -> str | None:
        """Returns what a folder is, in one line without its path, or None; by names and the first bytes of files."""

    def open_folder(self, folder: Path, config: DataConfig, on_progress: Progress | None) -> Dataset:
        """Returns the dataset in a folder that `recognise` took; `on_progress` where every label must be read."""


# asked in this order: folders of images and masks may hold annotations too
SOURCES: tuple[Source, ...] = (oxford_pets, voc, coco, cvat, label_studio, labelme, image_folder)
SYNTHETIC_PER_BREED = 20  # of the set that `petseg compare --quick` falls back to: 740 images in all, in seconds
SYNTHETIC_VERSION = 4  # raised when the drawings change


def default_data_folder() -> Path:
    """Returns where `petseg data get` puts the archives by default."""
    return user_data_path("petseg", appauthor=False) / "oxford-iiit-pet"


def find_data(given: Path | None) -> Path | None:
    """Returns the data folder: `given`, else PETSEG_DATA, else what `petseg data get` downloaded, else None."""
    if given is not None:
        return given
    if named := os.environ.get("PETSEG_DATA"):
        return Path(named)
    default = default_data_folder()
    return default if all((default / file.name).is_file() for file in ARCHIVES) else None


def get_data(folder: Path, *, on_progress: Callable[[str, int, int], None] | None = None, rounds: int = 4) -> None:
    """Downloads the two official archives into a folder; `on_progress` gets (archive's name, bytes here, in all)."""
    with locked(folder / "get", "data folder", "choose another (--data)"):
        for file in ARCHIVES:
            download(file, folder, on_progress=on_progress and partial(on_progress, file.name), rounds=rounds)


def synthetic_data() -> Path:
    """Returns a folder of synthetic pets in the official layout, drawn at the first call."""
    target = cache_root() / oxford_pets.SYNTHETIC_FOLDER / f"{SYNTHETIC_PER_BREED}-v{SYNTHETIC_VERSION}"
    with locked(target), disk_errors(f"cache {target}", ADVICE):
        if not target.is_dir():
            with new_folder(target) as unfinished:
                make_pets(unfinished, per_breed=SYNTHETIC_PER_BREED, breeds=37)
    return target


def unpacked(place: Path) -> Path:
    """Returns a data folder: `place` itself, or the folder in an archive, unpacked once into the cache."""
    if not place.is_file() or not place.name.lower().endswith(archive.SUFFIXES):
        return place
    status = place.stat()
    stamp = hashlib.sha256(f"{place.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    target = cache_root() / "extracted" / stamp / re.sub(r"(\.tar)?\.\w+$", "", place.name)
    with locked(target):
        archive.extract([place], target, "unpack it yourself and name the folder")
    inside = [path for path in target.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


def recognise(folder: Path) -> tuple[Source, str]:
    """Returns the first source that recognises a folder, and its line on it."""
    if not folder.is_dir():
        raise PetsegError(
            f"data folder {folder}: not a folder; run `petseg data get`, or name one (--data, PETSEG_DATA) or "
            f"an archive ({', '.join(archive.SUFFIXES)})"
        )
    for source in SOURCES:
        if line := source.recognise(folder):
            return source, line
    wanted = "; or ".join(source.WANTED for source in SOURCES)
    folders = [f"{path.name}/" for path in sorted(folder.glob("[!.]*")) if path.is_dir()]
    strange = f" (it holds {', '.join(folders[:3])})" if folders else ""
    strange = next((f" ({path.name} is none of its formats)" for path in sorted(folder.glob("*.json"))), strange)
    raise PetsegError(f"data folder {folder}: no labelled images that petseg knows{strange}; wanted {wanted}")


def open_dataset(
    place: str | Path,
    config: DataConfig | None = None,
    *,
    splits: Mapping[str, Sequence[str]] | None = None,
    trained_on: str = "",
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Dataset:
    """Returns the dataset in a folder of any layout of `SOURCES` or in an archive of one.

    Splits are those that the folder brings, else drawn. To score a run they are its `splits`. Of other images than the
    run's, or than the dataset of the name that a model's file was `trained_on`, see `splits.of_others`.
    `on_progress` gets (what is done, done, total). Raises `PetsegError` where no source recognises it, and what the
    sources and `with_splits` raise.
    """
    config = config or DataConfig()
    dataset = open_as_given(place, config, on_progress and partial(on_progress, "read labels"))
    if config.groups:
        dataset = with_groups(dataset, config.groups)
    if splits is not None:
        return with_recorded(dataset, splits) or of_others(dataset)
    if trained_on not in ("", dataset.name):
        return of_others(dataset)
    return with_splits(dataset, config, on_progress and partial(on_progress, "look for near-duplicates"))


def open_as_given(place: str | Path, config: DataConfig | None = None, on_progress: Progress | None = None) -> Dataset:
    """As `open_dataset`, with only the splits that the data bring."""
    place = Path(place)
    folder = unpacked(place)
    source, _ = recognise(folder)
    dataset = source.open_folder(folder, config or DataConfig(), on_progress)
    return replace(dataset, place=place.resolve())
