"""The prepared cache: a dataset decoded and resized once, as memory-mapped uint8 arrays of images and class ids.

It is keyed by the content of the dataset and by the size, and appears under its name only when it is complete.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap
from PIL import Image
from platformdirs import user_cache_path

from petseg.data.dataset import Dataset, Progress, Sample, UInt8
from petseg.data.images import draft_side, open_sample, outcomes, resize_ids
from petseg.errors import PetsegError, disk_errors
from petseg.storage import new_folder, write_text

CACHE_VERSION = 3  # raised when the content of a cache changes for the same key
ADVICE = "free some space or set PETSEG_CACHE"
Found = TypeVar("Found")


@dataclass(frozen=True)
class Work(Generic[Found]):
    """What `remembered` keeps: how its text is made, which takes time, and read; `ValueError` where it is damaged."""

    make: Callable[[], str]
    read: Callable[[str], Found]


def cache_root() -> Path:
    """Returns where caches lie: PETSEG_CACHE, else the operating system's place for them."""
    named = os.environ.get("PETSEG_CACHE")
    return Path(named) if named else user_cache_path("petseg", appauthor=False)


@contextmanager
def locked(target: Path, kind: str = "cache", advice: str = ADVICE) -> Iterator[None]:
    """Keeps other processes from making `target` during the block; errors call its folder a `kind`."""
    with disk_errors(f"{kind} {target.parent}", advice):
        target.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(f"{target}.lock").acquire()
    with held:
        yield


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset; row i of every field is one sample, in the order of the sorted ids."""

    dataset: Dataset
    folder: Path
    size: int
    images: UInt8  # [N, size, size, 3] RGB, memory-mapped; resized to a square, antialiased
    labels: UInt8  # [N, size, size] class ids, 255 ignored, memory-mapped; nearest
    samples: tuple[Sample, ...]
    left_out: dict[str, str]  # sample id -> reason, for samples that could not be used
    notes: dict[str, tuple[str, ...]]  # sample id -> what was unusual and how it was handled
    largest_side: int  # of all images as they lie on disk, in pixels

    @property
    def key(self) -> str:
        """Names the content of the images, their labels, size and splits, and the cache's version."""
        splits = json.dumps({name: list(ids) for name, ids in self.dataset.splits.items()}, sort_keys=True)
        return f"{self.folder.name}-{hashlib.sha256(splits.encode()).hexdigest()[:8]}"

    def rows(self, ids: Iterable[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Returns the row of each sample id, int64 [n]; ids that were left out are skipped."""
        row_of = {sample.id: row for row, sample in enumerate(self.samples)}
        return np.array([row_of[sample_id] for sample_id in ids if sample_id in row_of], np.int64)


def prepare(dataset: Dataset, size: int, *, on_progress: Progress | None = None) -> Prepared:
    """Returns a dataset prepared at `size` pixels a side, made at the first call and read at the next.

    A second process waits and reads the first one's work; a damaged cache is made again, with a warning. Raises
    `PetsegError` where no sample can be used, the dataset must not train as it is, or the disk is full.
    """
    if dataset.refusal:
        raise PetsegError(dataset.refusal)
    target = cache_root() / "prepared" / f"{content_key(dataset)[:16]}-{size}-v{CACHE_VERSION}"
    with locked(target):
        if (target / "index.json").is_file():
            try:
                return _read_cache(target, dataset)
            except PetsegError as error:
                logging.getLogger("petseg").warning("petseg: warning: %s; preparing it again", error)
        with disk_errors(f"cache {target.parent}", ADVICE):
            _write_cache(target, dataset, size, on_progress)
        return _read_cache(target, dataset)


def _write_cache(target: Path, dataset: Dataset, size: int, on_progress: Progress | None) -> None:
    if target.exists():
        shutil.rmtree(target)  # damaged
    with new_folder(target) as unfinished:
        count = len(dataset.samples)
        needed, free = count * size * size * 4, shutil.disk_usage(unfinished).free
        if free < needed:
            raise PetsegError(
                f"cache {target.parent}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB wanted; {ADVICE}"
            )
        arrays = []
        for name, shape in (("images.npy", (count, size, size, 3)), ("labels.npy", (count, size, size))):
            arrays.append(open_memmap(unfinished / name, "w+", np.uint8, shape))
            if hasattr(os, "posix_fallocate"):  # a disk that fills under a memory map kills the process
                with (unfinished / name).open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
        images, labels = arrays

        def decode(sample: Sample) -> tuple[UInt8, UInt8, tuple[str, ...], int]:
            opened = open_sample(dataset, sample, draft=draft_side(size))
            image = opened.image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
            return np.asarray(image), resize_ids(opened.ids, (size, size)), opened.notes, max(opened.ids.shape)

        rows: list[dict[str, object]] = []
        left_out: dict[str, str] = {}
        largest_side = 0
        for sample, decoded in outcomes(decode, dataset.samples, on_progress):
            if isinstance(decoded, str):
                left_out[sample.id] = decoded
            else:
                images[len(rows)], labels[len(rows)], notes, side = decoded
                largest_side = max(largest_side, side)
                rows.append({"id": sample.id, "notes": notes})
        if not rows:
            reason = next(iter(left_out.values()), "there are none")
            raise PetsegError(f"{dataset.name}: none of {len(dataset.samples)} images can be used (first: {reason})")
        images.flush()
        labels.flush()
        del images, labels, arrays
        index = {"size": size, "rows": rows, "left_out": left_out, "largest_side": largest_side}
        (unfinished / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _read_cache(target: Path, dataset: Dataset) -> Prepared:
    try:
        index = json.loads((target / "index.json").read_text(encoding="utf-8"))
        count, size = len(index["rows"]), index["size"]
        images, labels = (np.load(target / f"{name}.npy", mmap_mode="r")[:count] for name in ("images", "labels"))
        if images.shape != (count, size, size, 3) or labels.shape != (count, size, size):
            raise ValueError(f"arrays of {images.shape} and {labels.shape} for {count} images of {size} px")
        return Prepared(
            dataset=dataset,
            folder=target,
            size=size,
            images=images,
            labels=labels,
            samples=tuple(dataset.by_id[row["id"]] for row in index["rows"]),
            left_out=index["left_out"],
            largest_side=int(index["largest_side"]),
            notes={row["id"]: tuple(row["notes"]) for row in index["rows"] if row["notes"]},
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PetsegError(f"cache {target} is damaged ({error})") from None


def remembered(kind: str, head: str, files: Iterable[Path], work: Work[Found]) -> Found:
    """Returns what `work` makes of files, kept as text under their paths, sizes and times: unchanged, it is read."""
    stamp = hashlib.sha256(f"{head}\n".encode())
    for path in files:
        with suppress(OSError):  # it is gone: `open_sample` will leave it out by name
            status = path.stat()
            stamp.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    memo = cache_root() / kind / stamp.hexdigest()[:32]
    with suppress(OSError, ValueError):  # not there, or damaged
        return work.read(memo.read_text(encoding="utf-8"))
    text = work.make()
    with suppress(PetsegError):  # it saves time alone
        write_text(memo, text)
    return work.read(text)


def content_key(dataset: Dataset) -> str:
    """Returns the SHA-256 (hex) over every sample's id and bytes, and what its class ids depend on beside them."""
    head = f"{[entry.name for entry in dataset.classes]} {dataset.fingerprint}"

    def make() -> str:
        digests = [digest for _, digest in outcomes(_digest, dataset.samples)]
        return hashlib.sha256("\n".join([head, *digests]).encode()).hexdigest()

    def read(text: str) -> str:
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise ValueError(f"{text[:80]!r} is no key")
        return text

    files = (path for sample in dataset.samples for path in (sample.image, sample.label))
    return remembered("content_keys", f"{head} {[sample.id for sample in dataset.samples]}", files, Work(make, read))


def _digest(sample: Sample) -> str:
    try:
        image, label = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (sample.image, sample.label))
    except OSError:
        return f"{sample.id} unreadable"
    return f"{sample.id} {image} {label}"
