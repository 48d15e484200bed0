"""Where a dataset comes from: `open_dataset(folder, config)` recognises what lies in a folder and reads it."""

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from platformdirs import user_data_path

from petseg.config import DataConfig
from petseg.data.archive import extract
from petseg.data.cache import ADVICE, cache_root, locked
from petseg.data.dataset import Dataset
from petseg.data.download import ARCHIVES, download, is_official
from petseg.data.oxford_pets import open_oxford_pets
from petseg.data.synthetic import make_pets
from petseg.errors import PetsegError, disk_errors
from petseg.storage import new_folder, write_text

OFFICIAL = "the official archives"
UNOFFICIAL = "archives with other checksums than the official ones (a reduced or mirrored copy)"
FOLDER = "a folder in the official layout (its files are not checked against the official checksums)"
SYNTHETIC = "synthetic pets, drawn by petseg"
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


def open_dataset(folder: Path, config: DataConfig | None = None) -> Dataset:
    """Returns the dataset in a folder of the official layout, or of its two archives, unpacked once into the cache."""
    options = (config or DataConfig()).oxford_pets
    if not folder.is_dir():
        raise PetsegError(
            f"data folder {folder}: not a folder; run `petseg data get`, or point --data or PETSEG_DATA at one"
        )
    if (folder / "images").is_dir() or (folder / "annotations").is_dir():
        synthetic = (cache_root() / "synthetic_pets").resolve() in folder.resolve().parents
        return open_oxford_pets(folder, options, provenance=SYNTHETIC if synthetic else FOLDER)
    names = {archive.name: (archive.name, archive.name.removesuffix(".gz")) for archive in ARCHIVES}
    found = {name: [folder / file for file in files if (folder / file).is_file()] for name, files in names.items()}
    if missing := " and ".join(name for name, paths in found.items() if not paths):
        raise PetsegError(
            f"data folder {folder}: {missing} missing; wanted images/ and annotations/, or the two archives: "
            "run `petseg data get`"
        )
    archives = [paths[0] for paths in found.values()]
    stamp = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in archives]
    target = cache_root() / "extracted" / hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:16]
    memo = target.with_name(f"{target.name}.official")  # the checksum of 800 MB takes seconds
    with locked(target):
        extract(archives, target)
        known = memo.read_bytes() if memo.is_file() else b""
        if known not in (b"true", b"false"):
            official = all(is_official(path, archive) for path, archive in zip(archives, ARCHIVES, strict=True))
            known = b"true" if official else b"false"
            write_text(memo, known.decode())
    official = known == b"true"
    return open_oxford_pets(target, options, provenance=OFFICIAL if official else UNOFFICIAL, official=official)
