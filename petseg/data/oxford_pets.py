"""The Oxford-IIIT Pet Dataset (CVPR 2012, see `CARD`; 7,390 photos of 37 breeds with trimaps), as a `Dataset`."""

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from petseg.config import DataConfig, OxfordPetsConfig
from petseg.data.archive import extract
from petseg.data.cache import cache_root, locked
from petseg.data.dataset import IGNORE, SUSPECT, Class, Dataset, Label, Merge, Progress, Sample, UInt8, classes_from
from petseg.data.download import ARCHIVES, is_official
from petseg.data.images import read_ids
from petseg.errors import PetsegError
from petseg.storage import write_text

NAME = "Oxford-IIIT Pet"
WANTED = "images/ and annotations/trimaps/ of the Oxford-IIIT Pet Dataset or its two archives (`petseg data get`)"
OFFICIAL = "the official archives"
UNOFFICIAL = "archives with other checksums than the official ones (a reduced or mirrored copy)"
FOLDER = "a folder in the official layout (its files are not checked against the official checksums)"
SYNTHETIC = "synthetic pets, drawn by petseg"
SYNTHETIC_FOLDER = "synthetic_pets"  # of the cache

# validation cross-entropy after 30 epochs, protocol `seed`, as printed by the comparison that petseg comes from
ORIGINAL_LOSSES = {"unet": 0.3614, "segnet": 0.4176}
OFFICIAL_IMAGES = {"train": 3312, "val": 368, "test": 3669}  # images of each split of protocol `official`
PET, BACKGROUND, BORDER = 1, 2, 3  # the values of a trimap; the official README calls 3 "not classified"
CAT, DOG = 1, 2  # the values of `species` in list.txt

# Okabe and Ito's palette, told apart by colour-blind readers
COLOURS = {"pet": "#0072B2", "background": "#BBBBBB", "border": "#E69F00", "cat": "#CC79A7", "dog": "#009E73"}
CARD = {  # what an exported model says of itself where this dataset trained it
    "limits": (
        "cats and dogs alone: other animals, toys and drawings may be called pet or not",
        "trained on photos of one pet of 37 breeds, most of it in view",
        "a photo is resized to a square of `size` pixels: a pet that is small in it is seen coarsely; crop first",
        "border is a band around the pet's outline as the dataset's annotators saw it",
    ),
    "licence": {
        "weights": "CC BY-SA 4.0",
        "url": "https://creativecommons.org/licenses/by-sa/4.0/",
        "data": "The Oxford-IIIT Pet Dataset by Omkar M. Parkhi, Andrea Vedaldi, Andrew Zisserman and C. V. Jawahar "
        '("Cats and Dogs", CVPR 2012), CC BY-SA 4.0, https://www.robots.ox.ac.uk/~vgg/data/pets/',
    },
}


@dataclass(frozen=True)
class Task:
    """What a pixel is called: the classes, and the class id of each species and trimap value."""

    classes: tuple[Class, ...]
    table: UInt8  # [3, 4] class ids, indexed by species (1, 2) and trimap value (1, 2, 3); 255 where ignored
    merge: Merge | None


def get_task(config: OxfordPetsConfig) -> Task:
    """Returns the task that the recipe names."""
    border = {"pet": 1, "background": 0, "ignore": IGNORE}[config.border]
    names, cat, dog = {  # the classes, then the class id of pet, background and border on images of either species
        "trimap": ("pet background border", (0, 1, 2), (0, 1, 2)),
        "pet": ("background pet", (1, 0, border), (1, 0, border)),
        "species": ("background cat dog", (1, 0, IGNORE), (2, 0, IGNORE)),
        "trimap_species": ("cat dog background border", (0, 2, 3), (1, 2, 3)),
    }[config.task]
    table = np.full((3, 4), IGNORE, np.uint8)
    table[CAT, PET:], table[DOG, PET:] = cat, dog
    both = Merge(_classes("pet background border"), (0, 0, 1, 2)) if config.task == "trimap_species" else None
    return Task(_classes(names), table, both)


def _classes(names: str) -> tuple[Class, ...]:
    return classes_from([{"name": name, "colour": COLOURS[name]} for name in names.split()])


def recognise(folder: Path) -> str | None:
    """Returns whether a folder is of the official layout or holds the two archives."""
    if (folder / "annotations" / "trimaps").is_dir() or (folder / "annotations" / "list.txt").is_file():
        return f"{NAME}, unpacked"
    return f"{NAME}, archives" if any(_archives(folder).values()) else None


def is_synthetic(folder: Path) -> bool:
    """Returns whether a data folder is one of `sources.synthetic_data`."""
    return folder.resolve().parent == (cache_root() / SYNTHETIC_FOLDER).resolve()


def _archives(folder: Path) -> dict[str, Path | None]:
    """Returns official name -> where the archive lies in a folder, compressed or not."""
    places = {archive.name: [folder / archive.name, folder / archive.name.removesuffix(".gz")] for archive in ARCHIVES}
    return {name: next(filter(Path.is_file, paths), None) for name, paths in places.items()}


def open_folder(folder: Path, config: DataConfig, on_progress: Progress | None = None) -> Dataset:
    """Returns the dataset in a folder of the official layout, or of its two archives, unpacked once into the cache."""
    options = config.oxford_pets
    if (folder / "annotations").is_dir():
        return open_oxford_pets(folder, options, provenance=SYNTHETIC if is_synthetic(folder) else FOLDER)
    archives = _archives(folder)
    if missing := " and ".join(name for name, path in archives.items() if path is None):
        raise PetsegError(
            f"data folder {folder}: {missing} missing; wanted images/ and annotations/, or the two archives: "
            "run `petseg data get`"
        )
    paths = [path for path in archives.values() if path]
    stamp = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    target = cache_root() / "extracted" / hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:16]
    memo = target.with_name(f"{target.name}.official")  # the checksum of 800 MB takes seconds
    with locked(target):
        extract(paths, target)
        known = memo.read_bytes() if memo.is_file() else b""
        if known not in (b"true", b"false"):
            official = all(is_official(path, archive) for path, archive in zip(paths, ARCHIVES, strict=True))
            known = b"true" if official else b"false"
            write_text(memo, known.decode())
    official = known == b"true"
    return open_oxford_pets(target, options, provenance=OFFICIAL if official else UNOFFICIAL, official=official)


def open_oxford_pets(folder: Path, config: OxfordPetsConfig, *, provenance: str, official: bool = False) -> Dataset:
    """Returns the dataset in a folder of the official layout, without opening an image."""
    contents = read_contents(folder)
    task = get_task(config)

    def read_label(sample: Sample) -> Label:
        trimap = read_trimap(sample.label)
        notes = () if trimap.min() == PET else (SUSPECT,)
        return Label(task.table[contents.species[sample.id]][trimap], notes)

    splits = split_names(list(contents.listed), contents.listed, config.protocol)
    return Dataset(
        name=NAME,
        samples=contents.samples,
        classes=task.classes,
        splits={part: tuple(names) for part, names in splits.items()},
        read_label=read_label,
        provenance=provenance,
        official=official,
        fingerprint=f"{task.table.tolist()} {list(contents.species.items())}",
        merge=task.merge,
        loss_sizes=(SEED_SIZE,) if config.protocol == "seed" else (),
        skipped=contents.skipped,
    )


@dataclass(frozen=True)
class Contents:
    """What a data folder holds: the pairs of image and trimap, sorted by name, and what was skipped."""

    samples: tuple[Sample, ...]  # the group is the breed
    species: Mapping[str, int]  # name of a pair -> 1 cat, 2 dog
    listed: Mapping[str, str]  # name of a pair -> "trainval", "test", or "none" for the 41 names that are in no list
    skipped: Mapping[str, tuple[str, ...]]  # kind of file -> names, sorted


def read_contents(folder: Path) -> Contents:
    """Returns what a folder in the official layout holds, without opening an image."""
    skipped: dict[str, list[str]] = defaultdict(list)
    images, trimaps = (_files(folder, kind, skipped) for kind in FILES)
    annotations = folder / "annotations"
    listed = {name: split for split in ("trainval", "test") for name in _read_list(annotations / f"{split}.txt")}
    species = {}
    for name, fields in _read_list(annotations / "list.txt").items():
        if fields[2] not in ("1", "2"):
            raise PetsegError(f"list.txt: {name} has species {fields[2]!r}; wanted 1 cat or 2 dog: was it changed?")
        species[name] = int(fields[2])
    skipped["image without trimap"] = [name for name in images if name not in trimaps]
    skipped["trimap without image"] = [name for name in trimaps if name not in images]
    skipped["listed, but no image"] = [name for name in sorted(listed) if name not in images]
    pairs = sorted(images.keys() & trimaps.keys())
    skipped["pair in no list"] = [name for name in pairs if name not in listed]
    return Contents(
        samples=tuple(Sample(name, images[name], trimaps[name], breed_of(name)) for name in pairs),
        species={name: species.get(name, species_of(name)) for name in pairs},
        listed={name: listed.get(name, "none") for name in pairs},
        skipped={kind: tuple(names) for kind, names in skipped.items() if names},
    )


# kind of file -> its folder and suffixes
FILES = {"image": ("images", (".jpg", ".jpeg")), "trimap": ("annotations/trimaps", (".png",))}


def _files(folder: Path, kind: str, skipped: dict[str, list[str]]) -> dict[str, Path]:
    """Returns name -> file of the images or the trimaps; what is neither goes to `skipped`."""
    place, suffixes = FILES[kind]
    files_of: dict[str, Path] = {}
    for path in sorted((folder / place).glob("*")):
        if path.name.startswith("."):
            skipped[f"hidden file among the {kind}s"].append(path.name)
        elif path.suffix.lower() not in suffixes or not path.is_file():
            skipped[f"not a {suffixes[0]} among the {kind}s"].append(path.name)
        elif path.stem in files_of:
            skipped[f"second {kind} of one name"].append(path.name)
        else:
            files_of[path.stem] = path
    if not files_of:
        raise PetsegError(
            f"data folder {folder}: no {place}/*{suffixes[0]} in it; wanted the official layout or the two archives: "
            "run `petseg data get`, or name their folder (--data, PETSEG_DATA)"
        )
    return files_of


def breed_of(name: str) -> str:
    """Returns the breed that a name starts with: `saint_bernard` of `saint_bernard_108`."""
    return re.sub(r"_\d+$", "", name)


def species_of(name: str) -> int:
    """Returns 1 for a cat, 2 for a dog, for the 41 names that list.txt leaves out: cat breeds start with a capital."""
    return CAT if name[:1].isupper() else DOG


def _read_list(path: Path) -> dict[str, list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PetsegError(f"{path}: cannot be read ({error}); unpack annotations.tar.gz again") from None
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    for row in rows:
        if len(row) < 4:
            line = f"line {' '.join(row)!r} has {len(row)} fields"
            raise PetsegError(f"{path.name}: {line}; wanted name, class, species, breed")
    return {row[0]: row for row in rows}


def read_trimap(path: Path) -> UInt8:
    """Returns a trimap as uint8 [H, W] with values 1 pet, 2 background, 3 border, at its own size."""
    values = read_ids(path, "trimap")
    if values.min() < PET or values.max() > BORDER:  # half the time of np.unique, for each of thousands
        present = np.unique(values).tolist()
        values_shown = ", ".join(map(str, present[:6])) + (", ..." if len(present) > 6 else "")
        raise PetsegError(
            f"{path.name} holds values {{{values_shown}}}; a trimap holds 1 pet, 2 background, 3 border: was it "
            "remapped already?"
        )
    return values.astype(np.uint8)


# the classic tutorial's own numbers (François Chollet, "Deep Learning with Python", second edition, section 9.2)
SEED_VALIDATION, SEED_SHUFFLE, SEED_SIZE = 1000, 1337, 200


def _committed(name: str) -> frozenset[str]:
    text = (files("petseg") / "data" / "splits" / name).read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))


# the 368 names of trainval that validate under protocol `official`: drawn once by `stratified_validation` with seed 0,
# from names without a near-duplicate among the others; and the 22 of the test split with a near-duplicate in trainval
COMMITTED_VALIDATION, COMMITTED_LEAKS = _committed("official_val.txt"), _committed("official_leaks.txt")


def split_names(all_names: Sequence[str], listed: Mapping[str, str], protocol: str) -> dict[str, list[str]]:
    """Returns "train", "val" and (official only) "test": names, sorted, of all pairs in the folder.

    A pair that is left out for a defect must still be in `all_names`, or the `seed` split would shift.
    """
    if protocol == "seed":
        shuffled = sorted(all_names)
        random.Random(SEED_SHUFFLE).shuffle(shuffled)  # noqa: S311 - a split, not a secret
        # half of a small dataset at most, so that a synthetic one trains too
        validation = min(SEED_VALIDATION, len(shuffled) // 2)
        return {"train": sorted(shuffled[:-validation]), "val": sorted(shuffled[-validation:])}
    trainval = sorted(name for name in all_names if listed[name] == "trainval")
    chosen = COMMITTED_VALIDATION & set(trainval)
    if 2 * len(chosen) < len(COMMITTED_VALIDATION):  # another dataset, not the official one with a few files missing
        chosen = frozenset(stratified_validation(trainval))
    return {
        "train": [name for name in trainval if name not in chosen],
        "val": [name for name in trainval if name in chosen],
        "test": sorted(name for name in all_names if listed[name] == "test"),
    }


def stratified_validation(names: Iterable[str], *, share: float = 0.1, seed: int = 0) -> list[str]:
    """Returns `share` of the names, sorted, each breed in proportion (largest remainders), at least one name."""
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
        drawn += random.Random(f"{seed} {breed}").sample(members, quota[breed])  # noqa: S311
    return sorted(drawn)
