"""COCO's instance annotations: polygons and run lengths, a JSON file for each split.

Larger regions lie below smaller ones, whatever their order in the file, so that an object in front of a large one is
seen. A region with `iscrowd` is ignored. Source: https://cocodataset.org/#format-data.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from petseg.config import DataConfig
from petseg.data.dataset import IGNORE, Dataset, Progress
from petseg.data.formats.annotations import (
    Annotated,
    Images,
    Names,
    annotated_dataset,
    begins,
    chosen_classes,
    image_size,
    named,
    read_json,
    records,
    split_of,
)
from petseg.data.formats.shapes import Polygon, Runs, Shape, Size, coco_counts, polygon, runs, sorted_by_area
from petseg.errors import PetsegError, shown

NAME = "COCO"
WANTED = "COCO annotations (annotations/instances_train.json and images/)"
HEAD = rb'\{(?=\s*"(info|licenses|images|annotations|categories|type)").*?"(images|annotations|categories)"\s*:\s*\['
NO_REGION = "annotation without a region skipped"


def recognise(folder: Path) -> str | None:
    """Returns which COCO files a folder holds."""
    files = _files(folder)
    return f"{NAME}: {', '.join(path.name for path in files)}" if files else None


def _files(folder: Path) -> list[Path]:
    patterns = ("*.json", "annotations/*.json", "*/_annotations.coco.json")  # the last is Roboflow's
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if begins(path, HEAD)})
    return [path for path in found if path.name.startswith("instances_")] or found  # beside captions and key points


def open_folder(folder: Path, config: DataConfig, on_progress: Progress | None = None) -> Dataset:
    """Returns the dataset of a folder's COCO files."""
    images = Images(folder)
    files, chosen = _files(folder), chosen_classes(folder, config)
    names: Names | None = None
    entries: list[Annotated] = []
    for done, path in enumerate(files, start=1):
        content = read_json(path)
        categories = _categories(content, path)
        own = named([{"name": each["name"], "colour": _colour(each)} for each in categories.values()], path, chosen)
        if names and own.ids != names.ids:
            raise PetsegError(f"{path}: other categories than {files[0].name}; export both with the same ones")
        names = own
        entries += _entries(
            content, path, images, {key: own.id_of(each["name"], str(path)) for key, each in categories.items()}
        )
        if on_progress is not None:
            on_progress(done, len(files))
    assert names is not None, "recognise has seen a file"
    return annotated_dataset(folder, NAME, entries, names, images)


def _categories(content: Any, path: Path) -> dict[int, dict[str, Any]]:
    """Returns id -> category, by id."""
    categories = records(content, "categories", path)
    by_id = {_number(each, "id", str(path)): each for each in categories}
    if len(by_id) < len(categories):
        raise PetsegError(f"{path}: two categories have one id; export it again")
    if not all(isinstance(each.get("name"), str) for each in categories):
        raise PetsegError(f"{path}: a category without a name; export it again")
    return dict(sorted(by_id.items()))


def _number(record: Mapping[str, Any], key: str, where: str) -> int:
    """Returns an id."""
    if type(found := record.get(key)) is not int:
        raise PetsegError(f"{where}: {key} is {shown(found)}; wanted a whole number: export it again")
    return found


def _colour(category: Mapping[str, Any]) -> str | None:
    """Returns the colour that panoptic files give, and petseg writes: [red, green, blue]."""
    given = category.get("color")
    if not isinstance(given, list) or len(given) != 3 or any(each not in range(256) for each in given):
        return None
    return f"#{bytes(given).hex().upper()}"


def _entries(content: Any, path: Path, images: Images, class_of: Mapping[int, int]) -> list[Annotated]:
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    annotations = records(content, "annotations", path)
    for annotation in annotations:
        by_image[_number(annotation, "image_id", str(path))].append(annotation)
    if annotations and not any(each.get("segmentation") for each in annotations):
        raise PetsegError(f"{path}: its annotations are boxes alone; petseg needs regions: polygons or run lengths")
    listed = records(content, "images", path)
    ids = {_number(each, "id", str(path)) for each in listed}
    if len(ids) < len(listed):
        raise PetsegError(f"{path}: two images have one id; export it again")
    if unknown := by_image.keys() - ids:
        raise PetsegError(f"{path}: an annotation is of image {unknown.pop()}, which it does not list")
    split = split_of(path.stem) or split_of(path.parent.name)
    roots = (images.folder, images.folder / "images", path.parent)
    places = [root / part for root in roots for part in ("", path.stem.rpartition("_")[2], split)]
    entries = []
    for record in listed:
        name = record.get("file_name")
        where = f"{path.name}: {name}"
        image = images.find(name, places, where)
        if image is not None:
            size = image_size(image, record.get("width"), record.get("height"), where)
            shapes, notes = _shapes(by_image[record["id"]], size, where, class_of)
            entries.append(Annotated(str(name), image, path, size, shapes, split, notes))
    return entries


def _shapes(
    annotations: list[dict[str, Any]], size: Size, where: str, class_of: Mapping[int, int]
) -> tuple[tuple[Shape, ...], tuple[str, ...]]:
    """Returns the regions of one image from below to above, and what is unusual."""
    shapes, crowds, notes = [], [], set()
    for annotation in annotations:
        place = f"{where}: annotation {annotation.get('id')}"
        if (category := _number(annotation, "category_id", place)) not in class_of:
            raise PetsegError(f"{place}: category {category} is not among the file's; export it again")
        parts = _parts(annotation.get("segmentation"), size, place)
        if not parts:
            notes.add(NO_REGION)
        elif annotation.get("iscrowd"):
            crowds.append(Shape(IGNORE, parts))
        else:
            shapes.append(Shape(class_of[category], parts))
    return (*sorted_by_area(shapes), *crowds), tuple(notes)


def _parts(segmentation: Any, size: Size, where: str) -> tuple[Polygon | Runs, ...]:
    if not segmentation:
        return ()
    if isinstance(segmentation, list):
        return tuple(polygon(_pairs(part), size, where) for part in segmentation)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise PetsegError(f"{where}: a region that is neither polygons nor run lengths; export it again")
    if segmentation.get("size") != list(size):
        given, image = shown(segmentation.get("size")), list(size)
        raise PetsegError(
            f"{where}: run lengths of size {given}, image {image} (height, width); is it another image's?"
        )
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = coco_counts(counts, where)
    return (runs(counts, (0, 0, *size), where, by_column=True),)


def _pairs(flat: Any) -> Any:
    """Returns [x, y, x, y, ...] as [[x, y], ...]."""
    fits = isinstance(flat, list) and len(flat) % 2 == 0
    return [flat[place : place + 2] for place in range(0, len(flat), 2)] if fits else None
