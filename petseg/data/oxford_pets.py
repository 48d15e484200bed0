"""The Oxford-IIIT Pet Dataset: where it lies, what it holds, its traps, tasks and splits.

Parkhi, Vedaldi, Zisserman, Jawahar, "Cats and Dogs", CVPR 2012; CC BY-SA 4.0. 7,390 photos of 37 breeds with trimaps.
"""

from __future__ import annotations

import math
import random
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from petseg.errors import PetsegError

if TYPE_CHECKING:
    from petseg.config import Border, Protocol, TaskName

UInt8 = npt.NDArray[np.uint8]

PET, BACKGROUND, BORDER = 1, 2, 3
"""The values of a trimap; the official README calls 3 "not classified"."""
CAT, DOG = 1, 2
"""The values of `species` in list.txt."""
IGNORE = 255
"""The label of pixels that neither train nor count."""


CLASS_COLOURS = {
    "pet": "#0072B2",
    "background": "#BBBBBB",
    "border": "#E69F00",
    "cat": "#CC79A7",
    "dog": "#009E73",
}
"""Class name -> colour in every picture and legend (Okabe and Ito's palette, told apart by colour-blind readers)."""


@dataclass(frozen=True)
class Task:
    """What a pixel is called: class names, and the label of each (species, trimap value)."""

    name: TaskName
    classes: tuple[str, ...]
    labels: Mapping[int, Mapping[int, int]]
    """species -> trimap value -> label, 255 where ignored."""

    @property
    def scored(self) -> Task:
        """The task that scores are of: `trimap` for `trimap_species`, whose cat and dog are one pet; else this one."""
        return get_task("trimap") if self.name == "trimap_species" else self

    def palette(self) -> UInt8:
        """Returns the classes' colours, uint8 [C, 3]."""
        return np.array([list(bytes.fromhex(CLASS_COLOURS[name][1:])) for name in self.classes], np.uint8)

    def table(self) -> UInt8:
        """Returns the same as uint8 [3, 4], indexed by species (1, 2) and trimap value (1, 2, 3)."""
        table = np.full((3, 4), IGNORE, np.uint8)
        for species, labels in self.labels.items():
            for value, label in labels.items():
                table[species, value] = label
        return table


def get_task(name: TaskName, border: Border = "pet") -> Task:
    """Returns the task; `border` says what the border counts as in task `pet` (the other tasks fix it)."""
    if name == "trimap":
        labels = {PET: 0, BACKGROUND: 1, BORDER: 2}
        return Task(name, ("pet", "background", "border"), {CAT: labels, DOG: labels})
    if name == "pet":
        border_label = {"pet": 1, "background": 0, "ignore": IGNORE}[border]
        labels = {PET: 1, BACKGROUND: 0, BORDER: border_label}
        return Task(name, ("background", "pet"), {CAT: labels, DOG: labels})
    if name == "trimap_species":
        return Task(
            name,
            ("cat", "dog", "background", "border"),
            {CAT: {PET: 0, BACKGROUND: 2, BORDER: 3}, DOG: {PET: 1, BACKGROUND: 2, BORDER: 3}},
        )
    return Task(
        name,
        ("background", "cat", "dog"),
        {species: {PET: species, BACKGROUND: 0, BORDER: IGNORE} for species in (CAT, DOG)},
    )


@dataclass(frozen=True)
class Pet:
    """One picture and its trimap, not yet opened."""

    name: str
    image: Path
    trimap: Path
    breed: str
    species: int
    listed: str
    """"trainval", "test", or "none" for the 41 names that are in no list."""


@dataclass(frozen=True)
class Contents:
    """What a data folder holds, by name; `strays` says what was passed over and why."""

    folder: Path
    pets: tuple[Pet, ...]
    strays: Mapping[str, tuple[str, ...]]


def read_contents(folder: Path) -> Contents:
    """Returns the pairs of a folder in the official layout, sorted by name, without opening a picture.

    Raises:
        PetsegError: no images, no trimaps, or no lists in the folder.
    """
    images = folder / "images"
    annotations = folder / "annotations"
    trimaps = annotations / "trimaps"
    wanted = {images: ("images/*.jpg", IMAGE_SUFFIXES), trimaps: ("annotations/trimaps/*.png", (".png",))}
    for place, (content, suffixes) in wanted.items():
        if not place.is_dir() or not any(_is_picture(path, suffixes) for path in place.iterdir()):
            raise PetsegError(
                f"data folder {folder}: no {content} in it; wanted the official layout or the two archives: "
                "run `petseg data get`, or point --data or PETSEG_DATA at them"
            )
    listed: dict[str, str] = {}
    for split in ("trainval", "test"):
        for name in _read_list(annotations / f"{split}.txt"):
            listed[name] = split
    species: dict[str, int] = {}
    for name, fields in _read_list(annotations / "list.txt").items():
        if fields[2] not in ("1", "2"):
            raise PetsegError(
                f"list.txt: {name} has species {fields[2]!r}; wanted 1 cat or 2 dog: was the file changed?"
            )
        species[name] = int(fields[2])

    strays: dict[str, list[str]] = defaultdict(list)
    found: dict[str, Path] = {}
    for path in sorted(images.iterdir()):
        if path.name.startswith("."):
            strays["hidden file among the images"].append(path.name)
        elif not _is_picture(path, IMAGE_SUFFIXES):
            strays["not a .jpg among the images"].append(path.name)
        elif path.stem in found:
            strays["second image of one name"].append(path.name)
        else:
            found[path.stem] = path
    masks: dict[str, Path] = {}
    for path in sorted(trimaps.iterdir()):
        if path.name.startswith("."):
            strays["hidden file among the trimaps"].append(path.name)
        elif not _is_picture(path, (".png",)):
            strays["not a .png among the trimaps"].append(path.name)
        else:
            masks[path.stem] = path
    strays["image without trimap"] = [name for name in found if name not in masks]
    strays["trimap without image"] = [name for name in masks if name not in found]
    strays["listed, but no image"] = [name for name in sorted(listed) if name not in found]
    pairs = sorted(found.keys() & masks.keys())
    strays["pair in no list"] = [name for name in pairs if name not in listed]
    pets = tuple(
        Pet(
            name=name,
            image=found[name],
            trimap=masks[name],
            breed=breed_of(name),
            species=species.get(name, species_of(name)),
            listed=listed.get(name, "none"),
        )
        for name in pairs
    )
    return Contents(folder, pets, {kind: tuple(names) for kind, names in strays.items() if names})


IMAGE_SUFFIXES = (".jpg", ".jpeg")


def _is_picture(path: Path, suffixes: tuple[str, ...]) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in suffixes and path.is_file()


def breed_of(name: str) -> str:
    """Returns the breed that a name starts with.

    >>> breed_of("saint_bernard_108")
    'saint_bernard'
    """
    return re.sub(r"_\d+$", "", name)


def species_of(name: str) -> int:
    """Returns 1 for a cat, 2 for a dog: in this data set cat breeds start with a capital letter.

    Needed for the 41 names that list.txt leaves out.
    """
    return CAT if name[:1].isupper() else DOG


def _read_list(path: Path) -> dict[str, list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise PetsegError(f"{path.name}: not UTF-8 ({error}); unpack annotations.tar.gz again") from None
    except OSError:
        raise PetsegError(
            f"data folder: {path.parent.name}/{path.name} is missing; unpack annotations.tar.gz completely"
        ) from None
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    short = next((row for row in rows if len(row) < 4), None)
    if short:
        raise PetsegError(
            f"{path.name}: line {' '.join(short)!r} has {len(short)} fields; wanted name, class, species, breed"
        )
    return {row[0]: row for row in rows}


# --- opening pictures ------------------------------------------------------------------------------------------------

NO_PET = "trimap without any pet"
"""The note on the official pictures whose trimap is wrong in this way."""

SAME_ASPECT = 0.02
"""A trimap of another size is enlarged when the ratio of its sides differs by less than this share."""


@dataclass(frozen=True)
class Pair:
    """An opened pair in the frame of its image."""

    image: Image.Image
    """Mode RGB; reduced already where `draft` asked for it."""
    trimap: UInt8
    """[H, W] of values 1, 2, 3 at the image's own size."""
    notes: tuple[str, ...]
    """What was found and mended, for `petseg data check`."""


def open_pair(pet: Pet, *, draft: int | None = None) -> Pair:
    """Returns the picture as RGB and its trimap, both at the picture's own size and orientation on disk.

    EXIF rotation is not applied: the trimaps were drawn on the stored pixels.

    Args:
        pet: which pair.
        draft: lets the JPEG decoder reduce the picture (the trimap stays), as long as both sides keep this many pixels.

    Raises:
        PetsegError: the pair cannot be used; the message is the reason that `petseg data check` prints.
    """
    notes: list[str] = []
    image, own_size = _open_image(pet.image, draft, notes)
    return Pair(image, _match(read_trimap(pet.trimap), own_size, pet.name, notes), tuple(notes))


def draft_side(size: int) -> int:
    """Returns how many pixels the JPEG decoder, which can halve a picture at once, must leave of each side.

    A quarter more than is wanted: most official pictures (500 x 333 and more) are halved below 134 px: half the time.
    """
    return size + size // 4


def open_trimap(pet: Pet) -> UInt8:
    """Returns the trimap at its image's own size, as `open_pair` does, without decoding the image.

    Raises:
        PetsegError: as `open_pair`.
    """
    try:
        with Image.open(pet.image, formats=formats()) as opened:
            own_size = opened.size
    except UNREADABLE as error:
        raise PetsegError(f"{pet.name}: image cannot be decoded ({_reason(error, pet.image)})") from None
    return _match(read_trimap(pet.trimap), own_size, pet.name, [])


def _match(trimap: UInt8, own_size: tuple[int, int], name: str, notes: list[str]) -> UInt8:
    """Returns the trimap at `own_size` (width, height); what was done goes to `notes`."""
    height, width = trimap.shape
    if (width, height) != own_size:
        if abs(math.log(width / height * own_size[1] / own_size[0])) > SAME_ASPECT:
            raise PetsegError(
                f"{name}: trimap is {width}x{height}, image {own_size[0]}x{own_size[1]}; "
                "different shapes cannot be matched"
            )
        trimap = np.asarray(Image.fromarray(trimap).resize(own_size, Image.Resampling.NEAREST))
        notes.append("trimap of another size, resized (nearest)")
    if trimap.min() != PET:
        notes.append(NO_PET)
    return trimap


def _open_image(path: Path, draft: int | None, notes: list[str]) -> tuple[Image.Image, tuple[int, int]]:
    try:
        with Image.open(path, formats=formats()) as opened:
            own_size = opened.size
            check_pixels(opened)
            if opened.format != "JPEG":
                notes.append(f"{opened.format} named {path.suffix}")
            # a JPEG without the segment needs no parsing
            if (opened.format != "JPEG" or "exif" in opened.info) and opened.getexif().get(0x0112, 1) != 1:
                notes.append("EXIF rotation, not applied (the trimap has none)")
            if draft is not None:
                opened.draft("RGB", (draft, draft))
            return to_rgb(opened, notes), own_size
    except UNREADABLE as error:
        raise PetsegError(f"{path.stem}: image cannot be decoded ({_reason(error, path)})") from None


FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow reads more, and some of that with programs of its own, such as Ghostscript."""


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Returns those of `FORMATS` that this Pillow has."""
    Image.init()  # all are known before they are chosen from
    return tuple(name for name in FORMATS if name in Image.OPEN)


UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, TypeError, AttributeError, MemoryError),
    *(LookupError, ArithmeticError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What Pillow raises for files that are no picture, damaged, or too large: whatever a decoder stumbles over."""


def check_pixels(opened: Image.Image) -> None:
    """Checks that a picture is not too large to decode: of up to twice its own limit Pillow warns only.

    Its warnings are no way to know: their filter belongs to all threads.

    Raises:
        ValueError: it is.
    """
    pixels, limit = opened.width * opened.height, Image.MAX_IMAGE_PIXELS
    if limit and pixels > limit:
        raise ValueError(f"{pixels:,} pixels; at most {limit:,} are read")


def _reason(error: Exception, path: Path) -> str:
    """Returns Pillow's words without the folder, which is nobody's business in a published comparison."""
    return str(error).replace(repr(str(path)), repr(path.name)).replace(str(path), path.name)


def to_rgb(opened: Image.Image, notes: list[str]) -> Image.Image:
    """Returns the picture in RGB; alpha is dropped, since the trimaps describe the colours below it."""
    if opened.mode == "RGB":
        opened.load()
        return opened  # its pixels outlive the file
    if opened.mode.startswith("I;16") or opened.mode in ("I", "F"):
        notes.append("16-bit, scaled to 8")
        wide = np.asarray(opened, dtype=np.float64)
        return Image.fromarray((wide / 257.0).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    notes.append(f"mode {opened.mode}, converted to RGB")
    if "transparency" in opened.info:
        return opened.convert("RGBA").convert("RGB")
    return opened.convert("RGB")


def read_trimap(path: Path) -> UInt8:
    """Returns a trimap as uint8 [H, W] with values 1 pet, 2 background, 3 border, at its own size.

    Raises:
        PetsegError: not decodable, not one channel, or other values.
    """
    try:
        with Image.open(path, formats=formats()) as opened:
            check_pixels(opened)
            values = np.asarray(opened)
    except UNREADABLE as error:
        raise PetsegError(f"{path.stem}: trimap cannot be decoded ({_reason(error, path)})") from None
    if values.ndim != 2:
        raise PetsegError(f"{path.stem}: trimap has shape {values.shape}; a trimap has one channel")
    if values.min() < PET or values.max() > BORDER:  # half the time of counting, on each of thousands
        present = np.unique(values).tolist()
        shown = "{" + ", ".join(str(value) for value in present[:6]) + (", ..." if len(present) > 6 else "") + "}"
        raise PetsegError(
            f"{path.name} holds values {shown}; a trimap holds 1 pet, 2 background, 3 border: was it remapped already?"
        )
    return values.astype(np.uint8)


# --- splits ----------------------------------------------------------------------------------------------------------

SEED_VALIDATION = 1000
SEED_SHUFFLE = 1337
"""The classic tutorial's own numbers (François Chollet, "Deep Learning with Python", second edition, section 9.2)."""


@lru_cache(maxsize=1)
def committed_validation() -> frozenset[str]:
    """Returns the 368 names of trainval that validate under protocol `official`.

    Written by `scripts/make_validation_split.py`: stratified by breed, no near-duplicate of a training picture.
    """
    return _committed("official_val.txt")


@lru_cache(maxsize=1)
def committed_leaks() -> frozenset[str]:
    """Returns the 22 names of the official test split that have a near-identical picture in trainval."""
    return _committed("official_leaks.txt")


def _committed(name: str) -> frozenset[str]:
    text = (files("petseg") / "data" / "splits" / name).read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))


def split_names(all_names: Sequence[str], listed: Mapping[str, str], protocol: Protocol) -> dict[str, list[str]]:
    """Returns "train", "val" and (official only) "test": names, sorted, of all pictures in the folder.

    A name that was left out for a defect must be in `all_names` still, or the `seed` split would shift.

    Args:
        all_names: every pair's name.
        listed: name -> "trainval", "test" or "none".
        protocol: `official` or `seed`.
    """
    if protocol == "seed":
        shuffled = sorted(all_names)
        random.Random(SEED_SHUFFLE).shuffle(shuffled)  # noqa: S311 - a split, not a secret
        # half of a small set at most, so that a made set trains too
        validation = min(SEED_VALIDATION, len(shuffled) // 2)
        return {"train": sorted(shuffled[:-validation]), "val": sorted(shuffled[-validation:])}
    trainval = sorted(name for name in all_names if listed[name] == "trainval")
    chosen = committed_validation() & set(trainval)
    if 2 * len(chosen) < len(committed_validation()):  # another set, not the official one with a few files missing
        chosen = frozenset(stratified_validation(trainval))
    return {
        "train": [name for name in trainval if name not in chosen],
        "val": [name for name in trainval if name in chosen],
        "test": sorted(name for name in all_names if listed[name] == "test"),
    }


def training_part(names: Iterable[str], share: float, *, seed: int = 0) -> list[str]:
    """Returns `share` of the names, sorted, each breed in proportion, at least two names.

    Shares are nested: a smaller one lies within a larger one, so that a learning curve adds pictures and swaps none.

    Args:
        names: that train.
        share: above 0, to 1.
        seed: of the order within each breed, the same for every share.

    >>> names = ["pug_1", "pug_2", "pug_3", "pug_4", "Bombay_1", "Bombay_2"]
    >>> [len(training_part(names, share)) for share in (0.5, 1.0)]
    [3, 6]
    """
    by_breed: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        by_breed[breed_of(name)].append(name)
    placed: list[tuple[float, str]] = []  # a breed's pictures spread evenly over 0..1; a share is what lies below it
    for breed, members in by_breed.items():
        draw = random.Random(f"{seed} {breed}")  # noqa: S311 - a split, not a secret
        draw.shuffle(members)
        offset = draw.random()
        placed += [((place + offset) / len(members), name) for place, name in enumerate(members)]
    count = min(len(placed), max(2, round(share * len(placed))))
    return sorted(name for _, name in sorted(placed)[:count])


def stratified_validation(
    names: Iterable[str], *, share: float = 0.1, seed: int = 0, barred: frozenset[str] = frozenset()
) -> list[str]:
    """Returns `share` of the names, sorted, each breed in proportion (largest remainders), at least one name.

    Args:
        names: of trainval.
        share: between 0 and 1.
        seed: of the draw within each breed.
        barred: names that may not be drawn (their near-duplicates train).
    """
    by_breed: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        by_breed[breed_of(name)].append(name)
    total = max(1, round(share * sum(map(len, by_breed.values()))))
    quota = {breed: int(share * len(members)) for breed, members in by_breed.items()}
    remainder = {breed: share * len(members) - quota[breed] for breed, members in by_breed.items()}
    for breed in sorted(remainder, key=lambda breed: (-remainder[breed], breed))[: total - sum(quota.values())]:
        quota[breed] += 1
    drawn: list[str] = []
    for breed, members in by_breed.items():
        free = [name for name in members if name not in barred]
        drawn += random.Random(f"{seed} {breed}").sample(free, min(quota[breed], len(free)))  # noqa: S311
    return sorted(drawn)
