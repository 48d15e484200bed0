"""The prepared cache: a dataset decoded and resized once, as memory-mapped uint8 arrays of images and class ids.

It is keyed by the content of the dataset and by the geometry, and appears under its name only when it is complete.
Images of fit crop have many sizes: their pixels lie one image behind the other, and the index holds each one's size.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap
from platformdirs import user_cache_path

from petseg.data.dataset import Dataset, Progress, Sample, UInt8
from petseg.data.geometry import Geometry, Size
from petseg.data.images import open_label, open_sample, opened, outcomes
from petseg.errors import PetsegError, disk_errors
from petseg.storage import new_folder, sha256, write_text

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
    geometry: Geometry
    images: UInt8  #: [N, size, size, 3] RGB, of fit crop [pixels of all, 3]; memory-mapped; resized with antialiasing
    labels: UInt8  #: [N, size, size] class ids, 255 ignored, of fit crop [pixels of all]; memory-mapped; nearest
    contents: tuple[Size, ...]  #: how much of each is image, from the top left; the rest is padding
    samples: tuple[Sample, ...]
    left_out: dict[str, str]  #: sample id -> reason, for samples that could not be used
    notes: dict[str, tuple[str, ...]]  #: sample id -> what was unusual and how it was handled
    largest_side: int  #: of all images as they lie on disk, in pixels

    @property
    def size(self) -> int:
        """Side in pixels of the square that a model sees."""
        return self.geometry.size

    @cached_property
    def places(self) -> tuple[tuple[int, Size], ...]:
        """Where each image of fit crop begins in the pixels of all, and the height and width that it takes there."""
        sizes = [self.geometry.canvas(content) for content in self.contents]
        ends = accumulate((height * width for height, width in sizes), initial=0)
        return tuple(zip(ends, sizes, strict=False))

    def image(self, row: int) -> UInt8:
        """Returns an image, uint8 [h, w, 3]."""
        return _part(self.images, *self.places[row]) if self.geometry.fit == "crop" else self.images[row]

    def label(self, row: int) -> UInt8:
        """Returns a label, uint8 [h, w]."""
        return _part(self.labels, *self.places[row]) if self.geometry.fit == "crop" else self.labels[row]

    @property
    def key(self) -> str:
        """Names the content of the images, their labels, size and splits, and the cache's version."""
        splits = json.dumps({name: list(ids) for name, ids in self.dataset.splits.items()}, sort_keys=True)
        return f"{self.folder.name}-{hashlib.sha256(splits.encode()).hexdigest()[:8]}"

    def rows(self, ids: Iterable[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Returns the row of each sample id, int64 [n]; ids that were left out are skipped."""
        row_of = {sample.id: row for row, sample in enumerate(self.samples)}
        return np.array([row_of[sample_id] for sample_id in ids if sample_id in row_of], np.int64)


def _part(pixels: UInt8, start: int, size: Size) -> UInt8:
    return pixels[start : start + size[0] * size[1]].reshape(*size, *pixels.shape[1:])


def prepare(dataset: Dataset, geometry: Geometry | int, *, on_progress: Progress | None = None) -> Prepared:
    """Returns a dataset prepared in a geometry (a number: squares of that side), made at the first call, then read.

    A second process waits and reads the first one's work; a damaged cache is made again, with a warning. Raises
    `PetsegError` where no sample can be used, the dataset must not train as it is, or the disk is full.
    """
    if dataset.refusal:
        raise PetsegError(dataset.refusal)
    if isinstance(geometry, int):
        geometry = Geometry(geometry)
    target = cache_root() / "prepared" / f"{content_key(dataset)[:16]}-{geometry.name}-v{CACHE_VERSION}"
    with locked(target):
        if (target / "index.json").is_file():
            try:
                return _read_cache(target, dataset, geometry)
            except PetsegError as error:
                logging.getLogger("petseg").warning("petseg: warning: %s; preparing it again", error)
        with disk_errors(f"cache {target.parent}", ADVICE):
            _write_cache(target, dataset, geometry, on_progress)
        return _read_cache(target, dataset, geometry)


def _write_cache(target: Path, dataset: Dataset, geometry: Geometry, on_progress: Progress | None) -> None:
    if target.exists():
        shutil.rmtree(target)  # damaged
    with new_folder(target) as unfinished:
        shape = _shape(dataset, geometry)
        needed, free = math.prod(shape) * 4, shutil.disk_usage(unfinished).free
        if free < needed:
            raise PetsegError(
                f"cache {target.parent}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB wanted; {ADVICE}"
            )
        arrays = []
        for name, of_array in (("images.npy", (*shape, 3)), ("labels.npy", shape)):
            arrays.append(open_memmap(unfinished / name, "w+", np.uint8, of_array))
            if hasattr(os, "posix_fallocate"):  # a disk that fills under a memory map kills the process
                with (unfinished / name).open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END))
        images, labels = arrays

        def decode(sample: Sample) -> tuple[UInt8, UInt8, tuple[str, ...], Size]:
            opened = open_sample(dataset, sample, draft=geometry.draft)
            own = opened.ids.shape[0], opened.ids.shape[1]
            return geometry.image(opened.image, own), geometry.ids(opened.ids), opened.notes, own

        rows: list[dict[str, object]] = []
        left_out: dict[str, str] = {}
        largest_side = filled = 0
        for sample, decoded in outcomes(decode, dataset.samples, on_progress):
            if isinstance(decoded, str):
                left_out[sample.id] = decoded
            else:
                image, label, notes, own = decoded
                images.reshape(-1, 3)[filled : filled + label.size] = image.reshape(-1, 3)
                labels.reshape(-1)[filled : filled + label.size] = label.reshape(-1)
                filled += label.size
                largest_side = max(largest_side, *own)
                rows.append({"id": sample.id, "notes": notes, "content": geometry.content(own)})
        if not rows:
            reason = next(iter(left_out.values()), "there are none")
            raise PetsegError(f"{dataset.name}: none of {len(dataset.samples)} images can be used (first: {reason})")
        images.flush()
        labels.flush()
        del images, labels, arrays
        index = {"size": geometry.size, "rows": rows, "left_out": left_out, "largest_side": largest_side}
        (unfinished / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _shape(dataset: Dataset, geometry: Geometry) -> tuple[int, ...]:
    """Returns the shape of all labels, if all can be used."""
    if geometry.fit != "crop":
        return len(dataset.samples), geometry.size, geometry.size

    def pixels(sample: Sample) -> int:
        with opened(sample.image, f"{sample.id}: image") as file:
            return math.prod(geometry.canvas(geometry.content((file.height, file.width))))

    counts = [count for _, count in outcomes(pixels, dataset.samples) if isinstance(count, int)]
    return (max(1, sum(counts)),)  # an empty file cannot be mapped


def _read_cache(target: Path, dataset: Dataset, geometry: Geometry) -> Prepared:
    try:
        index = json.loads((target / "index.json").read_text(encoding="utf-8"))
        count, size = len(index["rows"]), index["size"]
        whole = (size, size)  # caches of squares were written without
        given = [row.get("content", whole) for row in index["rows"]]
        contents = tuple((int(height), int(width)) for height, width in given)
        shape: tuple[int, ...] = (count, size, size)
        if geometry.fit == "crop":
            shape = (sum(math.prod(geometry.canvas(content)) for content in contents),)
        images, labels = (np.load(target / f"{name}.npy", mmap_mode="r")[: shape[0]] for name in ("images", "labels"))
        if images.shape != (*shape, 3) or labels.shape != shape or size != geometry.size:
            raise ValueError(f"arrays of {images.shape} and {labels.shape} for {count} images of {size} px")
        return Prepared(
            dataset=dataset,
            folder=target,
            geometry=geometry,
            images=images,
            labels=labels,
            contents=contents,
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
    """Returns the SHA-256 (hex) over every sample's id and bytes, and what its class ids depend on beside them.

    A label that is no file, of an own dataset, is read at each call: nothing else says whether it changed.
    """
    ids = [sample.id for sample in dataset.samples]
    head = f"{[entry.name for entry in dataset.classes]} {dataset.fingerprint}"
    unfiled = [sample for sample in dataset.samples if not os.path.isfile(sample.label)]  # noqa: PTH113 - never raises
    read_ids = outcomes(partial(_ids_digest, dataset), unfiled)
    labels = {sample.id: digest for sample, digest in read_ids if isinstance(digest, bytes)}

    def make() -> str:
        digests = [digest for _, digest in outcomes(partial(_digest, labels), dataset.samples)]
        return hashlib.sha256("\n".join([head, *digests]).encode()).hexdigest()

    def read(text: str) -> str:
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise ValueError(f"{text[:80]!r} is no key")
        return text

    files = (path for sample in dataset.samples for path in (sample.image, sample.label))
    known = f"{head} {ids} {labels}" if labels else f"{head} {ids}"
    return remembered("content_keys", known, files, Work(make, read))


@lru_cache(maxsize=64)  # one annotation file may be the label of every sample
def _file_digest(path: Path, changed: int) -> str:
    return sha256(path)


def _ids_digest(dataset: Dataset, sample: Sample) -> bytes:
    ids = open_label(dataset, sample).ids
    return hashlib.sha256(f"{ids.shape}".encode() + ids.tobytes()).digest()


def _digest(labels: Mapping[str, bytes], sample: Sample) -> str:
    files = [sample.image] if sample.id in labels else [sample.image, sample.label]
    try:
        digests = [_file_digest(path, path.stat().st_mtime_ns) for path in files]
    except OSError:
        return f"{sample.id} unreadable"  # it is left out
    return " ".join([sample.id, *digests, *([labels[sample.id].hex()] if sample.id in labels else [])])
