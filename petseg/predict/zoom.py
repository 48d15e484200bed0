"""A second, closer look at small objects: where they lie, and one map of both looks.

A network that sees a whole photo in a square sees a pet in a third of its width in a third of the square. Margin, shape
and least gain were chosen on validation images with unet_lite2; what they change there: results/masks/zoom.json.
"""

import math
from collections.abc import Sequence

import numpy as np

from petseg.data.dataset import Class
from petseg.predict.clean import SMALL, ids_of
from petseg.predict.enlarge import Floats, Size, enlarged
from petseg.predict.photos import Crop
from petseg.predict.regions import find_regions

MARGIN = 0.15  # around the objects, in their own size
LONGEST = 4 / 3  # longer by shorter side of a crop, as of most photos: networks see it squashed to a square
WORTH = 0.5  # share of the photo below which a crop is looked at: where it is more, it shows little more
CLOSEST = 0.25  # of each side of the photo: maps are at most four times the model's size
EDGE = 0.08  # share of a crop's side over which both looks are blended


def worth_a_look(probabilities: Floats, classes: Sequence[Class], photo: Size) -> Crop | None:
    """Returns the part of a photo that holds its objects; None where that is nearly all of it, or there are none.

    Args:
        probabilities: [C, h, w] of the whole photo.
        classes: by class id.
        photo: height and width of the photo in pixels.
    """
    foreground, background = (probabilities[ids_of(classes, role)].sum(axis=0) for role in ("foreground", "background"))
    regions = find_regions((foreground > background).view(np.uint8))
    if not regions.count:
        return None
    (surrounded, _), _ = SMALL
    areas = regions.areas()
    boxes = regions.boxes()[areas >= surrounded * areas.max()]
    first, past = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    photo_sides = np.array(photo[::-1])
    pixels = photo_sides / probabilities.shape[:0:-1]  # of the photo for one of the map, across and down
    sides = (past - first) * pixels * (1 + 2 * MARGIN)
    sides = np.minimum(np.maximum(np.maximum(sides, sides[::-1] / LONGEST), CLOSEST * photo_sides), photo_sides)
    if math.prod(sides) >= WORTH * math.prod(photo):
        return None
    start = ((first + past) / 2 * pixels - sides / 2).clip(0, photo_sides - sides)
    left, top = np.floor(start).astype(int).tolist()
    right, bottom = np.ceil(start + sides).astype(int).clip(max=photo_sides).tolist()
    return left, top, right, bottom


def joined(whole: Floats, closer: Floats, crop: Crop, photo: Size) -> Floats:
    """Returns one map [C, h, w] of a photo, as fine as the closer look at a crop of it; their edges are blended."""
    left, top, right, bottom = crop
    height, width = photo
    size = round(closer.shape[1] * height / (bottom - top)), round(closer.shape[2] * width / (right - left))
    (rows, down), (columns, across) = _axis(top, bottom, height, size[0]), _axis(left, right, width, size[1])
    result = enlarged(whole, size, slice(0, size[0]), slice(0, size[1]))
    within = len(down), len(across)
    near = enlarged(closer, within, slice(0, within[0]), slice(0, within[1]))
    result[:, rows, columns] += (near - result[:, rows, columns]) * (down[:, None] * across)
    return result


def _axis(start: int, end: int, length: int, count: int) -> tuple[slice, Floats]:
    """Returns the places of a side of `count` that pixels start..end of `length` fall on, and the crop's weight there.

    It rises from each end that lies within the photo.
    """
    place = slice(round(start * count / length), round(end * count / length))
    places = place.stop - place.start
    weight = np.ones(places, np.float32)
    rise = ((np.arange(places) + 0.5) / max(1, EDGE * places)).clip(max=1).astype(np.float32)
    if start > 0:
        weight *= rise
    if end < length:
        weight *= rise[::-1]
    return place, weight
