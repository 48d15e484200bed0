"""A folder of images and masks side by side, of any classes, as a `Dataset`.

`images/` and `masks/` may lie in the folder or in train, val and test folders below it, and the other way round.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from petseg.config import DataConfig
from petseg.data.classes import choose_table
from petseg.data.dataset import Dataset, Progress, Sample
from petseg.data.images import SUFFIXES
from petseg.data.masks import MaskFile, Table, scan_all
from petseg.data.splits import PARTS
from petseg.errors import PetsegError

WANTED = "images/ and masks/ side by side, files of the same names in both"
IMAGES = ("images", "imgs", "image")
MASKS = ("masks", "mask", "labels", "annotations")  # the first that holds images is taken
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LISTS = (".", "lists", "splits", "ImageSets/Segmentation")  # where a train.txt is looked for
ENDING = re.compile(r"[ _.-](mask|masks|label|labels|segmentation|seg|gt|l)$", re.IGNORECASE)  # of a mask's name alone


@dataclass(frozen=True)
class Found:
    """A file among the images or the masks; `key` is its path without that folder and its suffix."""

    path: Path
    key: str  # as "train/a"


def recognise(folder: Path) -> str | None:
    """Returns whether images and masks lie in folders side by side."""
    images, masks = _kinds(folder)
    return "images and masks in folders" if images and masks else None


def _kinds(folder: Path) -> tuple[str, str]:
    """Returns the names of the folders of images and of masks, "" where no image lies below one."""
    found = {name for _, name in _files(folder)}
    return tuple(next((name for name in names if name in found), "") for names in (IMAGES, MASKS))  # type: ignore[return-value]


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields the image files below a folder of images or masks, and that folder's name, in lower case."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parts = [part.lower() for part in Path(place).relative_to(folder).parts]
        kind = next((part for part in parts if part in (*IMAGES, *MASKS)), None)
        if kind:
            yield from ((Path(place, name), kind) for name in sorted(names))


def open_folder(folder: Path, config: DataConfig, on_progress: Progress | None = None) -> Dataset:
    """Returns the dataset, after a look at every mask at the first call; splits where folders or lists give them."""
    skipped: dict[str, list[str]] = defaultdict(list)
    pairs = _pairs(folder, skipped)
    names = _names(pairs)
    samples = {key: Sample(names[key], image, mask) for key, (image, mask) in pairs.items()}
    splits = _listed(folder, samples, skipped) or _by_folder(samples)
    if splits:
        chosen = {one for ids in splits.values() for one in ids}
        skipped["pair in no split"] = sorted(sample.id for sample in samples.values() if sample.id not in chosen)
    ordered = tuple(sorted(samples.values(), key=lambda sample: sample.id))
    masks = scan_all(ordered, on_progress)
    if not masks:
        raise PetsegError(f"data folder {folder}: none of its {len(ordered)} masks can be opened; wanted PNG")
    table = choose_table(masks, folder, config)
    return Dataset(
        name=folder.resolve().name,
        samples=ordered,
        classes=table.classes,
        splits={part: tuple(sorted(splits[part])) for part in PARTS if splits.get(part)},
        read_label=table.read,
        provenance=f"images and masks in folders, classes from {table.origin}",
        fingerprint=json.dumps([table.by_colour, sorted(table.ids.items())]),
        skipped={kind: tuple(names) for kind, names in skipped.items() if names},
        holds={name: table.classes_in(mask) for name, mask in masks.items()},
        refusal=_refusal(masks, table, folder),
    )


def _refusal(masks: dict[str, MaskFile], table: Table, folder: Path) -> str:
    """Returns what is wrong with the mask that holds most pixels of no class."""
    wrong = {name: unknown for name, mask in masks.items() if (unknown := table.unknown(mask))}
    if not wrong:
        return ""
    name = max(wrong, key=lambda one: (max(wrong[one].values()), one))
    value = max(wrong[name], key=lambda one: wrong[name][one])
    others = f", and so have {len(wrong) - 1:,} other masks" if len(wrong) > 1 else ""
    return (
        f"data folder {folder}: mask {name} has {table.fault(value, wrong[name][value])}{others}; name it in "
        f"{table.origin}, as a class or under ignore, or mend the masks (`petseg data check` lists them)"
    )


def _pairs(folder: Path, skipped: dict[str, list[str]]) -> dict[str, tuple[Path, Path]]:
    """Returns key -> (image, mask); what has no other half, or is neither, goes to `skipped`."""
    kinds = _kinds(folder)
    found: dict[str, dict[str, Path]] = {kind: {} for kind in kinds}
    for path, kind in _files(folder):
        if kind not in kinds:
            continue
        what = "image" if kind == kinds[0] else "mask"
        relative = path.relative_to(folder)
        parts = [part for part in relative.parts[:-1] if part.lower() != kind]
        key = PurePosixPath(*parts, path.stem).as_posix()
        if path.name.startswith("."):
            skipped[f"hidden file among the {what}s"].append(relative.as_posix())
        elif path.suffix.lower() not in SUFFIXES:
            skipped[f"not an image among the {what}s"].append(relative.as_posix())
        elif key in found[kind]:
            skipped[f"second {what} of one name"].append(relative.as_posix())
        else:
            found[kind][key] = path
    images, masks = (found[kind] for kind in kinds)
    for key in sorted(masks.keys() - images.keys()):
        plain = ENDING.sub("", key)
        if plain in images and plain not in masks:
            masks[plain] = masks.pop(key)
    skipped["image without mask"] = sorted(images.keys() - masks.keys())
    skipped["mask without image"] = sorted(masks.keys() - images.keys())
    pairs = {key: (images[key], masks[key]) for key in sorted(images.keys() & masks.keys())}
    if not pairs:
        raise PetsegError(
            f"data folder {folder}: {len(images)} images and {len(masks)} masks, none of the same name; name each mask "
            "as its image, with any suffix"
        )
    return pairs


def _part_of(key: str) -> tuple[str, str]:
    """Returns the split that a folder of the key names, "" where none does, and the key without it."""
    parts = key.split("/")
    place = next((place for place, part in enumerate(parts[:-1]) if part.lower() in SPLITS), None)
    if place is None:
        return "", key
    return SPLITS[parts[place].lower()], "/".join([*parts[:place], *parts[place + 1 :]])


def _names(keys: Iterable[str]) -> dict[str, str]:
    """Returns key -> sample id: without the split's folder unless two are then the same; no slash in it."""
    short = {key: _part_of(key)[1].replace("/", "_") for key in keys}
    for given in ({key: key.replace("/", "_") for key in short}, {key: key.replace("/", "__") for key in short}):
        twice = {name for name, count in Counter(short.values()).items() if count > 1}
        short = {key: given[key] if name in twice else name for key, name in short.items()}
    return short


def _by_folder(samples: dict[str, Sample]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = defaultdict(list)
    for key, sample in samples.items():
        if part := _part_of(key)[0]:
            splits[part].append(sample.id)
    return splits


def _listed(folder: Path, samples: dict[str, Sample], skipped: dict[str, list[str]]) -> dict[str, list[str]]:
    """Returns the splits that train.txt and its like give: a name a line, with or without folders and suffix."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for key, sample in samples.items():
        for name in {
            key,
            sample.id,
            key.split("/")[-1],
            sample.image.name,
            sample.image.relative_to(folder).as_posix(),
        }:
            by_name[name].append(sample.id)
    splits: dict[str, list[str]] = defaultdict(list)
    of: dict[str, str] = {}
    for path, part in _list_files(folder):
        for line in filter(None, map(str.strip, path.read_text(encoding="utf-8", errors="replace").splitlines())):
            names = (line, line.split()[0], PurePosixPath(line.split()[0]).name, PurePosixPath(line.split()[0]).stem)
            ids = next((by_name[name] for name in names if len(by_name.get(name, ())) == 1), None)
            if ids is None:
                skipped["listed, but no pair"].append(f"{path.name}: {line[:80]}")
                continue
            if of.setdefault(ids[0], part) != part:
                raise PetsegError(f"{path}: {line[:80]} is in {of[ids[0]]} as well; an image lies in one split")
            if ids[0] not in splits[part]:
                splits[part].append(ids[0])
    return {part: ids for part, ids in splits.items() if ids}


def _list_files(folder: Path) -> Iterator[tuple[Path, str]]:
    for place in LISTS:
        for name, part in SPLITS.items():
            if (path := folder / place / f"{name}.txt").is_file():
                yield path, part
