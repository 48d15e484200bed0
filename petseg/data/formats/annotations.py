"""What readers of annotation files share: files of a bounded size, paths that stay inside, classes, the dataset."""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from petseg.config import DataConfig
from petseg.data.classes import find_classes, named_classes
from petseg.data.dataset import IGNORE, Class, Dataset, Label, Sample, classes_from
from petseg.data.formats.shapes import Shape, Size, painted
from petseg.data.images import opened
from petseg.errors import PetsegError, shown, unknown_name
from petseg.units import byte_size

LARGEST_FILE = 500_000_000  # bytes of an annotation file, read as seven times as many; COCO's own has 470 MB
BACKGROUND_NAMES = ("background", "_background_")  # the second is LabelMe's
IGNORED_NAMES = ("ignore", "__ignore__", "void")  # LabelMe's, Pascal VOC's
SPLIT = re.compile(r"(?<![a-z])(train|val|test)(?:id|idation|ing)?(?![a-z])")


@dataclass(frozen=True)
class Names:
    """The classes of an annotation file."""

    classes: tuple[Class, ...]
    ids: Mapping[str, int]  # name in the file -> class id, 255 where it means ignored
    unlabelled: int  # class id of what no shape covers

    def id_of(self, name: Any, where: str) -> int:
        """Returns the class id of a name; refuses one that the file does not define."""
        if not isinstance(name, str) or name not in self.ids:
            raise unknown_name(f"{where}: class", str(name), self.ids)
        return self.ids[name]


@dataclass(frozen=True)
class Annotated:
    """An image and what is drawn on it."""

    name: str  # as the file gives it
    image: Path
    label: Path  # the annotation file
    size: Size
    shapes: tuple[Shape, ...]  # later ones are painted over earlier ones
    split: str = ""  # "" where the format tells none
    notes: tuple[str, ...] = ()


@dataclass
class Images:
    """Finds the images that annotation files name: in the places given, without leaving the folder."""

    folder: Path
    missing: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)  # that nobody annotated, where the format tells

    def find(self, name: Any, places: Sequence[Path], where: str) -> Path | None:
        """Returns the image's file, None where there is none; refuses a path that leaves the folder."""
        if not isinstance(name, str) or not name:
            raise PetsegError(f"{where}: names no image; export it again")
        paths = [Path(os.path.normpath(place / name.replace("\\", "/"))) for place in places]
        root = Path(os.path.normpath(self.folder))
        inside = [path for path in paths if path.is_relative_to(root)]
        if not inside:
            raise PetsegError(
                f"{where}: image {shown(name)} lies outside {self.folder}; put the images into that folder"
            )
        found = next((path for path in inside if path.is_file()), None)
        if found is None:
            self.missing.append(name)
        return found


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds; refuses one that is too large to be read whole, or damaged."""
    check_size(path)
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PetsegError(f"{path}: not readable as JSON ({error}); export it again") from None


def check_size(path: Path) -> None:
    """Refuses an annotation file that is too large to be read whole."""
    if (size := path.stat().st_size) > LARGEST_FILE:
        limit = f"at most {byte_size(LARGEST_FILE)} are read"
        raise PetsegError(f"{path}: {byte_size(size)}; {limit}: export it in parts, such as a file for each split")


def begins(path: Path, pattern: bytes) -> bool:
    """Returns whether a file's first bytes match, after the mark that some programs put first."""
    with path.open("rb") as file:
        return re.match(rb"(?s)(?:\xef\xbb\xbf)?\s*" + pattern, file.read(1 << 16)) is not None


def records(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    """Returns the list of objects under a key of a JSON object."""
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise PetsegError(f"{path}: has no list of {key}; export it again")
    return found


def split_of(name: str) -> str:
    """Returns the split that a file's or folder's name tells, "" where it tells none.

    >>> [split_of(name) for name in ("instances_train2017", "valid", "Test", "contest", "trainval")]
    ['train', 'val', 'test', '', '']
    """
    found = SPLIT.search(name.lower())
    return found[1] if found else ""


def chosen_classes(folder: Path, config: DataConfig) -> tuple[Class, ...]:
    """Returns the classes of `data.classes` or a folder's classes.toml, which go before an annotation file's; or ()."""
    given = find_classes(folder, config)
    return named_classes(given, config) if given else ()


def named(entries: Sequence[str | Mapping[str, Any]], where: object, chosen: Sequence[Class] = ()) -> Names:
    """Returns the classes of names, or of objects with name and colour, in this order, or those `chosen`.

    Where none is the background, it is put first. A class named as one of `IGNORED_NAMES` is ignored.
    """
    given = [{"name": entry} if isinstance(entry, str) else dict(entry) for entry in entries]
    counts = Counter(str(entry.get("name")) for entry in given)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise PetsegError(f"{where}: class {shown(twice[0])} is there twice; rename or remove one")
    if chosen:
        return _among(chosen, list(counts), where)
    ids: dict[str, int] = {}
    kept: list[dict[str, Any]] = []
    if not set(BACKGROUND_NAMES) & set(counts):
        kept.append({"name": BACKGROUND_NAMES[0]})
    for entry in given:
        name = entry.get("name")
        if name in IGNORED_NAMES:
            ids[name] = IGNORE
            continue
        ids[str(name)] = len(kept)
        kept.append({**entry, "name": BACKGROUND_NAMES[0] if name in BACKGROUND_NAMES else name})
    try:
        classes = classes_from(kept)
    except ValueError as error:
        raise PetsegError(f"{where}: {error}") from None
    unlabelled = next(place for place, entry in enumerate(kept) if entry["name"] == BACKGROUND_NAMES[0])
    return Names(classes, ids, unlabelled)


def _among(classes: Sequence[Class], names: Sequence[str], where: object) -> Names:
    """Returns the classes of a classes file; what no shape covers is ignored where none is the background."""
    ids = {each.name: place for place, each in enumerate(classes)}
    unlabelled = ids.get(BACKGROUND_NAMES[0], IGNORE)
    ids = dict.fromkeys(BACKGROUND_NAMES, unlabelled) | dict.fromkeys(IGNORED_NAMES, IGNORE) | ids
    for name in names:
        if name not in ids:
            raise unknown_name(f"{where}: class", name, [each.name for each in classes])
    return Names(tuple(classes), ids, unlabelled)


def image_size(image: Path, width: Any, height: Any, where: str) -> Size:
    """Returns height and width as a file gives them, or the image's own where it gives none."""
    if width is None or height is None:
        with opened(image, f"{where}: image") as file:
            return file.height, file.width
    sides = [float(side) if isinstance(side, int | float) else 0.0 for side in (height, width)]
    if not all(side.is_integer() and side > 0 for side in sides):
        raise PetsegError(f"{where}: image of {shown(width)} x {shown(height)}; wanted pixels; export it again")
    limit = Image.MAX_IMAGE_PIXELS
    if limit and sides[0] * sides[1] > limit:
        raise PetsegError(f"{where}: image of {sides[0] * sides[1]:,.0f} pixels; at most {limit:,} are read: tile it")
    return int(sides[0]), int(sides[1])


def annotated_dataset(folder: Path, kind: str, entries: Sequence[Annotated], names: Names, images: Images) -> Dataset:
    """Returns the dataset of annotated images; splits are those that the entries tell, if any does."""
    if not entries:
        missing = f", such as {shown(images.missing[0])}" if images.missing else ""
        raise PetsegError(
            f"data folder {folder}: none of the annotated images is there{missing}; put them into images/"
        )
    by_id = dict(zip(_ids(entries), entries, strict=True))

    def read_label(sample: Sample) -> Label:
        entry = by_id[sample.id]
        return Label(painted(entry.size, entry.shapes, names.unlabelled), entry.notes)

    splits: dict[str, list[str]] = defaultdict(list)
    for name, entry in sorted(by_id.items()):
        splits[entry.split or "train"].append(name)
    skipped = {"annotated, but no image": images.missing, "image without annotation": images.unlabelled}
    return Dataset(
        name=folder.resolve().name,
        samples=tuple(Sample(name, entry.image, entry.label) for name, entry in sorted(by_id.items())),
        classes=names.classes,
        splits={part: tuple(ids) for part, ids in splits.items()} if any(each.split for each in entries) else {},
        read_label=read_label,
        provenance=f"images of a folder, annotated in {kind}",
        fingerprint=str(names.unlabelled),
        skipped={kind: tuple(sorted(found)) for kind, found in skipped.items() if found},
        holds={name: frozenset(shape.class_id for shape in entry.shapes) - {IGNORE} for name, entry in by_id.items()},
    )


def _ids(entries: Sequence[Annotated]) -> list[str]:
    """Returns the images' names without their ending, with it or with the split as well where that is needed."""
    counts = Counter(entry.image for entry in entries)
    if twice := next((image for image, count in counts.items() if count > 1), None):
        raise PetsegError(f"{twice}: annotated twice; keep one of the two, or images of two splits apart")
    for ids in (
        [str(PurePosixPath(entry.name).with_suffix("")) for entry in entries],
        [entry.name for entry in entries],
        [f"{entry.split}/{entry.name}" for entry in entries],
    ):
        if len(set(ids)) == len(ids):
            return ids
    return [entry.image.as_posix() for entry in entries]
