"""What annotation files draw: polygons and run lengths, as pixels. H W are the pixels of the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from petseg.data.dataset import UInt8
from petseg.errors import PetsegError

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]  # how many pixels are outside, inside, outside, ...
Size = tuple[int, int]  # height and width in pixels
Box = tuple[int, int, int, int]  # top, left, height, width in pixels
CIRCLE = 72  # corners of the polygon that stands for a circle


@dataclass(frozen=True, eq=False)
class Polygon:
    """An outline [n, 2] of x and y in pixels; (0, 0) is the corner of the first pixel, not its middle."""

    points: Floats

    @property
    def area(self) -> float:
        """Pixels inside, by the shoelace formula."""
        (x, y), (next_x, next_y) = self.points.T, np.roll(self.points, -1, axis=0).T
        return float(abs(x @ next_y - next_x @ y) / 2)

    def pixels(self, size: Size) -> tuple[Box, Bools]:
        """Returns the part of the image that the outline lies in, and which pixels of it are inside."""
        # as the official COCO code does it, which CVAT's exports use too: masks are those that others trained on
        from pycocotools import mask

        (left, top), (right, bottom) = np.floor(self.points.min(0)), np.ceil(self.points.max(0))
        top, left = min(max(0, int(top)), size[0] - 1), min(max(0, int(left)), size[1] - 1)
        height, width = max(1, min(size[0], int(bottom)) - top), max(1, min(size[1], int(right)) - left)
        corners = (self.points - (left, top)).ravel().tolist()
        (drawn,) = mask.frPyObjects([corners], height, width)
        counts = coco_counts(drawn["counts"].decode("ascii"), "a polygon")
        return Runs(counts, (top, left, height, width), by_column=True).pixels(size)


@dataclass(frozen=True, eq=False)
class Runs:
    """Run lengths of the pixels of a box, row by row, or column by column as COCO counts."""

    counts: Counts
    box: Box
    by_column: bool = False

    @property
    def area(self) -> float:
        """Pixels inside."""
        return float(self.counts[1::2].sum())

    def pixels(self, size: Size) -> tuple[Box, Bools]:
        """Returns the box and which pixels of it are inside."""
        _, _, height, width = self.box
        flat = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        return self.box, flat.reshape(width, height).T if self.by_column else flat.reshape(height, width)


@dataclass(frozen=True)
class Shape:
    """A region of one class, of one part or several."""

    class_id: int  # 255: ignored
    parts: tuple[Polygon | Runs, ...]

    @property
    def area(self) -> float:
        """Pixels inside; parts that overlap count twice."""
        return sum(part.area for part in self.parts)


def painted(size: Size, shapes: Sequence[Shape], unlabelled: int) -> UInt8:
    """Returns class ids uint8 [H, W]: each shape painted over those before it, `unlabelled` where there is none."""
    ids = np.full(size, unlabelled, np.uint8)
    for shape in shapes:
        for part in shape.parts:
            (top, left, height, width), inside = part.pixels(size)
            ids[top : top + height, left : left + width][inside] = shape.class_id
    return ids


def polygon(points: Any, size: Size, where: str) -> Polygon:
    """Returns an outline of [[x, y], ...]; refuses fewer than 3 points and points far outside the image."""
    corners = numbers(points, where)
    if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
        given = f"{len(corners)} points" if corners.ndim == 2 else f"points of shape {list(corners.shape)}"
        raise PetsegError(f"{where}: a polygon of {given}; wanted at least 3 of x and y: remove it or draw it again")
    sides = np.array([size[1], size[0]])
    if (corners < -sides).any() or (corners > 2 * sides).any():
        far = corners[np.abs(corners / sides - 0.5).max(axis=1).argmax()]
        place, image = f"({far[0]:g}, {far[1]:g})", f"{size[1]}x{size[0]}"
        raise PetsegError(f"{where}: point {place} lies far outside the image of {image}; is the image another one?")
    return Polygon(corners)


def rectangle(corners: Any, size: Size, where: str) -> Polygon:
    """Returns the outline of two opposite corners [[x, y], [x, y]]."""
    given = numbers(corners, where)
    if given.shape != (2, 2):
        raise PetsegError(f"{where}: a rectangle of shape {list(given.shape)}; wanted two corners of x and y")
    (x, y), (far_x, far_y) = given.tolist()
    return polygon([[x, y], [far_x, y], [far_x, far_y], [x, far_y]], size, where)


def ellipse(middle: Any, radii: Any, size: Size, where: str) -> Polygon:
    """Returns an ellipse, [x, y] and [radius x, radius y], as a polygon of `CIRCLE` corners."""
    angles = np.arange(CIRCLE) * (2 * np.pi / CIRCLE)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return polygon(numbers(middle, where) + numbers(radii, where) * around, size, where)


def numbers(values: Any, where: str) -> Floats:
    """Returns what a file lists as finite float64 of any shape; refuses anything else."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if not np.isfinite(array).all():
        raise PetsegError(f"{where}: holds coordinates that are no numbers; export it again")
    return array


def runs(counts: Any, box: Box, where: str, *, by_column: bool = False) -> Runs:
    """Returns run lengths; refuses those that do not fill their box exactly."""
    given = counts if isinstance(counts, np.ndarray) else _whole_numbers(counts)
    _, _, height, width = box
    if given is None or given.ndim != 1 or (given < 0).any():
        raise PetsegError(f"{where}: run lengths that are no whole numbers from 0; export it again")
    if (total := int(given.sum())) != height * width:
        raise PetsegError(f"{where}: run lengths of {total:,} pixels for {width}x{height}; is the image another one?")
    return Runs(given, box, by_column)


def check_box(box: Box, size: Size, where: str) -> None:
    """Refuses a mask's box that is empty or does not lie within the image."""
    top, left, height, width = box
    if min(top, left) < 0 or min(height, width) < 1 or top + height > size[0] or left + width > size[1]:
        given, image = f"{width}x{height} at {left}, {top}", f"{size[1]}x{size[0]}"
        raise PetsegError(f"{where}: a mask of {given} in an image of {image}; is the image another one?")


def _whole_numbers(values: Any) -> Counts | None:
    if not isinstance(values, list) or any(type(value) is not int or not abs(value) < 1 << 40 for value in values):
        return None
    return np.array(values, np.int64)


def runs_of(inside: Bools, *, by_column: bool = False) -> Counts:
    """Returns the run lengths of a mask [H, W]; the first counts what is outside, and may be 0."""
    flat = inside.ravel(order="F" if by_column else "C")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]]))
    return np.concatenate([[0], counts]) if flat.size and flat[0] else counts


def coco_counts(text: str, where: str) -> Counts:
    """Returns the run lengths in COCO's compressed text: five bits a character, from the third on as differences.

    The official decoder trusts what it reads: of 200,000 random texts one ended the process (pycocotools 2.0.11), and
    one that is too short shows memory that was never written.
    """
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(codes & 32 == 0)  # the last character of each number
    lengths = np.diff(last, prepend=-1)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32 or lengths.max() > 8:
        raise PetsegError(f"{where}: run lengths that are no COCO text; export it again")
    places = np.arange(len(codes)) - np.repeat(last - lengths + 1, lengths)
    values = np.add.reduceat((codes & 31) << 5 * places, last - lengths + 1)
    values -= np.where(codes[last] & 16, np.int64(1) << 5 * lengths, 0)  # negative
    for first in (1, 2):  # each is the difference to the one before the one before it
        values[first::2] = np.cumsum(values[first::2])
    return values


def sorted_by_area(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """Returns the largest first, so that a small object in front of a large one is seen."""
    return tuple(sorted(shapes, key=lambda shape: -shape.area))
