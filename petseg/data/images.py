"""Opens image files from elsewhere: accepted formats, errors of the decoders, conversion to RGB."""

import math
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from petseg.data.dataset import Dataset, Label, Sample, UInt8
from petseg.errors import PetsegError

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow reads more, some of it with other programs such as Ghostscript."""

UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, TypeError, AttributeError, MemoryError),
    *(LookupError, ArithmeticError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What Pillow raises for files that are no image, damaged, or too large: whatever a decoder stumbles over."""

SAME_ASPECT = 0.02
"""A label of another size is resized when the ratio of its sides differs by less than this share."""


Result = TypeVar("Result")


@dataclass(frozen=True)
class LabelledImage:
    """An opened sample in the frame of its image."""

    image: Image.Image  # mode RGB; reduced already where `draft` asked for it
    ids: UInt8  # [H, W] class ids at the image's own size, 255 ignored
    notes: tuple[str, ...]  # what was unusual and how it was handled, for `petseg data check`


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Returns those of `FORMATS` that this Pillow has."""
    Image.init()  # registers all of Pillow's formats
    return tuple(name for name in FORMATS if name in Image.OPEN)


def draft_side(size: int) -> int:
    """Returns how many pixels the JPEG decoder, which can halve an image as it decodes, must leave of each side."""
    # most official images (500 x 333 px and more) are then halved for sizes below 134 px, which takes half the time
    return size + size // 4


def check_pixels(opened: Image.Image) -> None:
    """Raises `Image.DecompressionBombError` for an image that is too large to decode."""
    # Pillow itself only warns up to twice its limit, and all threads share one filter of warnings
    pixels, limit = opened.width * opened.height, Image.MAX_IMAGE_PIXELS
    if limit and pixels > limit:
        raise Image.DecompressionBombError(f"{pixels:,} pixels; at most {limit:,} are read")


@contextmanager
def opened(path: Path, what: str) -> Iterator[Image.Image]:
    """Yields an image file, not yet decoded; what a decoder stumbles over in the block becomes one line."""
    try:
        with Image.open(path, formats=formats()) as image:
            check_pixels(image)
            yield image
    except UNREADABLE as error:
        # without the folder, which a published comparison should not name
        reason = str(error).replace(repr(str(path)), repr(path.name)).replace(str(path), path.name)
        raise PetsegError(f"{what} cannot be decoded ({reason})") from None


def to_rgb(opened: Image.Image, notes: list[str]) -> Image.Image:
    """Returns the image in RGB; alpha is dropped, since labels describe the colours below it."""
    if opened.mode == "RGB":
        opened.load()
        return opened  # its pixels outlive the file
    if opened.mode.startswith("I;16") or opened.mode in ("I", "F"):
        notes.append("16-bit, scaled to 8")
        wide = np.asarray(opened, dtype=np.float64)
        return Image.fromarray((wide / 257.0).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    notes.append(f"mode {opened.mode}, converted to RGB")
    return (opened.convert("RGBA") if "transparency" in opened.info else opened).convert("RGB")


def read_ids(path: Path, kind: str = "label") -> npt.NDArray[Any]:
    """Returns the values of an image file of one channel as they are stored, [H, W], of any type."""
    with opened(path, f"{path.stem}: {kind}") as image:
        values = np.asarray(image)
    if values.ndim != 2:
        raise PetsegError(f"{path.stem}: {kind} has shape {values.shape}; a {kind} has one channel")
    return values


def open_sample(dataset: Dataset, sample: Sample, *, draft: int | None = None) -> LabelledImage:
    """Returns the image as RGB and its class ids, both at the image's own size and orientation on disk.

    EXIF rotation is not applied: labels were drawn on the stored pixels. `draft` lets the JPEG decoder reduce the image
    (the label stays), as long as both sides keep this many pixels. Raises `PetsegError` with the reason that
    `petseg data check` prints.
    """
    notes: list[str] = []
    with opened(sample.image, f"{sample.id}: image") as file:
        own_size = file.size
        if file.format != "JPEG":
            notes.append(f"{file.format} named {sample.image.suffix}")
        # a JPEG without the segment needs no parsing
        if (file.format != "JPEG" or "exif" in file.info) and file.getexif().get(0x0112, 1) != 1:
            notes.append("EXIF rotation, not applied (the label has none)")
        if draft is not None:
            file.draft("RGB", (draft, draft))
        image = to_rgb(file, notes)
    ids = _match(dataset.read_label(sample), own_size, sample.id, notes)
    return LabelledImage(image, ids, tuple(notes))


def open_ids(dataset: Dataset, sample: Sample) -> UInt8:
    """Returns the class ids at the image's own size, as `open_sample` does, without decoding the image."""
    with opened(sample.image, f"{sample.id}: image") as file:
        own_size = file.size
    return _match(dataset.read_label(sample), own_size, sample.id, [])


CHUNK = 25
"""Samples that a thread takes at once: handing out single ones costs a tenth of the speed."""


def outcomes(
    work: Callable[[Sample], Result], samples: Sequence[Sample], on_progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[Sample, Result | str]]:
    """Yields each sample, in order, with what `work` returns for it, or the reason where that is a `PetsegError`.

    A thread for each core works (Pillow releases the interpreter lock), some samples ahead of the reader.
    """

    def outcome(sample: Sample) -> Result | str:
        try:
            return work(sample)
        except PetsegError as error:
            return str(error)

    chunks = (samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = chain.from_iterable(pool.map(lambda chunk: [outcome(sample) for sample in chunk], chunks))
        for done, (sample, result) in enumerate(zip(samples, results, strict=True), start=1):
            yield sample, result
            if on_progress is not None:
                on_progress(done, len(samples))


def _match(label: Label, own_size: tuple[int, int], name: str, notes: list[str]) -> UInt8:
    """Returns the ids at `own_size` (width, height); what was done goes to `notes`."""
    ids, (own_width, own_height) = label.ids, own_size
    height, width = ids.shape
    if (width, height) != own_size:
        if abs(math.log(width / height * own_height / own_width)) > SAME_ASPECT:
            sizes = f"label is {width}x{height}, image {own_width}x{own_height}"
            raise PetsegError(f"{name}: {sizes}; different shapes cannot be matched")
        ids = resize_ids(ids, (own_height, own_width))
        notes.append("label of another size, resized (nearest)")
    notes.extend(label.notes)
    return ids


def resize_ids(ids: UInt8, size: tuple[int, int]) -> UInt8:
    """Returns class ids uint8 [H, W] at another size (height, width), nearest."""
    return np.asarray(Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST))
