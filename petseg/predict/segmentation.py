"""What a model sees in one photo. Axis letters: C classes, h w pixels as the model sees it, H W of the photo."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageOps

from petseg.data.dataset import Class, Role, UInt8
from petseg.data.geometry import WHOLE
from petseg.data.images import resize_ids
from petseg.errors import PetsegError
from petseg.predict.clean import cleaned, ids_of, without_foreground
from petseg.predict.cutout import (
    BACKGROUND,
    BOUNDARY,
    FOREGROUND,
    Background,
    cut_out,
    opened_background,
    overlay,
    reduced_size,
)
from petseg.predict.enlarge import Floats, Size, painted
from petseg.predict.photos import Photo
from petseg.predict.presence import Presence
from petseg.predict.regions import Regions, find_regions

SMALLEST = 0.001  # share of the photo that a foreground region must cover to count; what is smaller is a speckle
LARGEST_OVERLAY = 2048  # longer side in pixels: a whole overlay of 12 megapixels takes 15 MB and a second
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class ForegroundClass:
    """The likeliest foreground class of a photo or a region."""

    name: str
    probability: float  #: its share of what is foreground, pixels weighted by how likely foreground is there; 0 to 1


@dataclass(frozen=True)
class Box:
    """A connected foreground region. Two objects that touch are one region."""

    left: int
    top: int
    right: int  #: one past the last pixel
    bottom: int
    share: float  #: of the photo's pixels, 0 to 1
    confidence: float | None  #: as `Segmentation.confidence`, of this region
    foreground_class: ForegroundClass | None


@dataclass(frozen=True)
class Summary:
    """A segmentation in figures."""

    width: int
    height: int
    foreground: bool  #: whether there is a box
    presence: float | None  #: as `Segmentation.presence`
    foreground_share: float
    confidence: float | None
    foreground_class: ForegroundClass | None
    boxes: tuple[Box, ...]
    notes: tuple[str, ...]  #: what a user should know of the photo, as that the first frame of an animation is used

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON holds, floats to six digits behind the point."""

        def rounded(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            return {name: round(value, 6) if isinstance(value, float) else value for name, value in pairs}

        return asdict(self, dict_factory=rounded)


def in_words(summary: Summary, classes: Sequence[Class]) -> str:
    """Returns what a photo shows: the class of each region where they differ, how sure of it, the share."""
    names = [each.name for each in classes if each.role == "foreground"]
    if not summary.foreground:
        return f"no {' or '.join(names)}" if len(names) < 4 else "no foreground"
    regions = {box.foreground_class.name: box.foreground_class for box in summary.boxes[::-1] if box.foreground_class}
    if len(regions) < 2:
        regions = {each.name: each for each in (summary.foreground_class,) if each}
    seen = [f"{each.name}, {100 * each.probability:.0f} % sure {_of(each.name, names)}" for each in regions.values()]
    seen = seen[::-1] or (names if len(names) == 1 else ["foreground"])
    return f"{', and '.join(seen)}, {100 * summary.foreground_share:.0f} % of the photo"


def _of(name: str, names: Sequence[str]) -> str:
    others = [each for each in names if each != name]
    return f"that it is no {others[0]}" if len(others) == 1 else "of the class"


@dataclass(frozen=True, eq=False)
class Detail:
    """What is painted of a photo whose probabilities are too many to be kept, each uint8 [h, w]; see `Segmentation`."""

    mask: UInt8
    class_ids: UInt8
    trimap: UInt8


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a model sees in one photo; maps at the photo's own size are made when they are first asked for.

    `mask`, `class_ids` and `trimap` are the network's own. Boxes, cut-out and overlay leave out small pieces and fill
    small holes, and are empty where `presence` is too low, unless `raw`.
    """

    #: float32 [C, h, w], as the model sees it, or finer where it looked twice; a pixel's classes add up to 1. Of a
    #: photo seen in windows at most 4 megapixels, evenly chosen; mask, class ids and trimap are of all of them
    probabilities: Floats = field(repr=False)
    classes: tuple[Class, ...]  #: by class id
    photo: Photo = field(repr=False)
    seconds: float = 0.0  #: what the network alone took; of a batch, this photo's part
    raw: bool = False
    calibrated: Presence | None = field(default=None, repr=False)  #: None: the model has no presence score
    detail: Detail | None = field(default=None, repr=False)  #: None: everything follows from the probabilities

    @property
    def size(self) -> Size:
        """Height and width of the photo, upright."""
        return self.photo.size

    @cached_property
    def mask(self) -> UInt8:
        """uint8 [H, W]: 255 where the foreground classes together are likelier than the background, 0 elsewhere."""
        return self._mask(self._roles) if self.detail is None else resize_ids(self.detail.mask, self.size)

    @cached_property
    def class_ids(self) -> UInt8:
        """uint8 [H, W]: the likeliest class of each pixel, an index of `classes`."""
        if self.detail is not None:
            return resize_ids(self.detail.class_ids, self.size)
        return _class_ids(self.probabilities, self.size)

    @cached_property
    def trimap(self) -> UInt8:
        """uint8 [H, W]: 1 foreground, 2 background, 3 boundary; PetsegError if the model has no boundary class."""
        if all(each.role != "boundary" for each in self.classes):
            raise PetsegError("this model has no boundary class, so there is no trimap; take the mask or the classes")
        return _trimap(self._roles, self.size) if self.detail is None else resize_ids(self.detail.trimap, self.size)

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """The foreground regions that cover at least a thousandth of the photo, the largest first."""
        shares, corners = self._regions.areas() / (self.size[0] * self.size[1]), self._regions.boxes().tolist()
        boxes: list[Box] = []
        for region in np.argsort(-shares, kind="stable").tolist():
            if shares[region] >= SMALLEST:
                inside = self._region_at == region
                left, top, right, bottom = corners[region]
                figures = float(shares[region]), self._mean_confidence(inside), self._foreground_class(inside)
                boxes.append(Box(left, top, right, bottom, *figures))
        return tuple(boxes)

    @cached_property
    def presence(self) -> float | None:
        """How likely the photo shows any foreground object, 0 to 1; None if the model was not calibrated for that."""
        return None if self.calibrated is None else self.calibrated(*self._roles[:2])

    @property
    def present(self) -> bool:
        """Whether there is an object: False where `presence` is below the model's threshold."""
        return self.presence is None or self.calibrated is None or self.presence >= self.calibrated.threshold

    @property
    def foreground_share(self) -> float:
        """Share of the photo that the mask covers, 0 to 1."""
        return float(np.count_nonzero(self.mask) / self.mask.size)

    @property
    def class_shares(self) -> dict[str, float]:
        """Class -> share of the pixels, as the model sees them, whose likeliest class it is; 0 to 1."""
        counts = np.bincount(self.probabilities.argmax(axis=0).ravel(), minlength=len(self.classes))
        return {each.name: float(count / counts.sum()) for each, count in zip(self.classes, counts, strict=True)}

    @cached_property
    def confidence(self) -> float | None:
        """Mean of p(foreground) / (p(foreground) + p(background)) over the foreground, .5 to 1; None without either."""
        return self._mean_confidence(self._region_at >= 0) if self.boxes else None

    @cached_property
    def entropy(self) -> float:
        """Mean entropy of the pixels' probabilities over its highest value: 0 certain, 1 all classes equally likely."""
        entropies = -(self.probabilities * np.log(np.maximum(self.probabilities, TINY))).sum(axis=0)
        return float(entropies.mean() / np.log(max(2, len(self.classes))))

    @cached_property
    def foreground_class(self) -> ForegroundClass | None:
        """The likeliest class of the boxes, each pixel weighted by p(foreground); None without a box or a choice."""
        return self._foreground_class(self._region_at >= 0) if self.boxes else None

    def cutout(self, *, matting: bool = False, background: Background | None = None, crop: bool = False) -> Image.Image:
        """Returns the foreground alone at the photo's size, mode RGBA: soft edge, the background's colour removed.

        `matting` takes more time for finer hair and no holes in the boundary class; it needs the extra `matting`. On a
        `background`, a colour or an image or its file, it is RGB. `crop` leaves out what is transparent all around.
        """
        speckle = self._speckle(self.probabilities.shape[1:])
        size = reduced_size(self.size)
        trimap = np.where(self._speckle(size), BACKGROUND, _trimap(self._kept_roles, size)) if matting else None
        cut = cut_out(self.photo.whole(), np.where(speckle, 0, _share(self._kept_roles)), trimap)
        if opacity := self.photo.opacity():  # what is transparent in the photo stays so
            cut.putalpha(ImageChops.darker(cut.getchannel("A"), opacity))
            cut = Image.composite(cut, Image.new("RGBA", cut.size), cut.getchannel("A").point(lambda a: 255 * (a > 0)))
        box = cut.getbbox() if crop else None
        if background is not None:
            behind = ImageOps.fit(opened_background(background), cut.size)
            behind.paste(cut, mask=cut)
            cut = behind
        return cut.crop(box) if box else cut

    def overlay(self) -> Image.Image:
        """Returns the photo, at most 2048 px a side, tinted with the classes' colours; background is paler. RGB."""
        photo = self.photo.reduced(LARGEST_OVERLAY)
        return overlay(photo, _class_ids(self._kept, (photo.height, photo.width)), self.classes)

    def _repr_png_(self) -> bytes:
        """Returns the overlay, which a notebook shows."""
        stream = BytesIO()
        self.overlay().save(stream, "PNG")
        return stream.getvalue()

    def summary(self) -> Summary:
        """Returns what JSON holds."""
        height, width = self.size
        figures = self.presence, self.foreground_share, self.confidence, self.foreground_class
        return Summary(width, height, bool(self.boxes), *figures, self.boxes, self.photo.notes)

    @cached_property
    def _roles(self) -> Floats:
        return _roles_of(self.probabilities, self.classes)

    @cached_property
    def _kept(self) -> Floats:
        """[C, h, w]: what boxes, cut-out and overlay are made of."""
        if self.raw:
            return self.probabilities
        return (cleaned if self.present else without_foreground)(self.probabilities, self.classes)

    @cached_property
    def _kept_roles(self) -> Floats:
        return self._roles if self._kept is self.probabilities else _roles_of(self._kept, self.classes)

    def _mask(self, roles: Floats) -> UInt8:
        return painted(_log_odds(roles)[:1], self.size, _mask_of)

    @cached_property
    def _regions(self) -> Regions:
        return find_regions(self.mask if self._kept is self.probabilities else self._mask(self._kept_roles))

    def _regions_at(self, size: Size) -> npt.NDArray[np.int64]:
        """Returns the region that the middle of each pixel of a map of this size lies in, -1 outside, [h, w]."""
        rows, columns = map(_middles, size, self.size)
        return self._regions.at(rows[:, None], columns)

    @cached_property
    def _region_at(self) -> npt.NDArray[np.int64]:
        """[h, w]: the region that each of the model's pixels lies in."""
        return self._regions_at(self.probabilities.shape[1:])

    def _speckle(self, size: Size) -> npt.NDArray[np.bool_]:
        """Returns where regions lie that are too small for a box, [h, w] of this size."""
        small = self._regions.areas() < SMALLEST * self.size[0] * self.size[1]
        return np.append(small, False)[self._regions_at(size)]

    def _mean_confidence(self, where: npt.NDArray[np.bool_]) -> float | None:
        if not ids_of(self.classes, "background"):
            return None
        # a region so narrow that it holds no middle of a pixel of the model's lies on the outline, where both are even
        return float(_share(self._roles)[where].mean()) if where.any() else 0.5

    def _foreground_class(self, where: npt.NDArray[np.bool_]) -> ForegroundClass | None:
        ids = ids_of(self.classes, "foreground")
        sums = {place: float(self.probabilities[place][where].sum()) for place in ids}
        if len(sums) < 2 or not where.any():
            return None
        likeliest = max(sums, key=sums.__getitem__)
        return ForegroundClass(self.classes[likeliest].name, sums[likeliest] / sum(sums.values()))


def _class_ids(probabilities: Floats, size: Size) -> UInt8:
    return painted(np.log(np.maximum(probabilities, TINY)), size, lambda maps: maps.argmax(axis=0).astype(np.uint8))


def _trimap(roles: Floats, size: Size) -> UInt8:
    return painted(_log_odds(roles), size, _trimap_of)


def _mask_of(log_odds: Floats) -> UInt8:
    mask: UInt8 = (log_odds[0] > 0) * np.uint8(255)
    return mask


def _trimap_of(log_odds: Floats) -> UInt8:
    foreground, boundary = log_odds
    sides = np.where(foreground > 0, np.uint8(FOREGROUND), np.uint8(BACKGROUND))
    return np.where(boundary > np.maximum(foreground, 0), np.uint8(BOUNDARY), sides)


def _roles_of(probabilities: Floats, classes: Sequence[Class]) -> Floats:
    """Returns how likely any foreground, background and boundary class is, [3, h, w]."""
    roles: tuple[Role, ...] = ("foreground", "background", "boundary")
    return np.stack([probabilities[ids_of(classes, role)].sum(axis=0) for role in roles])


def _middles(count: int, length: int) -> npt.NDArray[np.int64]:
    """Returns the pixels of `length`, rising, that the middles of `count` pixels over the same side lie in."""
    return ((np.arange(count) + 0.5) * length / count).astype(np.int64)


def kept(bands: Iterable[Floats], content: Size, classes: Sequence[Class]) -> tuple[Floats, Detail | None]:
    """Returns the probabilities [C, h, w] of bands [C, rows, w], or of a large photo's a part, and what they say."""
    share = WHOLE / math.prod(content)
    if share >= 1:
        return np.concatenate(list(bands), axis=1), None
    height, width = (max(1, round(length * share**0.5)) for length in content)
    rows, columns = _middles(height, content[0]), _middles(width, content[1])
    part = np.empty((len(classes), height, width), np.float32)
    detail = Detail(*(np.empty(content, np.uint8) for _ in range(3)))
    top = 0
    for band in bands:
        place = slice(top, top + band.shape[1])
        maps = _log_odds(_roles_of(band, classes))
        detail.mask[place] = _mask_of(maps)
        detail.class_ids[place] = band.argmax(axis=0)
        detail.trimap[place] = _trimap_of(maps)
        inside = (place.start <= rows) & (rows < place.stop)
        part[:, inside] = band[:, rows[inside] - top][:, :, columns]
        top = place.stop
    return part, detail


def _share(roles: Floats) -> Floats:
    """Returns the foreground's part of what is foreground or background, [h, w] in 0..1; .5 at the outline."""
    foreground, background, _ = roles
    share: Floats = foreground / np.maximum(foreground + background, TINY)
    return share


def _log_odds(roles: Floats) -> Floats:
    """Returns log of p(foreground) and p(boundary) over p(background), [2, h, w]; enlarged as scores enlarge logits."""
    foreground, background, boundary = np.log(np.maximum(roles, TINY))
    return np.stack([foreground - background, boundary - background])
