"""Where a dataset comes from: `open_dataset(folder, config)` takes the first source that recognises a folder.

A source is a module that reads one layout of labelled images, see `Source`.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from platformdirs import user_data_path

from petseg.config import DataConfig
from petseg.data import folder as image_folder
from petseg.data import oxford_pets
from petseg.data.cache import ADVICE, cache_root, locked
from petseg.data.dataset import Dataset, Progress
from petseg.data.download import ARCHIVES, download
from petseg.data.formats import coco, cvat, label_studio, labelme, voc
from petseg.data.splits import with_splits
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
    return default if all((default / archive.name).is_file() for archive in ARCHIVES) else None


def get_data(folder: Path, *, on_progress: Callable[[str, int, int], None] | None = None, rounds: int = 4) -> None:
    """Downloads the two official archives into a folder; `on_progress` gets (archive's name, bytes here, in all)."""
    with locked(folder / "get", "data folder", "choose another with --data"):
        for archive in ARCHIVES:
            download(archive, folder, on_progress=on_progress and partial(on_progress, archive.name), rounds=rounds)


def synthetic_data() -> Path:
    """Returns a folder of synthetic pets in the official layout, drawn at the first call."""
    target = cache_root() / "synthetic_pets" / f"{SYNTHETIC_PER_BREED}-v{SYNTHETIC_VERSION}"
    with locked(target), disk_errors(f"cache {target}", ADVICE):
        if not target.is_dir():
            with new_folder(target) as unfinished:
                make_pets(unfinished, per_breed=SYNTHETIC_PER_BREED, breeds=37)
    return target


def recognise(folder: Path) -> tuple[Source, str]:
    """Returns the first source that recognises a folder, and its line on it."""
    if not folder.is_dir():
        raise PetsegError(
            f"data folder {folder}: not a folder; run `petseg data get`, or point --data or PETSEG_DATA at one"
        )
    for source in SOURCES:
        if line := source.recognise(folder):
            return source, line
    wanted = "; or ".join(source.WANTED for source in SOURCES)
    strange = next((f" ({path.name} is none of its formats)" for path in sorted(folder.glob("*.json"))), "")
    raise PetsegError(f"data folder {folder}: no labelled images that petseg knows{strange}; wanted {wanted}")


def open_dataset(folder: Path, config: DataConfig | None = None, *, on_progress: Progress | None = None) -> Dataset:
    """Returns the dataset in a folder of any layout of `SOURCES`, with the splits that it brings or that are drawn.

    `on_progress` gets (labels read, of all). Raises `PetsegError` where no source recognises the folder, and what
    the sources and `with_splits` raise.
    """
    config = config or DataConfig()
    return with_splits(open_as_given(folder, config, on_progress), config, on_progress)


def open_as_given(folder: Path, config: DataConfig | None = None, on_progress: Progress | None = None) -> Dataset:
    """As `open_dataset`, with only the splits that the data bring."""
    source, _ = recognise(folder)
    return source.open_folder(folder, config or DataConfig(), on_progress)
