"""A folder of images and masks, of any classes, as a `Dataset`.

`images/` and `masks/` may lie in the folder or in train, val and test folders below it, and the other way round. Or
images and masks lie in one folder, NAME.jpg and NAME_mask.png.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from petseg.config import DataConfig
from petseg.data.classes import choose_table
from petseg.data.dataset import Dataset, Progress, Sample
from petseg.data.images import SUFFIXES, outcomes
from petseg.data.masks import MaskFile, Table, scan, scan_all
from petseg.data.splits import PARTS
from petseg.errors import PetsegError, shown
from petseg.storage import read_lines
from petseg.units import plural

WANTED = "images/ and masks/ side by side, files of the same names in both, or NAME.jpg and NAME_mask.png in one folder"
IMAGES = ("images", "imgs", "image", "img", "raw", "inputs", "input")  # folders, and words in names of files
MASKS = (
    *("masks", "mask", "labels", "annotations", "label", "lbl", "annotation", "gts", "gt", "ground_truth"),
    *("groundtruth", "segmentations", "segmentation", "seg", "targets", "target"),
)
USUAL = (*IMAGES[:3], *MASKS[:4])  # folders of these names go before those of the others
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LISTS = (".", "lists", "splits", "ImageSets/Segmentation")  # where a train.txt is looked for


def _marks(words: Sequence[str], ending: str = "") -> re.Pattern[str]:
    """Returns what a name has beside that of the other file of its pair: img_01, img01, 01_img."""
    word = "|".join(words)
    return re.compile(rf"(?<![^/])(?:{word})(?:[ _.-]|(?=\d))(?=[^/]+$)|[ _.-](?:{word}{ending})$", re.IGNORECASE)


IMAGE_MARKS, MASK_MARKS = _marks(IMAGES), _marks(MASKS, "|l")
Kinds = tuple[str, str]  # names of the folders of images and of masks, both "" where all lie in one
Files = dict[str, Path]  # by the path without the folder's name and the suffix, as "train/a"


def recognise(folder: Path) -> str | None:
    """Returns whether images and masks lie in folders side by side, or in one, the masks marked by their names."""
    kinds = _kinds(folder)
    return _layout(kinds) if all(kinds) or _matched(*_found(folder, kinds, defaultdict(list))) else None


def _layout(kinds: Kinds) -> str:
    return f"images and masks in {'folders' if all(kinds) else 'one folder'}"


def _kinds(folder: Path) -> Kinds:
    """Returns the names of the folders of images and of masks, "" where there is none; refuses two that hold images."""
    held = Counter[str]()  # 1 other files, 2 images
    for path, name in files_below(folder):
        held[name] = max(held[name], 1 + (path.suffix.lower() in SUFFIXES))
    kinds = []
    for names in (IMAGES, MASKS):
        best = max((held[name], name in USUAL) for name in names)
        chosen = [name for name in names if (held[name], name in USUAL) == best]
        if best[0] == 2 and len(chosen) > 1:
            raise PetsegError(
                f"data folder {folder}: {chosen[0]}/ and {chosen[1]}/ both hold images; wanted one folder of images, "
                "one of masks: move the other away"
            )
        kinds.append(chosen[0] if best[0] else "")
    return kinds[0], kinds[1]


def files_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields the files below a folder, each with the name, in lower case, of its folder of images or masks, if any."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parts = [part.lower() for part in Path(place).relative_to(folder).parts]
        kind = next((part for some in (USUAL, IMAGES + MASKS) for part in parts if part in some), "")
        yield from ((Path(place, name), kind) for name in sorted(names))


def _refuse_unreadable(error: OSError) -> None:
    raise PetsegError(f"{error.filename}: folder cannot be read ({error.strerror}); make it readable, or move it away")


def open_folder(folder: Path, config: DataConfig, on_progress: Progress | None = None) -> Dataset:
    """Returns the dataset, after a look at every mask at the first call; splits where folders or lists give them."""
    skipped: dict[str, list[str]] = defaultdict(list)
    kinds = _kinds(folder)
    pairs = _pairs(folder, kinds, skipped)
    names = _names(pairs)
    samples = {key: Sample(names[key], image, mask) for key, (image, mask) in pairs.items()}
    splits = _listed(folder, samples, skipped) or _by_folder(samples)
    if splits:
        chosen = {one for ids in splits.values() for one in ids}
        skipped["pair in no split"] = sorted(sample.id for sample in samples.values() if sample.id not in chosen)
    ordered = tuple(sorted(samples.values(), key=lambda sample: sample.id))
    masks = scan_all(ordered, on_progress)
    if not masks:
        _, fault = next(outcomes(scan, ordered[:1]))
        raise PetsegError(f"data folder {folder}: none of its {len(ordered)} masks can be used (first: {fault})")
    table = choose_table(masks, folder, config)
    return Dataset(
        name=folder.resolve().name,
        samples=ordered,
        classes=table.classes,
        splits={part: tuple(sorted(splits[part])) for part in PARTS if splits.get(part)},
        read_label=table.read,
        provenance=f"{_layout(kinds)}, classes from {table.origin}",
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


def _found(folder: Path, kinds: Kinds, skipped: dict[str, list[str]]) -> tuple[Files, Files]:
    """Returns the images and the masks; what is neither goes to `skipped`."""
    found: dict[str, Files] = {"image": {}, "mask": {}}
    for path, kind in files_below(folder):
        relative, known = path.relative_to(folder), path.suffix.lower() in SUFFIXES
        parts = [part for part in relative.parts[:-1] if not all(kinds) or part.lower() != kind]
        if all(kinds) and kind in kinds:
            what = "image" if kind == kinds[0] else "mask"
        elif not all(kinds) and known:
            what = "mask" if MASK_MARKS.search(path.stem) else "image"
        else:
            continue
        key = PurePosixPath(*parts, path.stem).as_posix()
        if path.name.startswith("."):
            skipped[f"hidden file among the {what}s"].append(relative.as_posix())
        elif not known:
            skipped[f"not an image among the {what}s"].append(relative.as_posix())
        elif key in found[what]:
            skipped[f"second {what} of one name"].append(relative.as_posix())
        else:
            found[what][key] = path
    return found["image"], found["mask"]


_composed = partial(normalize, "NFC")


def _matched(images: Files, masks: Files) -> dict[str, str]:
    """Returns image -> mask: of one name, else of one without the marks of masks, else without those of both.

    macOS may write an accent as a letter of its own; such names are equal here. Where two images or two masks
    would fit, none is taken.
    """
    matched = {key: key for key in images if key in masks}
    without_marks = partial(MASK_MARKS.sub, "")
    for plain in (str, partial(IMAGE_MARKS.sub, "")):
        alike: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for key in images:
            alike[_composed(plain(key))][0].append(key)
        for key in masks:
            alike[_composed(without_marks(key))][1].append(key)
        taken = {*matched.values()}
        pairs = [(some[0], others[0]) for some, others in alike.values() if len(some) == len(others) == 1]
        matched |= {image: mask for image, mask in pairs if image not in matched and mask not in taken}
    return matched


def _pairs(folder: Path, kinds: Kinds, skipped: dict[str, list[str]]) -> dict[str, tuple[Path, Path]]:
    """Returns key -> (image, mask); what has no other half, or is neither, goes to `skipped`."""
    images, masks = _found(folder, kinds, skipped)
    matched = _matched(images, masks)
    if not matched:
        raise PetsegError(_nothing_matches(folder, images, masks, skipped))
    skipped["image without mask"] = sorted(images.keys() - matched.keys())
    skipped["mask without image"] = sorted(masks.keys() - {*matched.values()})
    return {key: (images[key], masks[matched[key]]) for key in sorted(matched)}


def _nothing_matches(folder: Path, images: Files, masks: Files, skipped: Mapping[str, Sequence[str]]) -> str:
    sides = []
    for what, files in (("image", images), ("mask", masks)):
        first = next((f" ({path.relative_to(folder).as_posix()})" for path in files.values()), "")
        sides.append(f"{plural(len(files), what)}{first}")
    suffixes = {PurePosixPath(name).suffix.lower() for names in skipped.values() for name in names} - {*SUFFIXES, ""}
    return (
        f"data folder {folder}: {' and '.join(sides)}, no two of one name; wanted images/NAME.jpg and masks/NAME.png "
        "or masks/NAME_mask.png" + (f"; skipped files ending {', '.join(sorted(suffixes))}" if suffixes else "")
    )


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
        relative = sample.image.relative_to(folder).as_posix()
        for name in {*map(_composed, (key, sample.id, key.split("/")[-1], sample.image.name, relative))}:
            by_name[name].append(sample.id)
    alone = {_composed(name) for key in skipped["image without mask"] for name in (key, key.split("/")[-1])}
    splits: dict[str, list[str]] = defaultdict(list)
    of: dict[str, str] = {}
    for path, part in _list_files(folder):
        lines = read_lines(path)
        strange = 0
        for line in lines:
            names = _readings(line)
            ids = next((by_name[name] for name in names if len(by_name.get(name, ())) == 1), None)
            if ids is None:
                strange += alone.isdisjoint(names)
                skipped["listed, but no pair"].append(f"{path.name}: {line[:80]}")
                continue
            if of.setdefault(ids[0], part) != part:
                raise PetsegError(f"{path}: {line[:80]} is in {of[ids[0]]} as well; an image lies in one split")
            if ids[0] not in splits[part]:
                splits[part].append(ids[0])
        if lines and strange == len(lines):
            raise list_of_no_pair(path, lines, next(iter(samples)))
    return {part: ids for part, ids in splits.items() if ids}


def list_of_no_pair(path: Path, lines: Sequence[str], name: str) -> PetsegError:
    """Returns the error for a list of which no line names an image or a mask; `name` is one that would."""
    return PetsegError(
        f"{path}: {plural(len(lines), 'line')}, none of a pair (first: {shown(lines[0])}); wanted names such as "
        f"{shown(name)}: correct the list, or remove it"
    )


def _readings(line: str) -> tuple[str, ...]:
    """Returns the names that a line of a list may mean, the likeliest first; what follows a blank may be a mask."""
    whole = _composed(line).replace("\\", "/")
    first = whole.split()[0]
    paths = [PurePosixPath(path) for path in (whole, first)]
    return whole, first, *(name for path in paths for name in (path.name, path.stem))


def _list_files(folder: Path) -> Iterator[tuple[Path, str]]:
    for place in LISTS:
        for name, part in SPLITS.items():
            if (path := folder / place / f"{name}.txt").is_file():
                yield path, part
