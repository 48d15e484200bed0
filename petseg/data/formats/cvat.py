"""CVAT for images 1.1, an XML file: polygons and masks, painted by z_order, then in the file's order.

Source: https://docs.cvat.ai/docs/manual/advanced/xml_format/.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError, iterparse

from petseg.config import DataConfig
from petseg.data.dataset import Dataset, Progress
from petseg.data.formats.annotations import (
    Annotated,
    Images,
    Names,
    annotated_dataset,
    begins,
    check_size,
    chosen_classes,
    image_size,
    named,
    split_of,
)
from petseg.data.formats.shapes import Polygon, Runs, Shape, Size, check_box, polygon, runs
from petseg.errors import PetsegError, first_line

NAME = "CVAT for images 1.1"
WANTED = "CVAT for images 1.1 (annotations.xml and images/)"
HEAD = rb"(<\?xml[^>]*>\s*)?<annotations>"
REGIONS = ("polygon", "mask")
OTHERS = ("box", "ellipse", "polyline", "points", "cuboid", "skeleton", "tag")


def recognise(folder: Path) -> str | None:
    """Returns which CVAT file a folder holds."""
    path = _file(folder)
    return f"{NAME}: {path.name}" if path else None


def _file(folder: Path) -> Path | None:
    return next((path for path in sorted(folder.glob("*.xml")) if begins(path, HEAD)), None)


def open_folder(folder: Path, config: DataConfig, on_progress: Progress | None = None) -> Dataset:
    """Returns the dataset of a folder's CVAT file; subsets of a project's export that are splits are kept."""
    path = _file(folder)
    assert path is not None, "recognise has seen the file"
    check_size(path)
    images = Images(folder)
    labels: list[dict[str, Any]] = []
    names: Names | None = None
    entries = []
    for element in _elements(path):
        if element.tag == "label" and element.find("parent") is None:  # of a skeleton's part
            labels.append({"name": element.findtext("name"), "colour": element.findtext("color")})
        elif element.tag == "track":
            raise PetsegError(f"{path}: CVAT for video; export the task as {NAME}")
        elif element.tag == "image":
            names = names or named(labels, path, chosen_classes(folder, config))
            if entry := _entry(element, path, images, names):
                entries.append(entry)
            element.clear()  # the file may be large
    if names is None:
        raise PetsegError(f"{path}: no images in it; export the task as {NAME}")
    return annotated_dataset(folder, NAME, entries, names, images)


def _elements(path: Path) -> Iterator[Element]:
    """Yields each element at its end."""
    try:
        for _, element in iterparse(path):  # noqa: S314 - `HEAD` leaves no room for entities, which could fill the memory
            yield element
    except ParseError as error:
        raise PetsegError(f"{path}: not readable as XML ({first_line(error)}); export it again") from None


def _entry(element: Element, path: Path, images: Images, names: Names) -> Annotated | None:
    name, subset = element.get("name"), element.get("subset", "")
    where = f"{path.name}: {name}"
    roots = [root / part for root in (path.parent / "images", path.parent) for part in (subset, "")]
    image = images.find(name, roots, where)
    if image is None:
        return None
    width, height = (_number(element, side, where) for side in ("width", "height"))
    size = image_size(image, width, height, where)
    found = []
    for place, child in enumerate(element):
        if child.tag in REGIONS:
            read = _polygon if child.tag == "polygon" else _mask
            part: Polygon | Runs = read(child, size, f"{where}: {child.tag} {place}")
            shape = Shape(names.id_of(child.get("label"), f"{where}: {child.tag} {place}"), (part,))
            found.append((_number(child, "z_order", where) if child.get("z_order") else 0, shape))
    shapes = tuple(shape for _, shape in sorted(found, key=lambda entry: entry[0]))
    others = sorted({child.tag for child in element if child.tag in OTHERS})
    notes = tuple(f"{tag} skipped: only {' and '.join(REGIONS)} are regions" for tag in others)
    return Annotated(str(name), image, path, size, shapes, split_of(subset), notes)


def _number(element: Element, attribute: str, where: str) -> int:
    try:
        return int(element.get(attribute, ""))
    except ValueError:
        given = f"{attribute} is {element.get(attribute)!r}"
        raise PetsegError(f"{where}: {given}; wanted a whole number: export it again") from None


def _polygon(element: Element, size: Size, where: str) -> Polygon:
    pairs = [pair.split(",") for pair in element.get("points", "").split(";") if pair.strip()]
    return polygon(pairs if len({len(pair) for pair in pairs}) == 1 else None, size, where)


def _mask(element: Element, size: Size, where: str) -> Runs:
    top, left, height, width = (_number(element, side, where) for side in ("top", "left", "height", "width"))
    check_box((top, left, height, width), size, where)
    try:
        counts = [int(count) for count in element.get("rle", "").split(",")]
    except ValueError:
        counts = [-1]
    return runs(counts, (top, left, height, width), where)
