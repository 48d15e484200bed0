"""Label Studio's JSON export: polygons in percent and brush masks, in the file's order.

The export holds no images: they are looked for by name, also without the eight digits that an upload puts before it.
Of several annotations of an image the last that was not cancelled counts. Source: https://labelstud.io/guide/export.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np

from petseg.config import DataConfig
from petseg.data.dataset import Dataset, Progress, UInt8
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
)
from petseg.data.formats.shapes import Polygon, Runs, Shape, Size, numbers, polygon, runs_of
from petseg.data.images import SUFFIXES
from petseg.errors import PetsegError

NAME = "Label Studio"
WANTED = "a JSON export of Label Studio (project.json and images/)"
HEAD = rb'\[\s*\{\s*"(id|annotations|data|file_upload|image)"'
UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")
LABELS = ("brushlabels", "polygonlabels", "labels")
OPAQUE = 128  # of a brush's 0 to 255, from where a pixel is inside


def recognise(folder: Path) -> str | None:
    """Returns which export a folder holds."""
    path = _file(folder)
    return f"{NAME}: {path.name}" if path else None


def _file(folder: Path) -> Path | None:
    return next((path for path in sorted(folder.glob("*.json")) if begins(path, HEAD)), None)


def open_folder(folder: Path, config: DataConfig, on_progress: Progress | None = None) -> Dataset:
    """Returns the dataset of a Label Studio export and the images beside it."""
    path = _file(folder)
    assert path is not None, "recognise has seen the file"
    tasks = read_json(path)
    if not all(isinstance(task, dict) and isinstance(task.get("annotations"), list) for task in tasks):
        raise PetsegError(f"{path}: a task without a list of annotations; export the project as JSON, not JSON-MIN")
    regions = {place: list(_regions(task)) for place, task in enumerate(tasks)}
    names = named(
        sorted({name for found in regions.values() for name, _ in found}), path, chosen_classes(folder, config)
    )
    images = Images(folder)
    entries = []
    for place, task in enumerate(tasks):
        if _result(task) is not None:
            entry = _entry(task, regions[place], path, images, names)
            entries += [entry] if entry else []
        else:
            images.unlabelled.append(_image_name(task) or f"task {task.get('id')}")
        if on_progress is not None:
            on_progress(place + 1, len(tasks))
    return annotated_dataset(folder, NAME, entries, names, images)


def _result(task: dict[str, Any]) -> list[Any] | None:
    """Returns the regions that count, None if nobody annotated the image."""
    valid = [each for each in task["annotations"] if isinstance(each, dict) and not each.get("was_cancelled")]
    result = valid[-1].get("result") if valid else None
    return result if isinstance(result, list) else None


def _regions(task: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (class, region) of what has a class; a region drawn with a tool apart from its class comes twice."""
    for region in _result(task) or []:
        value = region.get("value") if isinstance(region, dict) else None
        labels = next((value[key] for key in LABELS if value.get(key)), None) if isinstance(value, dict) else None
        if isinstance(labels, list) and isinstance(labels[0], str):
            yield labels[0], region


def _entry(
    task: dict[str, Any], regions: list[tuple[str, dict[str, Any]]], path: Path, images: Images, names: Names
) -> Annotated | None:
    where = f"{path.name}: task {task.get('id')}"
    name = _image_name(task)
    if not name:
        raise PetsegError(f"{where}: names no image; petseg reads tasks of images")
    places = [path.parent / "images", path.parent]
    found = [images.find(each, places, where) for each in dict.fromkeys((name, UPLOADED.sub("", name)))]
    image = next(filter(None, found), None)
    if image is None:
        return None
    images.missing[:] = [each for each in images.missing if each != name]
    first = regions[0][1] if regions else {}
    size = image_size(image, first.get("original_width"), first.get("original_height"), where)
    shapes, notes = [], set()
    for place, (label, region) in enumerate(regions):
        part = _part(region, size, f"{where}: region {place}")
        if part is None:
            notes.add(f"{region.get('type')} skipped: only polygons and brush masks are regions")
        else:
            shapes.append(Shape(names.id_of(label, where), (part,)))
    return Annotated(image.name, image, path, size, tuple(shapes), notes=tuple(sorted(notes)))


def _image_name(task: dict[str, Any]) -> str:
    """Returns the file name of a task's image: of an upload, an address, or a file of local storage; "" for none."""
    data = task.get("data")
    for text in data.values() if isinstance(data, dict) else ():
        if isinstance(text, str):
            address = urlparse(text)
            local = parse_qs(address.query).get("d", [""])[0]
            name = PurePosixPath(local or unquote(address.path)).name
            if PurePosixPath(name).suffix.lower() in SUFFIXES:
                return name
    return ""


def _part(region: dict[str, Any], size: Size, where: str) -> Polygon | Runs | None:
    if region.get("image_rotation"):
        raise PetsegError(f"{where}: the image was turned in Label Studio; turn its file instead and annotate that")
    own = region.get("original_height"), region.get("original_width")
    if own != size:
        raise PetsegError(f"{where}: of an image of {own[1]}x{own[0]}, others of {size[1]}x{size[0]}; export it again")
    value = region["value"]
    if "points" in value:
        points = numbers(value["points"], where)
        return polygon(points * [size[1] / 100, size[0] / 100] if points.shape[1:] == (2,) else points, size, where)
    if value.get("format") == "rle":
        height, width = size
        opacity = brush_values(value.get("rle"), 4 * height * width, where).reshape(height, width, 4)[..., 3]
        return Runs(runs_of(opacity >= OPAQUE), (0, 0, height, width))
    return None


def brush_values(packed: Any, count: int, where: str) -> UInt8:
    """Returns what a brush packs, uint8 [count]: bits of runs and of single values, as rle-pack writes them.

    Their own reader comes with 480 MB of packages (label-studio-sdk 2.1), and it trusts the length that a file states.
    """
    if not isinstance(packed, list) or not all(type(each) is int and 0 <= each < 256 for each in packed):
        raise PetsegError(f"{where}: a brush mask that is no list of bytes; export it again")
    bits = np.unpackbits(np.array(packed, np.uint8))
    place = 0

    def read(width: int) -> int:
        nonlocal place
        if (end := place + width) > len(bits):
            raise PetsegError(f"{where}: a brush mask that ends too early; export it again")
        value = int("".join(map(str, bits[place:end].tolist())), 2)
        place = end
        return value

    if (stated := read(32)) != count:
        sizes = f"{stated // 4:,} pixels, the image has {count // 4:,}"
        raise PetsegError(f"{where}: a brush mask of {sizes}; is the image another one?")
    width = read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    values, done = np.zeros(count, np.uint8), 0
    while done < count:
        repeated = read(1)
        end = min(count, done + 1 + read(lengths[read(2)]))
        if repeated:
            values[done:end] = read(width) & 255
        else:
            values[done:end] = [read(width) & 255 for _ in range(end - done)]
        done = end
    return values
