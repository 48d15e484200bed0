"""The cut-out, with a soft edge that follows the photo's own hair, and the overlay.

The edge is a guided filter: within each small window of a reduced photo, opacity is a linear function of colour (He,
Sun, Tang, TPAMI 2013, eq. 19; He, Sun, arXiv 1505.00996). A half-covered pixel's foreground colour comes from blurring
each side's colours into the other (Forte, "Approximate Fast Foreground Colour Estimation", ICIP 2021). With matting,
opacity in the boundary class is solved for instead (matting.py).

We differ from the papers: opacity is fixed away from the mask's edge, where a filter makes holes in patterned fur.
Why no library: opencv-contrib takes 172 MB; the base install is 230 MB.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from petseg.data.dataset import Class, Role, UInt8, palette
from petseg.data.images import resize_ids
from petseg.errors import PetsegError, shown
from petseg.predict.enlarge import Floats, enlarged, windows
from petseg.predict.photos import Photo

FOREGROUND, BACKGROUND, BOUNDARY = 1, 2, 3  # the values of a trimap
WORK = 640  # longer side in pixels of the reduced photo
EDGE = 0.02  # half-width of the band of soft opacity around the mask's edge, as a share of the longer side
STEEPER = 3.0  # opacity rises so much faster than the model's own certainty; a blunt outline blunts the filter
NOISE = 1e-4  # variance of colour (0..1) below which a window counts as plain and keeps the mask's own softness
TILE = (128, 128)  # pixels worked on at once; most tiles lie far from the outline and are copied or left out
CONTRAST = 0.3  # opacity below this becomes 0, above one less this 1
MATTED_RADIUS = 3  # of the windows in which opacity follows a matte, in pixels of the reduced photo
MOST_UNKNOWN = 30_000  # pixels of the reduced photo that are solved for, about two seconds; more: at a smaller size

# of each role's colour over the photo in an overlay; background is tinted white
TINT: dict[Role, float] = {"foreground": 0.45, "background": 0.55, "boundary": 0.7}


def cut_out(photo: Image.Image, share: Floats, trimap: UInt8 | None = None) -> Image.Image:
    """Returns the foreground alone, mode RGBA at the size of the RGB photo; fully transparent pixels are black.

    `share`, [h, w] in 0..1 at any size, is how much of each place is foreground, .5 at the outline; with `trimap`,
    [h, w] at any size, opacity comes from matting, which needs the extra `matting`.
    """
    width, height = photo.size
    small_size = reduced_size(photo.size)
    reduced = photo.resize(small_size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    small = np.divide(np.asarray(reduced), 255, dtype=np.float32)
    (soft,) = enlarged(share[None], small_size[::-1], slice(0, small_size[1]), slice(0, small_size[0]))
    soft = ((soft - 0.5) * STEEPER + 0.5).clip(0, 1)
    radius = max(1, round(EDGE * max(small_size)))
    matte = None if trimap is None else _matte(small, resize_ids(trimap, small_size[::-1]), soft)
    if matte is None:  # `inside` is 0 far outside the mask, 1 far inside, where opacity need not follow from colour
        opacity = _opacity_of_colour(small, soft, radius)
        near = _box(_box((soft >= 0.5).astype(np.float32)[None], radius // 2), radius - radius // 2)
        inside = ((near - 0.5) * 1.02 + 0.5).clip(0, 1)  # rounding must not leave a window of ones at .9999
    else:
        opacity = _opacity_of_colour(small, matte, MATTED_RADIUS)
        opaque, transparent = _all_around(matte > 0.99, 2), _all_around(matte < 0.01, 2)
        inside = (1 + opaque.astype(np.float32) - transparent.astype(np.float32))[None] * np.float32(0.5)

    def spread(side: Floats) -> Floats:  # the colours of one side, [3, h, w], over the other
        total = np.concatenate([small.transpose(2, 0, 1) * side, side])
        far, near = _box(total, 6 * radius), _box(total, 2 * radius)
        colours: Floats = (near[:3] + 0.01 * far[:3] / np.maximum(far[3], 1e-3)) / (near[3] + 0.01)
        return colours

    maps = np.concatenate([inside, opacity, spread((2 * inside - 1).clip(0, 1)), spread((1 - 2 * inside).clip(0, 1))])
    cut = np.zeros((height, width, 4), np.uint8)
    for window in windows((height, width), TILE):
        (certain,) = enlarged(inside, (height, width), *window)
        if certain.max() <= 0:
            continue
        rows, columns = window
        colours = np.asarray(photo.crop((columns.start, rows.start, columns.stop, rows.stop)))
        if certain.min() >= 1:
            cut[rows, columns, :3], cut[rows, columns, 3] = colours, 255
        else:
            cut[window] = _edge(colours, enlarged(maps, (height, width), *window))
    return Image.fromarray(cut)


def reduced_size(size: tuple[int, int], side: float = WORK) -> tuple[int, int]:
    """Returns width and height, or height and width, of a photo whose longer side is reduced to at most `side`."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _edge(photo: UInt8, maps: Floats) -> UInt8:
    """Returns RGBA [H, W, 4] of a photo's part by maps [11, H, W]: inside, opacity of colour, fore- and background."""
    colours = np.divide(photo.transpose(2, 0, 1), 255, dtype=np.float32)
    inside, foreground, background = maps[0], maps[5:8], maps[8:11]
    opacity = (maps[1:4] * colours).sum(axis=0) + maps[4]
    opacity = ((opacity - CONTRAST) / (1 - 2 * CONTRAST)).clip(0, 1)  # the filter leaves haze on both sides
    opacity[inside <= 0] = 0
    opacity[inside >= 1] = 1
    foreground = foreground + opacity * (colours - opacity * foreground - (1 - opacity) * background)
    rgba = np.concatenate([foreground * (opacity > 0), opacity[None]]).clip(0, 1)
    return (rgba * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)


def _matte(image: Floats, trimap: UInt8, soft: Floats) -> Floats | None:
    """Returns opacity [h, w], 0..1; None where there is no foreground or no background to go by."""
    from petseg.predict.matting import solved_opacity

    size, known = trimap.shape, _known(trimap)
    if (unknown := np.isnan(known).sum()) > MOST_UNKNOWN:
        height, width = reduced_size(size, max(size) * (MOST_UNKNOWN / unknown) ** 0.5)
        maps = np.concatenate([image.transpose(2, 0, 1), soft[None]])
        *colours, soft = enlarged(maps, (height, width), slice(0, height), slice(0, width))
        image, known = np.stack(colours, axis=2), _known(resize_ids(trimap, (height, width)))
    if not {0, 1} <= {*np.unique(known)} or min(known.shape) < 3:
        return None
    matte: Floats = solved_opacity(image, known, soft)
    return enlarged(matte[None], size, slice(0, size[0]), slice(0, size[1])).reshape(size)


def _known(trimap: UInt8) -> npt.NDArray[np.float64]:
    """Returns opacity [h, w] where it is certain, well inside either side; nan elsewhere."""
    known = np.full(trimap.shape, np.nan)
    for value, opacity in ((FOREGROUND, 1.0), (BACKGROUND, 0.0)):
        known[_all_around(trimap == value, MATTED_RADIUS)] = opacity
    return known


def _all_around(where: npt.NDArray[np.bool_], radius: int) -> npt.NDArray[np.bool_]:
    """Returns where all of a square of 2 * radius + 1 pixels is, [h, w]."""
    everywhere: npt.NDArray[np.bool_] = _box(where[None].astype(np.float32), radius)[0] > 0.999
    return everywhere


def _opacity_of_colour(image: Floats, soft: Floats, radius: int) -> Floats:
    """Returns how opacity follows from colour, [4, h, w]: it is maps 0..2 times the colour, plus map 3."""
    maps = np.concatenate([image.transpose(2, 0, 1), soft[None]])
    mean = _box(maps, radius)
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2), (0, 3), (1, 3), (2, 3)]
    products, of_means = (np.stack([each[one] * each[other] for one, other in pairs]) for each in (maps, mean))
    rr, rg, rb, gg, gb, bb, rp, gp, bp = _box(products, radius) - of_means
    rr, gg, bb = rr + NOISE, gg + NOISE, bb + NOISE
    # the covariance is symmetrical and 3 x 3: its inverse is written out; solving for each pixel takes longer
    irr, irg, irb = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    igg, igb, ibb = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    determinant = rr * irr + rg * irg + rb * irb
    ar = (irr * rp + irg * gp + irb * bp) / determinant
    ag = (irg * rp + igg * gp + igb * bp) / determinant
    ab = (irb * rp + igb * gp + ibb * bp) / determinant
    offset = mean[3] - ar * mean[0] - ag * mean[1] - ab * mean[2]
    return _box(np.stack([ar, ag, ab, offset]), radius // 2)


def _box(maps: Floats, radius: int) -> Floats:
    """Returns the mean over a square of 2 * radius + 1 pixels around each pixel, [D, h, w]; less of it at the edges."""
    maps = maps.transpose(1, 0, 2)  # a running sum over whole rows; columns are rows the second time
    for _ in range(2):
        maps = np.ascontiguousarray(maps)
        mean, length = np.empty_like(maps), len(maps)
        total = maps[:radius].sum(axis=0)  # float32: what rounding adds up to over a side is far below NOISE
        for row in range(length):
            if row + radius < length:
                total += maps[row + radius]
            if row > radius:
                total -= maps[row - radius - 1]
            count = min(row + radius + 1, length) - max(row - radius, 0)
            np.multiply(total, np.float32(1 / count), out=mean[row])
        maps = mean.transpose(2, 1, 0)
    return maps.transpose(1, 0, 2)


Background = str | os.PathLike[str] | tuple[int, int, int] | Image.Image


def opened_background(given: Background) -> Image.Image:
    """Returns a colour, one pixel, or an image file as an RGB image; PetsegError where it is neither."""
    if isinstance(given, Image.Image) or (isinstance(given, str | os.PathLike) and Path(given).is_file()):
        return Photo(given).whole()
    try:
        return Image.new("RGB", (1, 1), given if isinstance(given, tuple) else str(given))
    except (ValueError, TypeError):
        wanted = "give an image file, or a colour as white, #ff8800, (255, 136, 0)"
        raise PetsegError(f"background {shown(given)} is neither a file nor a colour; {wanted}") from None


def overlay(photo: Image.Image, ids: UInt8, classes: Sequence[Class]) -> Image.Image:
    """Returns the RGB photo tinted with the colour of each pixel's class, background paler; ids at its size."""
    colours, weights = palette(classes), [0] * 256
    for place, each in enumerate(classes):
        weights[place] = round(255 * TINT[each.role])
        if each.role == "background":
            colours[place] = 255
    image = Image.fromarray(ids)
    painted = image.copy()
    painted.putpalette(colours.tobytes())
    return Image.composite(painted.convert("RGB"), photo, image.point(weights))
