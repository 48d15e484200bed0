"""Writes a dataset as a folder in one of `FORMATS`, with its images; what was written reads back to the same pixels."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from typing import Any
from unicodedata import category
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
from PIL import Image

from petseg.data.dataset import IGNORE, Class, Dataset, Progress, Sample, UInt8, palette
from petseg.data.formats.annotations import IGNORED_NAMES
from petseg.data.formats.outlines import outlines
from petseg.data.formats.shapes import Box, Polygon, runs_of
from petseg.data.formats.voc import IMAGES, LABELMAP, LISTS, MASKS, VOID, voc_colours
from petseg.data.images import copy_of, open_sample, opened, orientation, outcomes
from petseg.errors import PetsegError, shown, unknown_name
from petseg.storage import new_folder, write_bytes, write_text

NO_SPLIT = "in no split"
IGNORED = IGNORED_NAMES[0]  # as a class of formats that have no other way to say it


@dataclass(frozen=True)
class Item:
    """An image to write."""

    name: str  # of its files, without suffix
    image: str  # file name
    split: str = ""  # where the dataset has splits
    size: tuple[int, int] = (0, 0)  # height and width
    entry: Any = None  # what the format's `add` returned


@dataclass(frozen=True, eq=False)
class LabelledFile:
    """An image's file as it is to be written, and its label."""

    suffix: str
    content: bytes
    ids: UInt8  # [H, W] class ids in the frame in which programs show the image


@dataclass(frozen=True)
class Target:
    """A folder to write, and what is said of classes in it."""

    folder: Path
    classes: tuple[Class, ...]
    polygons: bool = False

    @property
    def background(self) -> int | None:
        """The class id of what needs no region, if any."""
        return next((place for place, each in enumerate(self.classes) if each.name == "background"), None)

    def name(self, class_id: int) -> str:
        """Returns the name of a class id, or of 255."""
        return IGNORED if class_id == IGNORE else self.classes[class_id].name

    def masks(self, ids: UInt8) -> list[tuple[int, UInt8]]:
        """Returns (class id, uint8 [H, W] of 0 and 1) of what needs a region."""
        present = [class_id for class_id in np.unique(ids).tolist() if class_id != self.background]
        return [(class_id, (ids == class_id).astype(np.uint8)) for class_id in present]

    def outlines(self, ids: UInt8) -> list[tuple[int, list[list[float]]]]:
        """Returns (class id, [[x, y], ...]) of each region, in the order in which they are painted."""
        return [(class_id, part.points.round(2).tolist()) for class_id, part in outlines(ids, self.background)]


@dataclass(frozen=True)
class Format:
    """How a format is written."""

    images: str  # folder of the images
    add: Callable[[Target, Item, UInt8], Any]  # writes the files of one image; returns what is of the files of all
    finish: Callable[[Target, Sequence[Item]], None] = lambda target, items: None  # writes what is of the files of all
    lines: bool = False  # whether the names of classes are lines of a text file


def check_request(out: Path, kind: str, *, polygons: bool = False) -> None:
    """Refuses what `convert` cannot do, before anything is read."""
    check_format(kind, polygons=polygons)
    if out.exists():
        raise PetsegError(f"{out} is there already; choose another folder (--out)")


def check_format(kind: str, *, polygons: bool = False) -> None:
    """Refuses a format that is none of `FORMATS`, or does not have polygons to choose."""
    if kind not in FORMATS:
        raise unknown_name("--format", kind, FORMATS)
    if polygons and kind not in ("coco", "cvat"):
        raise PetsegError(f"--polygons was given with --format {kind}; it is of coco and cvat: leave it out")


def convert(
    dataset: Dataset, out: Path, kind: str, *, polygons: bool = False, on_progress: Progress | None = None
) -> tuple[int, dict[str, str]]:
    """Returns how many images were written to a new folder, and sample id -> why, of those left out."""
    check_request(out, kind, polygons=polygons)
    with new_folder(out) as unfinished:
        target = Target(unfinished, dataset.classes, polygons)
        items, left_out = write_folder(dataset, target, FORMATS[kind], partial(_stored, dataset), on_progress)
        return len(items), left_out


def write_folder(
    dataset: Dataset,
    target: Target,
    form: Format,
    labelled: Callable[[Sample], LabelledFile],
    on_progress: Progress | None = None,
) -> tuple[dict[str, Item], dict[str, str]]:
    """Returns sample id -> what was written into a folder that is there, and -> why, of those left out.

    Each file appears whole. `labelled` opens a sample as its file is to be.
    """
    check_names(target.classes, form)
    part_of = {sample_id: part for part, ids in dataset.splits.items() for sample_id in ids}
    left_out = {each.id: NO_SPLIT for each in dataset.samples if dataset.splits and each.id not in part_of}
    samples = [sample for sample in dataset.samples if sample.id not in left_out]
    names = _file_names(samples)

    def write(sample: Sample) -> Item:
        file = labelled(sample)
        name = names[sample.id]
        item = Item(name, f"{name}{file.suffix}", part_of.get(sample.id, ""), file.ids.shape)
        write_bytes(target.folder / form.images.format(split=item.split) / item.image, file.content)
        return replace(item, entry=form.add(target, item, file.ids))

    items: dict[str, Item] = {}
    for sample, item in outcomes(write, samples, on_progress):
        if isinstance(item, str):
            left_out[sample.id] = item
        else:
            items[sample.id] = item
    if not items:
        reason = next(iter(left_out.values()), "there are none")
        raise PetsegError(f"{dataset.name}: none of {len(dataset.samples)} images can be written (first: {reason})")
    form.finish(target, list(items.values()))
    _write_classes(target)
    return items, left_out


def check_names(classes: Sequence[Class], form: Format) -> None:
    """Refuses names of classes that would not be read back."""
    for name in (each.name for each in classes):
        fault = "has a control character" if any(category(letter) in ("Cc", "Cs") for letter in name) else ""
        if form.lines and (name != name.strip() or name[:1] == "#"):
            fault = fault or f"begins with # or has a blank at an end, which {LABELMAP} cannot hold"
        if fault:
            raise PetsegError(f"class {shown(name)} {fault}; rename it")


def _file_names(samples: Sequence[Sample]) -> dict[str, str]:
    """Returns sample id -> name of its files: the id, where that is no path and none is the same without case."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for sample in samples:
        plain = sample.id.replace("/", "_")
        own = next(each for each in chain([plain], (f"{plain}-{n}" for n in count(2))) if each.casefold() not in taken)
        taken.add(own.casefold())
        names[sample.id] = own
    return names


def _stored(dataset: Dataset, sample: Sample) -> LabelledFile:
    """Returns an image's file as it is, or as a PNG where EXIF turns it, or where programs do not show it as it is."""
    found = open_sample(dataset, sample)
    with opened(sample.image, sample.id) as file:
        plain = orientation(file) == 1 and file.format != "NPY"
    content = sample.image.read_bytes()
    if plain:
        return LabelledFile(sample.image.suffix, content, found.ids)
    stream = BytesIO()
    found.image.save(stream, "PNG", exif=copy_of(content))
    return LabelledFile(".png", stream.getvalue(), found.ids)


def _png(ids: UInt8, colours: UInt8) -> bytes:
    image, stream = Image.fromarray(ids), BytesIO()
    image.putpalette(colours.tobytes())
    image.save(stream, "PNG")
    return stream.getvalue()


def _lists(target: Target, items: Sequence[Item], place: str = "", unsplit: str = "") -> None:
    """Writes a list of names for each split, and one of images without a split where it has a name."""
    by_split: dict[str, list[str]] = defaultdict(list)
    for item in items:
        by_split[item.split].append(item.name)
    for split, names in by_split.items():
        if own := split or unsplit:
            write_text(target.folder / place / f"{own}.txt", "".join(f"{name}\n" for name in names))


def _add_png(target: Target, item: Item, ids: UInt8) -> None:
    write_bytes(target.folder / "masks" / f"{item.name}.png", _png(ids, palette(target.classes)))


def _write_classes(target: Target) -> None:
    """Writes classes.toml: names, colours and roles in the order of their ids."""
    lines = []
    for each in target.classes:
        fields = {"name": each.name, "colour": each.colour, "role": each.role}
        lines.append("[[classes]]")
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
        lines.append("")
    write_text(target.folder / "classes.toml", "\n".join(lines))


def _add_voc(target: Target, item: Item, ids: UInt8) -> None:
    write_bytes(target.folder / MASKS / f"{item.name}.png", _png(ids, _voc_palette(len(target.classes))))


def _voc_palette(classes: int) -> UInt8:
    codes = [*list(voc_colours())[:classes], *[VOID] * (256 - classes)]
    return np.array([(code >> 16, code >> 8 & 255, code & 255) for code in codes], np.uint8)


def _finish_voc(target: Target, items: Sequence[Item]) -> None:
    _lists(target, items, LISTS, "default")  # as CVAT names it; other readers go by these lists alone
    colours = [",".join(map(str, row)) for row in _voc_palette(len(target.classes)).tolist()]
    rows = [f"{each.name}:{colour}::" for each, colour in zip(target.classes, colours, strict=False)]
    write_text(target.folder / LABELMAP, "\n".join(["# label:color_rgb:parts:actions", *rows, ""]))


def _add_coco(target: Target, item: Item, ids: UInt8) -> list[dict[str, Any]]:
    from pycocotools import mask

    found: list[dict[str, Any]] = []
    if target.polygons:
        ids, ignored = np.where(ids == IGNORE, target.background or 0, ids), ids == IGNORE
        for class_id, points in target.outlines(ids):
            (left, top), (right, bottom) = np.min(points, axis=0).tolist(), np.max(points, axis=0).tolist()
            figures = {"area": Polygon(np.array(points)).area, "bbox": [left, top, right - left, bottom - top]}
            flat = [coordinate for point in points for coordinate in point]
            found.append({"category_id": class_id + 1, "segmentation": [flat], **figures, "iscrowd": 0})
        regions = [(IGNORE, ignored.astype(np.uint8))] if ignored.any() else []
    else:
        regions = target.masks(ids)
    for class_id, region in regions:
        top, left, height, width = _box(region)
        figures = {"area": int(region.sum()), "bbox": [left, top, width, height]}
        counts = mask.encode(np.asfortranarray(region))["counts"].decode("ascii")
        crowd = class_id == IGNORE  # of a category all the same, as COCO wants it
        category = 1 if crowd else class_id + 1
        segmentation = {"size": list(ids.shape), "counts": counts}
        found.append({"category_id": category, "segmentation": segmentation, **figures, "iscrowd": int(crowd)})
    return found


def _finish_coco(target: Target, items: Sequence[Item]) -> None:
    categories = [
        {"id": place, "name": each.name, "color": list(bytes.fromhex(each.colour[1:]))}
        for place, each in enumerate(target.classes, start=1)
    ]
    for split in sorted({item.split for item in items}):
        own = [item for item in items if item.split == split]
        images = [
            {"id": place, "file_name": item.image, "height": item.size[0], "width": item.size[1]}
            for place, item in enumerate(own, start=1)
        ]
        pairs = [(place, entry) for place, item in enumerate(own, start=1) for entry in item.entry]
        annotations = [{"id": n, "image_id": place, **entry} for n, (place, entry) in enumerate(pairs, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(target.folder / "annotations" / f"instances_{split or 'default'}.json", json.dumps(content))


def _box(region: UInt8) -> Box:
    """Returns the smallest box around what is not 0."""
    rows, columns = (np.flatnonzero(region.any(axis=axis)).tolist() for axis in (1, 0))
    return rows[0], columns[0], rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]


def _add_cvat(target: Target, item: Item, ids: UInt8) -> list[tuple[str, dict[str, str]]]:
    """Returns the elements of an image, as tag and attributes."""
    if target.polygons:
        drawn = target.outlines(ids)
        texts = [(class_id, ";".join(f"{x:.2f},{y:.2f}" for x, y in points)) for class_id, points in drawn]
        return [("polygon", {"label": target.name(class_id), "points": text}) for class_id, text in texts]
    found = []
    for class_id, region in target.masks(ids):
        top, left, height, width = _box(region)
        counts = runs_of(region[top : top + height, left : left + width] > 0)
        box = {"left": left, "top": top, "width": width, "height": height}
        numbers = {"rle": ", ".join(map(str, counts.tolist())), **{side: str(value) for side, value in box.items()}}
        found.append(("mask", {"label": target.name(class_id), **numbers}))
    return found


def _finish_cvat(target: Target, items: Sequence[Item]) -> None:
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    named = {each.name: each.colour for each in target.classes}
    if any(attributes["label"] == IGNORED for item in items for _, attributes in item.entry):
        named[IGNORED] = "#FFFFFF"
    for name, colour in named.items():
        label = SubElement(labels, "label")
        for tag, text in (("name", name), ("color", colour.lower()), ("type", "any")):
            SubElement(label, tag).text = text
    for place, item in enumerate(items):
        sides = {"width": str(item.size[1]), "height": str(item.size[0])}
        subset = {"subset": item.split} if item.split else {}
        image = SubElement(root, "image", {"id": str(place), "name": item.image, **subset, **sides})
        for order, (tag, attributes) in enumerate(item.entry):
            SubElement(image, tag, {"source": "auto", "occluded": "0", "z_order": str(order), **attributes})
    indent(root)
    write_bytes(target.folder / "annotations.xml", tostring(root, encoding="utf-8", xml_declaration=True))


def _add_labelme(target: Target, item: Item, ids: UInt8) -> None:
    shapes: list[dict[str, Any]] = [
        {"label": target.name(class_id), "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
        for class_id, points in target.outlines(ids)
    ]
    height, width = item.size
    sides = {"imagePath": item.image, "imageData": None, "imageHeight": height, "imageWidth": width}
    content: dict[str, Any] = {"version": "5.0.1", "flags": {}, "shapes": shapes, **sides}
    write_text(target.folder / item.split / f"{item.name}.json", json.dumps(content))


FORMATS: Mapping[str, Format] = {
    "png": Format("images", _add_png, _lists),
    "coco": Format("images", _add_coco, _finish_coco),
    "cvat": Format("images", _add_cvat, _finish_cvat),
    "voc": Format(IMAGES, _add_voc, _finish_voc, lines=True),
    "labelme": Format("{split}", _add_labelme),
}
