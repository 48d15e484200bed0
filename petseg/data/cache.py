"""The prepared cache: the data set decoded and resized once, as memory-mapped uint8 arrays.

No loader stands on the training path: a batch is an index into these arrays. Labels are kept as trimaps, so one cache
serves every task. A cache is keyed by the content of the data folder and by the size; it appears under its name only
when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap
from PIL import Image
from platformdirs import user_cache_path, user_data_path

from petseg.data.archive import extract
from petseg.data.download import ANNOTATIONS, ARCHIVES, IMAGES, download, is_official
from petseg.data.oxford_pets import Contents, Pet, UInt8, draft_side, open_pair, read_contents
from petseg.data.synthetic import make_pets
from petseg.errors import PetsegError

CACHE_VERSION = 2
"""Raised when the content of a cache changes for the same key."""

UNOFFICIAL = "archives with other checksums than the official ones (a reduced or mirrored copy)"
"""The source of such data; the command line says it in one line of warning."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def cache_root() -> Path:
    """Returns where caches lie: PETSEG_CACHE, else the operating system's place for them."""
    named = os.environ.get("PETSEG_CACHE")
    return Path(named) if named else user_cache_path("petseg", appauthor=False)


def default_data_folder() -> Path:
    """Returns where `petseg data get` puts the archives unless told otherwise."""
    return user_data_path("petseg", appauthor=False) / "oxford-iiit-pet"


MADE_PER_BREED = 20
"""Pictures of each breed in the made set that `petseg compare --quick` falls back to: 740 in all, drawn in seconds."""


def find_data(given: Path | None) -> Path | None:
    """Returns the data folder: `given`, else PETSEG_DATA, else what `petseg data get` downloaded, else None."""
    if given is not None:
        return given
    if named := os.environ.get("PETSEG_DATA"):
        return Path(named)
    default = default_data_folder()
    return default if all((default / archive.name).is_file() for archive in ARCHIVES) else None


def get_data(folder: Path, *, on_progress: Callable[[str, int, int], None] | None = None, rounds: int = 4) -> None:
    """Downloads the two official archives into a folder; what is there and verified stays.

    Args:
        folder: made when it is missing.
        on_progress: called with (archive's name, bytes here, bytes in all).
        rounds: how often both hosts are tried.

    Raises:
        PetsegError: no host gave the files, or the folder cannot be written.
    """
    lock = FileLock(str(folder / "get.lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise PetsegError(
            f"data folder {folder}: cannot be written ({error.strerror or error}); choose another with --data"
        ) from None
    try:
        for archive in ARCHIVES:
            download(archive, folder, on_progress=on_progress and partial(on_progress, archive.name), rounds=rounds)
    finally:
        lock.release()


def made_data() -> Path:
    """Returns a folder of made pets in the official layout, drawn at the first call."""
    target = cache_root() / "made_pets" / f"{MADE_PER_BREED}-v{CACHE_VERSION}"
    with _locked(target), _writing(target):
        if not target.is_dir():
            unfinished = target.with_name(f"{target.name}.tmp")
            shutil.rmtree(unfinished, ignore_errors=True)
            make_pets(unfinished, per_breed=MADE_PER_BREED, breeds=37)
            unfinished.rename(target)
    return target


def open_data(folder: Path) -> tuple[Contents, str]:
    """Returns what a data folder holds, and where it came from in words.

    The folder is in the official layout, or holds the two archives (.tar.gz or .tar), which are then unpacked once into
    the cache.

    Raises:
        PetsegError: neither is there, or an archive is damaged.
    """
    if not folder.is_dir():
        raise PetsegError(
            f"data folder {folder}: not a folder; run `petseg data get`, or point --data or PETSEG_DATA at one"
        )
    if (folder / "images").is_dir() or (folder / "annotations").is_dir():
        return read_contents(folder), "a folder in the official layout"
    found = [_archive_in(folder, archive.name) for archive in (IMAGES, ANNOTATIONS)]
    archives = [path for path in found if path is not None]
    if len(archives) < 2:
        missing = " and ".join(archive.name for archive, path in zip(ARCHIVES, found, strict=True) if path is None)
        raise PetsegError(
            f"data folder {folder}: {missing} missing; wanted images/ and annotations/, or the two archives: "
            "run `petseg data get`"
        )
    stamp = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in archives]
    target = cache_root() / "extracted" / hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:16]
    checked = target.with_name(f"{target.name}.source")
    with _locked(target), _writing(target):
        if not checked.is_file():  # the checksum of 800 MB takes seconds
            official = all(is_official(path, archive) for path, archive in zip(archives, ARCHIVES, strict=True))
            extract(archives, target)
            told = "the official archives" if official else UNOFFICIAL
            _write_text(checked, told)
    return read_contents(target), checked.read_text(encoding="utf-8")


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.tmp{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _archive_in(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / name.removesuffix(".gz"))
    return next((path for path in candidates if path.is_file()), None)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Tells an OSError in one line."""
    try:
        yield
    except OSError as error:
        raise PetsegError(f"cache {place}: {error.strerror or error}; free some space or set PETSEG_CACHE") from None


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    with _writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(target) + ".lock")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Prepared:
    """A prepared data set; row i of every field is one picture, in the order of the sorted names."""

    folder: Path
    size: int
    images: UInt8
    """[N, size, size, 3] RGB, memory-mapped; squeezed to a square, antialiased."""
    trimaps: UInt8
    """[N, size, size] of 1 pet, 2 background, 3 border, memory-mapped; nearest."""
    pets: tuple[Pet, ...]
    left_out: dict[str, str]
    """Name -> reason, for pairs that could not be used."""
    notes: dict[str, tuple[str, ...]]
    """Name -> what was found and mended."""
    source: str
    all_listed: dict[str, str]
    """Every pair's name, the left-out ones too -> "trainval", "test" or "none"."""

    @property
    def key(self) -> str:
        """Names the content of the pictures, their size and the cache's version."""
        return self.folder.name

    @property
    def species(self) -> UInt8:
        """[N] of 1 cat, 2 dog."""
        return np.array([pet.species for pet in self.pets], np.uint8)

    def rows(self, names: list[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Returns the row of each name, int64 [len(names)]; names that were left out are passed over."""
        row_of = {pet.name: row for row, pet in enumerate(self.pets)}
        return np.array([row_of[name] for name in names if name in row_of], np.int64)


def prepare(folder: Path, size: int, *, on_progress: Progress | None = None, workers: int | None = None) -> Prepared:
    """Returns the prepared data set of a data folder, made at the first call and found at the next.

    Pictures are decoded by a thread for each core (Pillow releases the interpreter lock). Two processes may call at
    once: the second waits and finds the first one's work. A killed call leaves nothing under the cache's name. A cache
    that is damaged is made again, and that is said.

    Args:
        folder: the data folder (`open_data` says which forms it may have).
        size: side of the square in pixels.
        on_progress: called with (done, total) pictures.
        workers: threads; None takes one a core.

    Raises:
        PetsegError: the folder is not usable, no pair in it is, or the disk is full.
    """
    contents, source = open_data(folder)
    key = f"{content_key(contents)[:16]}-{size}-v{CACHE_VERSION}"
    target = cache_root() / "prepared" / key
    with _locked(target):
        if (target / "index.json").is_file():
            try:
                return _read_cache(target, contents, source)
            except PetsegError as error:
                logging.getLogger("petseg").warning("petseg: warning: %s; preparing it again", error)
        with _writing(target.parent):
            _write_cache(contents, size, target, on_progress, workers)
        return _read_cache(target, contents, source)


def _write_cache(
    contents: Contents, size: int, target: Path, on_progress: Progress | None, workers: int | None
) -> None:
    for stale in target.parent.glob(f"{target.name}.tmp*"):
        shutil.rmtree(stale)  # of a killed process: the caller holds the lock
    if target.exists():
        shutil.rmtree(target)
    unfinished = target.with_name(f"{target.name}.tmp{os.getpid()}")
    unfinished.mkdir(parents=True)
    total = len(contents.pets)
    needed = total * size * size * 4
    free = shutil.disk_usage(unfinished).free
    if free < needed:
        unfinished.rmdir()
        raise PetsegError(
            f"cache {target.parent}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB wanted; "
            "free some space or set PETSEG_CACHE"
        )
    try:
        images = open_memmap(unfinished / "images.npy", "w+", np.uint8, (total, size, size, 3))
        trimaps = open_memmap(unfinished / "trimaps.npy", "w+", np.uint8, (total, size, size))
        if hasattr(os, "posix_fallocate"):  # a disk that fills under a memory map kills the process
            for path in (unfinished / "images.npy", unfinished / "trimaps.npy"):
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        rows: list[dict[str, object]] = []
        left_out: dict[str, str] = {}
        for done, (pet, outcome) in enumerate(_decoded(contents, size, workers), start=1):
            if isinstance(outcome, str):
                left_out[pet.name] = outcome
            else:
                images[len(rows)], trimaps[len(rows)], notes = outcome
                rows.append({"name": pet.name, "notes": notes})
            if on_progress is not None:
                on_progress(done, total)
        if not rows:
            reason = next(iter(left_out.values()))
            raise PetsegError(f"data folder {contents.folder}: none of {total} pairs can be used (first: {reason})")
        images.flush()
        trimaps.flush()
        del images, trimaps
        index = {"version": CACHE_VERSION, "size": size, "rows": rows, "left_out": left_out}
        (unfinished / "index.json").write_text(json.dumps(index), encoding="utf-8")
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


Outcome = tuple[UInt8, UInt8, tuple[str, ...]] | str


CHUNK = 25
"""Pictures that a thread takes at once: handing out single ones costs a tenth of the speed."""


def _decoded(contents: Contents, size: int, workers: int | None) -> Iterator[tuple[Pet, Outcome]]:
    """Yields each pet with its arrays, or with the reason why it is left out; in order, some ahead of the reader."""
    chunks = _chunks(contents)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for pets, outcomes in zip(chunks, pool.map(partial(_decode_all, size=size), chunks), strict=True):
            yield from zip(pets, outcomes, strict=True)


def _chunks(contents: Contents) -> list[tuple[Pet, ...]]:
    return [contents.pets[start : start + CHUNK] for start in range(0, len(contents.pets), CHUNK)]


def _decode_all(pets: tuple[Pet, ...], size: int) -> list[Outcome]:
    return [_decode(pet, size) for pet in pets]


def _decode(pet: Pet, size: int) -> Outcome:
    try:
        pair = open_pair(pet, draft=draft_side(size))
    except PetsegError as error:
        return str(error)
    image = pair.image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(image), resize_labels(pair.trimap, (size, size)), pair.notes


def resize_labels(labels: UInt8, size: tuple[int, int]) -> UInt8:
    """Returns labels uint8 [H, W] at another size (height, width), nearest."""
    return np.asarray(Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _read_cache(target: Path, contents: Contents, source: str) -> Prepared:
    try:
        index = json.loads((target / "index.json").read_text(encoding="utf-8"))
        count = len(index["rows"])
        images = np.load(target / "images.npy", mmap_mode="r")[:count]
        trimaps = np.load(target / "trimaps.npy", mmap_mode="r")[:count]
        pet_of = {pet.name: pet for pet in contents.pets}
        size = index["size"]
        if images.shape != (count, size, size, 3) or trimaps.shape != (count, size, size):
            raise ValueError(f"arrays of {images.shape} and {trimaps.shape} for {count} pictures of {size} px")
        return Prepared(
            folder=target,
            size=size,
            images=images,
            trimaps=trimaps,
            pets=tuple(pet_of[row["name"]] for row in index["rows"]),
            left_out=index["left_out"],
            notes={row["name"]: tuple(row["notes"]) for row in index["rows"] if row["notes"]},
            source=source,
            all_listed={pet.name: pet.listed for pet in contents.pets},
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PetsegError(f"cache {target} is damaged ({error})") from None


def content_key(contents: Contents) -> str:
    """Returns the SHA-256 (hex) over every pair's name and bytes and its split.

    Reading hundreds of megabytes at each start would take seconds, so the answer is remembered under the files' names,
    sizes and times: an unchanged folder is known at once, a copy elsewhere is read once and finds the same cache.
    """
    stamp = hashlib.sha256()
    for pet in contents.pets:
        for path in (pet.image, pet.trimap):
            status = path.stat()
            stamp.update(f"{path} {status.st_size} {status.st_mtime_ns} {pet.listed} {pet.species}\n".encode())
    memo = cache_root() / "content_keys" / stamp.hexdigest()[:32]
    if memo.is_file() and re.fullmatch("[0-9a-f]{64}", known := memo.read_text(encoding="ascii", errors="replace")):
        return known
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_digests, _chunks(contents))
        key = hashlib.sha256("\n".join(chain.from_iterable(digests)).encode()).hexdigest()
    with _writing(memo.parent):
        memo.parent.mkdir(parents=True, exist_ok=True)
        _write_text(memo, key)
    return key


def _digests(pets: tuple[Pet, ...]) -> list[str]:
    return [_pair_digest(pet) for pet in pets]


def _pair_digest(pet: Pet) -> str:
    try:
        image = hashlib.sha256(pet.image.read_bytes()).hexdigest()
        trimap = hashlib.sha256(pet.trimap.read_bytes()).hexdigest()
    except OSError:  # `open_pair` will leave it out by name
        return f"{pet.name} unreadable"
    return f"{pet.name} {pet.listed} {pet.species} {image} {trimap}"
