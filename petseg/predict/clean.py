"""Clean masks: small pieces apart from the object become background, small holes in it become foreground.

A piece is what is not background, so that a boundary class joins near parts; a hole is enclosed and not foreground.
Both are measured against the photo's largest piece: a second pet stays, wherever it is.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from petseg.data.dataset import Class, Role, UInt8
from petseg.predict.enlarge import Floats
from petseg.predict.regions import find_regions

Limits = tuple[tuple[float, float], tuple[float, float]]
# shares of the largest piece's area from which a piece and a hole are kept: those that background or foreground alone
# surrounds, then those that a boundary class joins to the object; from validation: results/masks/cleaning.json
SMALL: Limits = ((0.05, 0.05), (0.02, 0.01))


def ids_of(classes: Sequence[Class], role: Role) -> list[int]:
    """Returns the class ids of a role."""
    return [place for place, each in enumerate(classes) if each.role == role]


def cleaned(probabilities: Floats, classes: Sequence[Class], small: Limits = SMALL) -> Floats:
    """Returns probabilities [C, h, w] without pieces and holes that are `small`; the same array if there are none.

    In these, foreground and background swap their probabilities, and what the boundary has goes to the likelier one.
    """
    foreground, background = ids_of(classes, "foreground"), ids_of(classes, "background")
    pieces = find_regions(_beyond(probabilities, background, foreground))
    if not background or not pieces.count:
        return probabilities
    largest, (height, width), result = pieces.areas().max(), probabilities.shape[1:], probabilities
    for alone, (piece, _) in zip((True, False), small, strict=True):
        pieces = pieces if alone else find_regions(_beyond(result, background, foreground, alone))
        dropped = pieces.pixels(pieces.areas() < piece * largest, height)
        result = _changed(result, dropped, background, foreground)
    for alone, (_, hole) in zip((True, False), small, strict=True):
        holes = find_regions(_beyond(result, foreground, background, alone))
        left, top, right, bottom = holes.boxes().T
        enclosed = (left > 0) & (top > 0) & (right < width) & (bottom < height)
        filled = holes.pixels(enclosed & (holes.areas() < hole * largest), height)
        result = _changed(result, filled, foreground, background)
    return result


def without_foreground(probabilities: Floats, classes: Sequence[Class]) -> Floats:
    """Returns probabilities [C, h, w] of background alone."""
    result = np.zeros_like(probabilities)
    result[ids_of(classes, "background")[:1]] = 1
    return result


def _beyond(probabilities: Floats, ids: list[int], others: list[int], alone: bool = True) -> UInt8:
    """Returns 0 where `ids` together are likelier than `others`, and one is likeliest if `alone`; else 1, [h, w]."""
    own, rest = probabilities[ids], [place for place in range(len(probabilities)) if place not in ids]
    outside: npt.NDArray[np.bool_] = own.sum(axis=0) < probabilities[others].sum(axis=0)
    if alone and rest:
        highest = own.max(axis=0, initial=0)
        for place in rest:
            outside |= highest < probabilities[place]
    return outside.view(np.uint8)


def _changed(probabilities: Floats, where: npt.NDArray[np.bool_], wins: list[int], loses: list[int]) -> Floats:
    """Returns probabilities [C, h, w] in which, `where`, `loses` have the smaller of both parts, `wins` the rest."""
    if not where.any():
        return probabilities
    pixels = probabilities[:, where]
    tiny = np.finfo(np.float32).tiny
    own, other = np.maximum(pixels[wins], tiny), np.maximum(pixels[loses], tiny)
    less = np.minimum(own.sum(axis=0), other.sum(axis=0))
    decided = np.zeros_like(pixels)
    decided[loses] = other * (less / other.sum(axis=0))
    decided[wins] = own * ((1 - less) / own.sum(axis=0))
    result = probabilities.copy()
    result[:, where] = decided
    return result
