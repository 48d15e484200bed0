"""LabelMe's JSON files, one beside each image: polygons, rectangles, circles and masks, in the file's order.

Source: https://github.com/wkentaro/labelme.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from petseg.config import DataConfig
from petseg.data import folder as image_folder
from petseg.data.cache import cache_root
from petseg.data.dataset import Class, Dataset, Progress
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
from petseg.data.formats.shapes import (
    Polygon,
    Runs,
    Shape,
    Size,
    check_box,
    ellipse,
    numbers,
    polygon,
    rectangle,
    runs_of,
)
from petseg.data.images import SUFFIXES, UNREADABLE, check_pixels
from petseg.errors import PetsegError
from petseg.storage import read_lines, write_bytes

NAME = "LabelMe"
WANTED = "LabelMe annotations (NAME.json beside NAME.jpg)"
HEAD = rb'\{(?=\s*"(version|flags|shapes|imagePath|imageData|imageHeight)").*"(shapes|imageData)"\s*:'
ORDER = "labels.txt"  # LabelMe's list of classes, a line each
NO_AREA = ("line", "linestrip", "point", "points")


def recognise(folder: Path) -> str | None:
    """Returns how many LabelMe files a folder holds, at any depth; masks go before files that all lie deep."""
    files = _annotations(path for path, _ in image_folder.files_below(folder))
    deep = all(len(path.relative_to(folder).parts) > 2 for path in files)
    return None if deep and (not files or image_folder.recognise(folder)) else f"{NAME}: {len(files):,} JSON files"


def _annotations(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() == ".json" and begins(path, HEAD))


def open_folder(folder: Path, config: DataConfig, on_progress: Progress | None = None) -> Dataset:
    """Returns the dataset of a folder's LabelMe files; sub-folders named as splits are kept as such."""
    folder = Path(os.path.normpath(folder))  # as `Images` finds them
    listed = [path for path, _ in image_folder.files_below(folder)]
    files = _annotations(listed)
    contents: dict[Path, dict[str, Any]] = {}
    images = Images(folder)
    found: dict[Path, Path] = {}
    for done, path in enumerate(files, start=1):
        content = read_json(path)
        for shape in records(content, "shapes", path):
            if not isinstance(shape.get("label"), str):
                raise PetsegError(f"{path}: a shape without a label; name it in {NAME}")
        image = images.find(content.get("imagePath"), [path.parent], path.name)
        data = content.pop("imageData", None)  # often most of the file
        if image is None and data:
            images.missing.pop()
            image = _embedded(data, path)
        if image is not None:
            contents[path], found[path] = content, image
        if on_progress is not None:
            on_progress(done, len(files))
    alone = _unlabelled(listed, files, {*found.values()})
    images.unlabelled += [path.relative_to(folder).as_posix() for path in alone]
    names = _names(folder, contents, chosen_classes(folder, config))
    entries = [_entry(folder, path, content, found[path], names) for path, content in contents.items()]
    return annotated_dataset(folder, NAME, entries, names, images)


def _unlabelled(listed: Sequence[Path], files: Sequence[Path], labelled: Set[Path]) -> list[Path]:
    """Returns the images without a file of their own, in folders where others have one."""
    places = {path.parent for path in (*files, *labelled)}
    found = [path for path in listed if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return [path for path in found if path.parent in places and path not in labelled]


def _names(folder: Path, contents: Mapping[Path, dict[str, Any]], chosen: Sequence[Class]) -> Names:
    """Returns the classes that are chosen, else those of labels.txt, else all that the files name, sorted."""
    if not chosen and (folder / ORDER).is_file():
        return named(read_lines(folder / ORDER), folder / ORDER)
    return named(
        sorted({shape["label"] for content in contents.values() for shape in content["shapes"]}), folder, chosen
    )


def _embedded(data: Any, path: Path) -> Path:
    """Returns a file in the cache with the image that a JSON file holds."""
    try:
        content = base64.b64decode(data, validate=True)
    except (TypeError, ValueError):
        raise PetsegError(f"{path}: imageData is no base64; put the image beside it") from None
    place = cache_root() / "embedded" / f"{hashlib.sha256(content).hexdigest()[:32]}.image"
    if not place.is_file():
        write_bytes(place, content)
    return place


def _entry(folder: Path, path: Path, content: dict[str, Any], image: Path, names: Names) -> Annotated:
    size = image_size(image, content.get("imageWidth"), content.get("imageHeight"), path.name)
    shapes, notes = [], set()
    for place, shape in enumerate(content["shapes"]):
        where = f"{path.name}: shape {place}"
        kind = shape.get("shape_type", "polygon")
        if kind in NO_AREA:
            notes.add(f"{kind} skipped: it has no area")
            continue
        shapes.append(Shape(names.id_of(shape["label"], where), (_part(shape, kind, size, where),)))
    name, split = _name(path.relative_to(folder).with_suffix(image.suffix))
    return Annotated(name, image, path, size, tuple(shapes), split, tuple(sorted(notes)))


def _name(path: Path) -> tuple[str, str]:
    """Returns an image's name without the last folder that names a split, and the split."""
    parts = list(path.parts)
    place = next((place for place in reversed(range(len(parts) - 1)) if split_of(parts[place])), None)
    split = "" if place is None else split_of(parts.pop(place))
    return "/".join(parts), split


def _part(shape: dict[str, Any], kind: Any, size: Size, where: str) -> Polygon | Runs:
    points = shape.get("points")
    if kind in ("polygon", "oriented_rectangle"):
        return polygon(points, size, where)
    if kind == "rectangle":
        return rectangle(points, size, where)
    if kind == "circle":
        given = numbers(points, where)
        if given.shape != (2, 2):
            raise PetsegError(f"{where}: a circle of shape {list(given.shape)}; wanted its middle and a point on it")
        return ellipse(given[0], [np.hypot(*(given[1] - given[0]))] * 2, size, where)
    if kind == "mask":
        return _mask(shape, size, where)
    raise PetsegError(f"{where}: a {kind!r}; petseg reads polygon, rectangle, circle and mask: draw one of them")


def _mask(shape: dict[str, Any], size: Size, where: str) -> Runs:
    """Returns a mask: a PNG of the box whose first corner the first point is."""
    try:
        with Image.open(BytesIO(base64.b64decode(shape.get("mask") or "")), formats=["PNG"]) as image:
            check_pixels(image)
            inside = np.asarray(image.convert("L")) > 0
    except (binascii.Error, *UNREADABLE):
        raise PetsegError(f"{where}: a mask that is no PNG in base64; draw it again") from None
    corners = numbers(shape.get("points"), where)
    left, top = (round(corner) for corner in (*corners.ravel()[:2].tolist(), -1, -1)[:2])
    box = (top, left, *inside.shape)
    check_box(box, size, where)
    return Runs(runs_of(inside), box)
