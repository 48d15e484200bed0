"""A small made pets set in the official layout, so that tests, demos and a first try need no download.

Cats and dogs are drawn from ellipses, polygons and strokes, given fur, and put into furnished rooms whose colours
overlap with the fur's: colour alone does not find the pet, shape and texture do. Class shares are near those of the
Oxford-IIIT Pet Dataset (about 30 / 58 / 12 % of the pixels are pet, background, border).

H W are the pixels of one picture; drawing happens at twice its size and is averaged down.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from petseg.data.oxford_pets import BACKGROUND, BORDER, PET
from petseg.errors import PetsegError, unknown_name

CATS = (
    *("Abyssinian", "Bengal", "Birman", "Bombay", "British_Shorthair", "Egyptian_Mau", "Maine_Coon", "Persian"),
    *("Ragdoll", "Russian_Blue", "Siamese", "Sphynx"),
)
"""The official cat breeds; their breed ids are 1..12 in this order."""

DOGS = (
    *("american_bulldog", "american_pit_bull_terrier", "basset_hound", "beagle", "boxer", "chihuahua"),
    *("english_cocker_spaniel", "english_setter", "german_shorthaired", "great_pyrenees", "havanese", "japanese_chin"),
    *("keeshond", "leonberger", "miniature_pinscher", "newfoundland", "pomeranian", "pug", "saint_bernard", "samoyed"),
    *("scottish_terrier", "shiba_inu", "staffordshire_bull_terrier", "wheaten_terrier", "yorkshire_terrier"),
)
"""The official dog breeds; their breed ids are 1..25 in this order."""

TRAPS: dict[str, str] = {
    "._Abyssinian_1.png": "hidden file beside the trimaps",
    "._Abyssinian_1.jpg": "hidden file among the images",
    "Abyssinian_1.mat": "mat file among the images",
    "Abyssinian_2.mat": "mat file among the images",
    "beagle_1.mat": "mat file among the images",
    "Abyssinian_901": "RGB PNG named .jpg",
    "Abyssinian_902": "RGBA PNG named .jpg",
    "Abyssinian_903": "GIF named .jpg",
    "Abyssinian_904": "palette PNG with transparency named .jpg",
    "Abyssinian_905": "CMYK JPEG",
    "Abyssinian_906": "16-bit grey PNG named .jpg",
    "beagle_901": "truncated JPEG",
    "beagle_902": "EXIF orientation",
    "beagle_903": "empty image file",
    "beagle_904": "trimap without pet",
    "beagle_905": "trimap of half the size",
    "beagle_906": "trimap of another aspect",
    "beagle_907": "trimap of other values",
    "beagle_908": "image without trimap",
    "beagle_909": "trimap without image",
    "beagle_910": "listed without image",
    "Abyssinian_911": "image in no list",
    "beagle_911": "image in no list",
}
"""Each trap that `make_pets(traps=True)` sets: file name (stray files) or picture name -> kind.

All pictures are in list.txt and trainval.txt but for the two in no list and beagle_909, whose trimap alone exists.
beagle_902 is stored lying on its side and its trimap with it: the two fit as stored, not after turning the image alone.
"""

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def make_pets(
    folder: Path, *, per_breed: int = 6, breeds: int = 6, size: int = 160, seed: int = 0, traps: bool = False
) -> Path:
    """Returns `folder`, now with `images/*.jpg`, `annotations/trimaps/*.png` and the official lists.

    Half of the breeds are cats as long as there are any; half of each breed's pictures are in trainval.txt, half in
    test.txt (an odd one goes to trainval). Trimaps are uint8 with 1 pet, 2 background, 3 border. Sizes vary, odd ones
    among them; the longer side is between 0.85 and 1.15 times `size`. A picture depends on its breed, number, `size`
    and `seed` alone, so a larger set holds the smaller one.

    Args:
        folder: Made when it is missing; files of the same names are overwritten.
        per_breed: Pictures a breed, 2..900.
        breeds: How many of the 37 breeds, 2..37.
        size: Pixels of the longer side, about; at least 32.
        seed: Not negative.
        traps: Adds one of each trap in `TRAPS`.

    Raises:
        PetsegError: A number is out of its range.
    """
    for name, value, low, high in (
        ("per_breed", per_breed, 2, 900),
        ("breeds", breeds, 2, len(CATS) + len(DOGS)),
        ("size", size, 32, 4096),
        ("seed", seed, 0, 2**63),
    ):
        if not low <= value <= high:
            raise PetsegError(f"{name} is {value}; give one from {low} to {high}")
    images, trimaps = folder / "images", folder / "annotations" / "trimaps"
    images.mkdir(parents=True, exist_ok=True)
    trimaps.mkdir(parents=True, exist_ok=True)

    lists: dict[str, list[str]] = {"list": [], "trainval": [], "test": []}
    for breed in _chosen(breeds):
        for number in range(1, per_breed + 1):
            name = f"{breed}_{number}"
            image, trimap = draw_pet(breed, number, size=size, seed=seed)
            Image.fromarray(image).save(images / f"{name}.jpg", quality=92)
            Image.fromarray(trimap).save(trimaps / f"{name}.png")
            lists["list"].append(name)
            lists["trainval" if number <= (per_breed + 1) // 2 else "test"].append(name)
    if traps:
        listed = _set_traps(images, trimaps, size, seed)
        lists["list"] += listed
        lists["trainval"] += listed
    for key, names in lists.items():
        header = _LIST_HEADER if key == "list" else ""
        lines = "".join(f"{_list_line(name)}\n" for name in sorted(names, key=_order))
        (folder / "annotations" / f"{key}.txt").write_text(header + lines, encoding="ascii")
    return folder


def draw_pet(breed: str, number: int, *, size: int = 160, seed: int = 0) -> tuple[Bytes, Bytes]:
    """Returns one picture: image [H, W, 3] uint8 RGB and trimap [H, W] uint8 (1 pet, 2 background, 3 border).

    `breed` gives the coat and proportions, `number` the pose, the place and the room.

    Raises:
        PetsegError: The breed is unknown.
    """
    if breed not in CATS + DOGS:
        raise unknown_name("breed", breed, CATS + DOGS)
    breed_id = _breed_id(breed)
    look = _look(np.random.default_rng([seed, breed_id]), is_cat=breed in CATS)
    rng = np.random.default_rng([seed, breed_id, number])

    long = round(size * rng.uniform(0.85, 1.15))
    short = round(long * rng.uniform(0.72, 0.97))
    H, W = (short, long) if rng.random() < 0.6 else (long, short)
    figure = _figure(rng, look)
    place = _place(rng, figure, H, W)
    alpha, shade, second, details = _rasterise(figure, place, H, W)

    room = _room(rng, H, W)
    room *= 1 - 0.45 * _shadow(alpha)[..., None]
    pet = _coat(rng, look, alpha, shade, second, H, W)
    ink = details[..., 3:]
    pet = pet * (1 - ink) + details[..., :3] * ink
    image = room * (1 - alpha[..., None]) + pet * alpha[..., None]
    image *= rng.uniform(0.85, 1.1)
    image += rng.normal(0, 0.012, (H, W, 1)).astype(np.float32)  # the camera's noise, alike on pet and room
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), _trimap(alpha)


def _shadow(alpha: Floats) -> Floats:
    """Returns the shadow [H, W] in 0..1 that makes the pet stand in the room: blurred, a little below and beside it."""
    H, W = alpha.shape
    down, right = round(H * 0.03), round(W * 0.02)
    moved = np.zeros_like(alpha)
    moved[down:, right:] = alpha[: H - down, : W - right]
    blurred = Image.fromarray((moved * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(max(H, W) * 0.03))
    return np.asarray(blurred, np.float32) / np.float32(255)


def _trimap(alpha: Floats) -> Bytes:
    """Returns the trimap of a silhouette: a band of about 3.3 % of the mean side around its outline is border."""
    H, W = alpha.shape
    reach = max(1, round(0.0165 * (H + W) / 2))
    solid = Image.fromarray(np.where(alpha >= 0.5, 255, 0).astype(np.uint8))
    inner = np.asarray(solid.filter(ImageFilter.MinFilter(2 * reach + 1))) > 0
    outer = np.asarray(solid.filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0
    return np.where(inner, PET, np.where(outer, BORDER, BACKGROUND)).astype(np.uint8)


# --------------------------------------------------------------------------------------------------------------------
# The official lists

_LIST_HEADER = """\
#Image CLASS-ID SPECIES BREED ID
#ID: 1:37 Class ids
#SPECIES: 1:Cat 2:Dog
#BREED ID: 1-25:Cat 1:12:Dog
#All images with 1st letter as captial are cat images
#images with small first letter are dog images
"""  # the official words, slips included


def _chosen(breeds: int) -> list[str]:
    cats = min(len(CATS), (breeds + 1) // 2)
    start = DOGS.index("beagle")  # a short set has the field's usual example
    return [*CATS[:cats], *(DOGS[start:] + DOGS[:start])[: breeds - cats]]


def _breed_id(breed: str) -> int:
    """Returns the official class id, 1..37: all breeds in the order of their names, capitals or not."""
    return sorted(CATS + DOGS, key=str.lower).index(breed) + 1


def _order(name: str) -> tuple[int, int]:
    breed, _, number = name.rpartition("_")
    return _breed_id(breed), int(number)


def _list_line(name: str) -> str:
    breed = name.rpartition("_")[0]
    is_cat = breed in CATS
    within = (CATS if is_cat else DOGS).index(breed) + 1
    return f"{name} {_breed_id(breed)} {1 if is_cat else 2} {within}"


# --------------------------------------------------------------------------------------------------------------------
# The pet: parts in its own frame (x right, y down, about -1..1), then pixels

Colour = tuple[float, float, float]

_FURS: tuple[tuple[Colour, Colour], ...] = (  # main colour, second colour
    ((0.80, 0.50, 0.24), (0.95, 0.86, 0.72)),  # ginger, cream
    ((0.50, 0.48, 0.47), (0.86, 0.85, 0.83)),  # grey, pale
    ((0.18, 0.16, 0.16), (0.88, 0.86, 0.83)),  # black, white
    ((0.88, 0.84, 0.77), (0.60, 0.44, 0.30)),  # cream, tan
    ((0.48, 0.33, 0.22), (0.85, 0.74, 0.58)),  # brown, sand
    ((0.70, 0.56, 0.38), (0.28, 0.20, 0.15)),  # fawn, dark
    ((0.40, 0.43, 0.50), (0.70, 0.73, 0.78)),  # blue, silver
    ((0.93, 0.92, 0.90), (0.72, 0.54, 0.36)),  # white, tan
)


@dataclass(frozen=True)
class _Look:
    """What the pictures of one breed share."""

    is_cat: bool
    fur: Colour
    fur2: Colour
    pattern: str  # plain, tabby, patches, points
    eyes: Colour
    ear: float  # proportion, about 1
    snout: float
    girth: float
    tail: float
    fluff: float  # amplitude of the fur


def _look(rng: np.random.Generator, *, is_cat: bool) -> _Look:
    fur, fur2 = _FURS[rng.integers(len(_FURS))]
    patterns = ("plain", "tabby", "tabby", "points") if is_cat else ("plain", "patches", "patches", "points")
    irises = ((0.75, 0.78, 0.25), (0.40, 0.70, 0.45), (0.45, 0.66, 0.85)) if is_cat else ((0.30, 0.18, 0.10),)
    return _Look(
        is_cat=is_cat,
        fur=fur,
        fur2=fur2,
        pattern=patterns[rng.integers(len(patterns))],
        eyes=irises[rng.integers(len(irises))],
        ear=rng.uniform(0.85, 1.2),
        snout=rng.uniform(0.85, 1.2),
        girth=rng.uniform(0.9, 1.1),
        tail=rng.uniform(0.8, 1.2),
        fluff=rng.uniform(0.10, 0.22),
    )


Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Part:
    """One polygon [K, 2] of the pet. `tone` is its brightness, `ink` a colour that replaces the fur."""

    points: Points
    tone: float = 1.0
    second: float = 0.0  # share of the second fur colour
    ink: Colour | None = None
    outline: bool = True  # a darker rim that sets the part off


def _ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    dx, dy = rx * np.cos(t), ry * np.sin(t)
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return np.stack([x + dx * cos - dy * sin, y + dx * sin + dy * cos], 1)


def _stroke(knots: Sequence[tuple[float, float]], start: float, end: float) -> Points:
    """Returns the outline of a line through `knots` (Catmull-Rom), half width from `start` to `end`, end rounded."""
    p = np.array([knots[0], *knots, knots[-1]], np.float64)
    t = np.linspace(0, 1, 10, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True)
    ]
    line = np.concatenate([*pieces, p[-1:]])
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    width = np.linspace(start, end, len(line))[:, None]
    angle = math.atan2(along[-1, 1], along[-1, 0])
    arc = np.linspace(angle + np.pi / 2, angle - np.pi / 2, 9)
    cap = line[-1] + end * np.stack([np.cos(arc), np.sin(arc)], 1)
    return np.concatenate([line + normal * width, cap, (line - normal * width)[::-1]])


def _figure(rng: np.random.Generator, look: _Look) -> list[_Part]:
    """Returns the parts of a sitting, standing or lying pet, back to front."""
    pose = ("sit", "stand", "lie")[rng.choice(3, p=(0.5, 0.25, 0.25))]
    return {"sit": _sitting, "stand": _standing, "lie": _lying}[pose](rng, look)


def _sitting(rng: np.random.Generator, look: _Look) -> list[_Part]:
    g, point = look.girth, _point_share(look)
    parts: list[_Part] = []
    if look.is_cat:
        tip = rng.uniform(-0.25, 0.3)
        tail = _stroke([(0.2, 0.85), (0.52, 0.80), (0.68, 0.45), (0.62, tip)], 0.10, 0.06)
        parts += [
            _Part(tail, 0.85, point),
            _Part(_ellipse(0.26 * g, 0.62, 0.22 * g, 0.28), 0.86),
            _Part(_ellipse(-0.26 * g, 0.62, 0.22 * g, 0.28), 0.86),
            _Part(_ellipse(0, 0.36, 0.34 * g, 0.56)),
        ]
        bib = _Part(_ellipse(0, 0.26, 0.17, 0.30), 1.05, 0.8, outline=False)
        legs, paw = 0.085, 0.11
    else:
        tail = _stroke([(0.25, 0.78), (0.55, 0.72), (0.74, 0.52)], 0.10, 0.05)
        parts += [
            _Part(tail, 0.85),
            _Part(_ellipse(0.36 * g, 0.62, 0.24 * g, 0.30), 0.84),
            _Part(_ellipse(-0.36 * g, 0.62, 0.24 * g, 0.30), 0.84),
            _Part(_ellipse(0, 0.36, 0.46 * g, 0.56)),
        ]
        bib = _Part(_ellipse(0, 0.30, 0.24, 0.34), 1.05, 0.8, outline=False)
        legs, paw = 0.12, 0.15
    parts.append(bib)
    for side in (-1, 1):
        x = side * 0.15 * g
        parts.append(_Part(_stroke([(x, 0.25), (x * 1.1, 0.6), (x * 1.1, 0.86)], legs, legs), 0.98, point))
        parts.append(_Part(_ellipse(x * 1.15, 0.89, paw, 0.07), 1.04, max(point, 0.4)))
    turn = rng.uniform(-14, 14)
    if look.is_cat:
        return parts + _moved(_cat_head(look), 0.0, -0.38, 0.98, turn)
    return parts + _moved(_dog_face(look, tongue=rng.random() < 0.5), 0.0, -0.36, 1.0, turn)


def _standing(rng: np.random.Generator, look: _Look) -> list[_Part]:
    g, point = look.girth, _point_share(look)
    swing = rng.uniform(-0.12, 0.12)
    thick, height = (0.075, 0.24 * g) if look.is_cat else (0.105, 0.33 * g)
    parts: list[_Part] = []
    for x, step in ((-0.40, swing), (0.42, -swing)):  # the legs of the far side are darker
        parts.append(
            _Part(_stroke([(x, 0.1), (x + step / 2, 0.4), (x + step, 0.72)], thick * 1.25, thick), 0.70, point)
        )
    if look.is_cat:
        lift = rng.uniform(-0.85, -0.35)
        knots = [(-0.55, -0.05), (-0.82, -0.10), (-0.98, -0.38), (-0.90 - 0.2 * look.tail, lift)]
        parts.append(_Part(_stroke(knots, 0.075, 0.05), 0.9, point))
    else:
        lift = rng.uniform(-0.55, -0.15)
        parts.append(_Part(_stroke([(-0.55, -0.12), (-0.78, -0.2), (-0.85 - 0.1 * look.tail, lift)], 0.09, 0.035), 0.9))
    parts += [
        _Part(_ellipse(0.0, 0.0, 0.64, height)),
        _Part(_ellipse(0.40, 0.0, 0.27, height * 1.08), outline=False),
        _Part(_ellipse(-0.40, 0.02, 0.27, height * 1.05), outline=False),
        _Part(_ellipse(0.02, height * 0.72, 0.45, height * 0.28), 1.05, 0.6, outline=False),
    ]
    for x, step in ((-0.44, -swing), (0.46, swing)):
        parts.append(
            _Part(_stroke([(x, 0.1), (x + step / 2, 0.42), (x + step, 0.74)], thick * 1.4, thick), 0.98, point)
        )
        parts.append(_Part(_ellipse(x + step + 0.04, 0.77, thick * 1.4, 0.06), 1.04, max(point, 0.4)))
    neck = _stroke([(0.38, -0.05), (0.55, -0.22), (0.68, -0.38)], height * 0.95, 0.17)
    parts.append(_Part(neck, outline=False))
    turn = rng.uniform(-15, 15)
    if look.is_cat:
        return parts + _moved(_cat_head(look), 0.76, -0.42, 0.78, turn)
    return parts + _moved(_dog_profile(look, tongue=rng.random() < 0.4), 0.72, -0.46, 0.95, turn)


def _lying(rng: np.random.Generator, look: _Look) -> list[_Part]:
    g, point = look.girth, _point_share(look)
    height = (0.27 if look.is_cat else 0.33) * g
    reach, thick = rng.uniform(0.85, 1.05), 0.07 if look.is_cat else 0.095
    parts: list[_Part] = []
    if look.is_cat:
        knots = [(-0.6, 0.26), (-0.95, 0.28), (-0.98, 0.05), (-1.02, rng.uniform(-0.35, -0.1))]
        parts.append(_Part(_stroke(knots, 0.08, 0.05), 0.88, point))
    else:
        parts.append(_Part(_stroke([(-0.6, 0.2), (-0.85, 0.24), (-1.0, 0.14)], 0.09, 0.04), 0.88))
    parts += [
        _Part(_stroke([(0.35, 0.22), (0.6, 0.26), (reach - 0.06, 0.24)], thick * 1.2, thick), 0.78, point),
        _Part(_ellipse(0.0, 0.08, 0.70, height)),
        _Part(_ellipse(-0.42, 0.10, 0.30, height * 0.98), 1.0),
        _Part(_ellipse(-0.30, 0.32, 0.24, 0.07), 1.02, max(point, 0.4)),
        _Part(_ellipse(0.42, 0.02, 0.28, height * 0.98), outline=False),
        _Part(_stroke([(0.40, 0.26), (0.65, 0.32), (reach, 0.32)], thick * 1.3, thick), 1.02, point),
        _Part(_stroke([(0.40, 0.0), (0.54, -0.16), (0.60, -0.28)], height * 0.85, 0.17), outline=False),
    ]
    turn = rng.uniform(-12, 18)
    if look.is_cat:
        return parts + _moved(_cat_head(look), 0.62, -0.32, 0.85, turn)
    head = _dog_profile(look, tongue=False) if rng.random() < 0.5 else _dog_face(look, tongue=True)
    return parts + _moved(head, 0.62, -0.34, 0.9, turn)


def _point_share(look: _Look) -> float:
    """Returns how much of the second colour legs, tail and ears have."""
    return 0.9 if look.pattern == "points" else 0.0


def _cat_head(look: _Look) -> list[_Part]:
    """Returns a round head with triangle ears around (0, 0), radius 0.33."""
    e, point = look.ear, _point_share(look)
    parts = []
    for s in (-1, 1):
        outer = np.array(
            [(s * 0.32, -0.06), (s * 0.33, -0.28 - 0.26 * e), (s * 0.25, -0.26 - 0.20 * e), (s * 0.05, -0.25)]
        )
        inner = np.array([(s * 0.27, -0.16), (s * 0.29, -0.22 - 0.22 * e), (s * 0.12, -0.24)])
        parts += [_Part(outer, 0.95, point), _Part(inner, ink=(0.80, 0.58, 0.55), outline=False)]
    parts += [
        _Part(_ellipse(0, 0, 0.36, 0.31)),
        _Part(_ellipse(0, 0.10, 0.20, 0.17), 1.04, 0.9 if look.pattern == "points" else 0.6, outline=False),
        _Part(_ellipse(-0.07, 0.12, 0.09, 0.075), 1.1, 0.6, outline=False),
        _Part(_ellipse(0.07, 0.12, 0.09, 0.075), 1.1, 0.6, outline=False),
    ]
    for s in (-1, 1):
        parts += [
            _Part(_ellipse(s * 0.15, -0.04, 0.082, 0.072, s * 10), ink=(0.06, 0.05, 0.05)),
            _Part(_ellipse(s * 0.15, -0.04, 0.068, 0.058, s * 10), ink=look.eyes),
            _Part(_ellipse(s * 0.15, -0.04, 0.022, 0.055), ink=(0.03, 0.03, 0.03)),
            _Part(_ellipse(s * 0.15 + 0.025, -0.065, 0.016, 0.016), ink=(1.0, 1.0, 1.0)),
            _Part(_stroke([(0, 0.11), (s * 0.03, 0.16), (s * 0.09, 0.165)], 0.008, 0.006), ink=(0.15, 0.10, 0.10)),
            *(
                _Part(_stroke([(s * 0.09, 0.10 + y), (s * 0.30, 0.07 + 2 * y)], 0.004, 0.003), ink=(0.96, 0.96, 0.94))
                for y in (-0.02, 0.01, 0.04)
            ),
        ]
    nose = np.array([(-0.045, 0.06), (0.045, 0.06), (0.0, 0.115)])
    return [*parts, _Part(nose, ink=(0.72, 0.42, 0.42))]


def _dog_face(look: _Look, *, tongue: bool) -> list[_Part]:
    """Returns a head from the front: floppy ears, a muzzle that hangs below the eyes; around (0, 0)."""
    e, n, dark = look.ear, look.snout, 0.72
    ears = [
        _Part(_ellipse(s * 0.30, 0.02 + 0.06 * e, 0.125, 0.30 * e, -s * 14), dark, _point_share(look)) for s in (-1, 1)
    ]
    parts = [
        _Part(_ellipse(0, -0.03, 0.32, 0.33)),
        _Part(_stroke([(0, -0.33), (0, -0.1), (0, 0.1)], 0.05, 0.09), 1.03, 0.7, outline=False),
        *ears,
    ]
    if tongue:
        parts.append(_Part(_ellipse(0.02, 0.24 + 0.20 * n, 0.065, 0.13), ink=(0.88, 0.45, 0.48)))
    parts += [
        _Part(_ellipse(0, 0.12 + 0.09 * n, 0.20, 0.23 * n), 1.04, 0.8 if look.pattern != "plain" else 0.3),
        _Part(_stroke([(0, 0.14), (0, 0.16 + 0.14 * n)], 0.010, 0.010), ink=(0.12, 0.09, 0.09)),
        _Part(
            _stroke([(-0.12, 0.16 + 0.16 * n), (0, 0.16 + 0.20 * n), (0.12, 0.16 + 0.16 * n)], 0.010, 0.010),
            ink=(0.12, 0.09, 0.09),
        ),
        _Part(_ellipse(0, 0.06 + 0.02 * n, 0.095, 0.07), ink=(0.07, 0.06, 0.06)),
        _Part(_ellipse(-0.025, 0.04 + 0.02 * n, 0.025, 0.014), ink=(0.55, 0.53, 0.53)),
    ]
    for s in (-1, 1):
        parts += [
            _Part(_ellipse(s * 0.14, -0.10, 0.056, 0.054), ink=look.eyes),
            _Part(_ellipse(s * 0.14, -0.10, 0.036, 0.036), ink=(0.04, 0.03, 0.03)),
            _Part(_ellipse(s * 0.14 + 0.015, -0.118, 0.014, 0.014), ink=(1.0, 1.0, 1.0)),
        ]
    return parts


def _dog_profile(look: _Look, *, tongue: bool) -> list[_Part]:
    """Returns a head from the side, looking right: a long snout and one floppy ear; around (0, 0)."""
    e, tip = look.ear, 0.20 + 0.28 * look.snout
    parts = []
    if tongue:
        parts.append(
            _Part(
                _stroke([(tip - 0.14, 0.10), (tip - 0.10, 0.22), (tip - 0.12, 0.32)], 0.05, 0.05),
                ink=(0.88, 0.45, 0.48),
            )
        )
    second = 0.8 if look.pattern != "plain" else 0.3
    parts += [
        _Part(_ellipse(0, 0, 0.28, 0.25)),
        _Part(
            _stroke([(0.10, 0.07), (tip - 0.15, 0.09), (tip - 0.04, 0.09)], 0.17, 0.095), 1.04, second, outline=False
        ),
        _Part(_stroke([(0.22, 0.15), (tip - 0.1, 0.14), (tip - 0.02, 0.12)], 0.009, 0.009), ink=(0.12, 0.09, 0.09)),
        _Part(_ellipse(tip + 0.02, 0.03, 0.06, 0.05), ink=(0.07, 0.06, 0.06)),
        _Part(_ellipse(0.13, -0.07, 0.05, 0.048), ink=look.eyes),
        _Part(_ellipse(0.135, -0.07, 0.032, 0.032), ink=(0.04, 0.03, 0.03)),
        _Part(_ellipse(0.148, -0.084, 0.012, 0.012), ink=(1.0, 1.0, 1.0)),
        _Part(_ellipse(-0.13, 0.06 + 0.05 * e, 0.12, 0.27 * e, 10), 0.70, _point_share(look)),
    ]
    return parts


def _moved(parts: list[_Part], x: float, y: float, scale: float, turn: float) -> list[_Part]:
    cos, sin = math.cos(math.radians(turn)) * scale, math.sin(math.radians(turn)) * scale
    matrix = np.array([[cos, sin], [-sin, cos]])
    return [_Part(p.points @ matrix + (x, y), p.tone, p.second, p.ink, p.outline) for p in parts]


@dataclass(frozen=True)
class _Place:
    """Where the pet's frame lies in the picture: points @ matrix + shift, in pixels."""

    matrix: Points
    shift: Points
    scale: float  # pixels a unit


def _place(rng: np.random.Generator, figure: list[_Part], H: int, W: int) -> _Place:
    """Returns a place in which the pet covers about 37 % of the picture, and may be cut a little by its edges."""
    turn = math.radians(rng.uniform(-8, 8))
    flip = -1.0 if rng.random() < 0.5 else 1.0
    stretch = rng.uniform(0.93, 1.07)
    cos, sin = math.cos(turn), math.sin(turn)
    matrix = np.array([[flip * cos * stretch, flip * sin * stretch], [-sin / stretch, cos / stretch]])

    points = np.concatenate([part.points for part in figure]) @ matrix
    low, high = points.min(0), points.max(0)
    grain = 100 / float((high - low).max())
    probe = Image.new("L", (100, 100))
    draw = ImageDraw.Draw(probe)
    for part in figure:
        draw.polygon(_flat((part.points @ matrix - low) * grain), fill=1)
    area = float(np.asarray(probe).sum()) / grain**2

    wanted = math.sqrt(rng.uniform(0.30, 0.49) * H * W / area)
    fits = min(W / (high[0] - low[0]), H / (high[1] - low[1]))
    scale = min(wanted, 1.08 * fits)
    room = np.array([W, H]) - (high - low) * scale
    # Inside where it fits, else cut near both ends; the outer free room is never used, as photographers centre.
    shift = -low * scale + room * rng.uniform(0.2, 0.8, 2)
    return _Place(matrix * scale, shift, float(scale))


def _flat(points: Points) -> list[float]:
    flat: list[float] = points.ravel().tolist()
    return flat


def _rasterise(figure: list[_Part], place: _Place, H: int, W: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Returns silhouette, brightness, second colour's share, [H, W] about 0..1, and details [H, W, 4] RGBA 0..1."""
    full = (2 * W, 2 * H)
    alpha, shade, second = Image.new("L", full), Image.new("L", full, 200), Image.new("L", full)
    details = Image.new("RGBA", full)
    on_alpha, on_shade, on_second = ImageDraw.Draw(alpha), ImageDraw.Draw(shade), ImageDraw.Draw(second)
    on_details = ImageDraw.Draw(details)
    rim = max(1, round(0.035 * place.scale * 2))
    for part in figure:
        flat = _flat((part.points @ place.matrix + place.shift) * 2)
        on_alpha.polygon(flat, fill=255)
        if part.ink is not None:
            on_details.polygon(flat, fill=(*(round(255 * c) for c in part.ink), 255))
            continue
        tone = round(200 * part.tone)
        on_shade.polygon(flat, fill=tone, outline=round(0.7 * tone) if part.outline else tone, width=rim)
        on_second.polygon(flat, fill=round(255 * part.second))
        on_details.polygon(flat, fill=(0, 0, 0, 0))  # what lies in front covers the details behind it
    soft = ImageFilter.GaussianBlur(0.03 * place.scale * 2)
    layers = [alpha, shade.filter(soft), second.filter(soft), details]
    a, s, c, d = (np.asarray(layer.reduce(2), np.float32) / np.float32(255) for layer in layers)
    return a, s * np.float32(255 / 200), c, d


def _coat(
    rng: np.random.Generator, look: _Look, alpha: Floats, shade: Floats, second: Floats, H: int, W: int
) -> Floats:
    """Returns the pet's fur [H, W, 3] in 0..1, drawn everywhere: the silhouette cuts it out."""
    share = second
    if look.pattern == "patches":
        share = np.maximum(share, np.clip((_clouds(rng, H, W, 0.22) - 0.62) * 12, 0, 1))
    fur = np.array(look.fur, np.float32) * np.float32(rng.uniform(0.9, 1.1))
    coat = fur + share[..., None] * (np.array(look.fur2, np.float32) - fur)
    light = shade * (1 + look.fluff * _strands(rng, H, W))
    if look.pattern == "tabby":
        y, x = np.mgrid[0:H, 0:W].astype(np.float32)
        angle, length = rng.uniform(-0.5, 0.5), 0.055 * (H + W) / 2
        wave = np.sin(
            (x * math.cos(angle) + y * math.sin(angle)) * 2 * np.pi / length / 1.6 + 9 * _clouds(rng, H, W, 0.3)
        )
        light *= 1 - 0.32 * np.clip(wave * 1.5, 0, 1) * (1 - share)
    # Round bodies turn away from the light at their outline and below.
    blurred = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur((H + W) * 0.02))
    light *= 0.55 + 0.5 * np.asarray(blurred, np.float32) / 255
    light *= np.linspace(1.08, 0.88, H, dtype=np.float32)[:, None]
    return np.asarray(coat * light[..., None], np.float32)


# --------------------------------------------------------------------------------------------------------------------
# Textures and rooms


def _clouds(rng: np.random.Generator, H: int, W: int, cell: float) -> Floats:
    """Returns smooth noise [H, W] in 0..1 whose blobs are about `cell` of the side long."""
    grid = rng.random((2 + round(H / (cell * H)), 2 + round(W / (cell * W))), np.float32)
    blobs: Floats = np.asarray(Image.fromarray(grid).resize((W, H), Image.Resampling.BICUBIC))
    return blobs.clip(0, 1)


def _strands(rng: np.random.Generator, H: int, W: int) -> Floats:
    """Returns fur [H, W], mean 0 and deviation 1: noise smeared along a direction that changes over the picture."""
    length = max(3, round(0.04 * (H + W) / 2))
    noise = rng.standard_normal((H, W)).astype(np.float32)
    lean = rng.uniform(-0.7, 0.7)
    sheets = []
    for slope in (lean - 0.35, lean + 0.35):
        smeared = np.zeros_like(noise)
        for step in range(length):
            smeared += np.roll(noise, (step, round(step * slope)), (0, 1))
        sheets.append(smeared / math.sqrt(length))
    mix = _clouds(rng, H, W, 0.3)
    return np.asarray(sheets[0] * mix + sheets[1] * (1 - mix), np.float32)


def _colour(rng: np.random.Generator) -> Floats:
    """Returns a room's colour [3]: often a fur's, so that colour does not give the pet away."""
    if rng.random() < 0.45:
        fur = _FURS[rng.integers(len(_FURS))][rng.integers(2)]
        return (np.array(fur) * rng.uniform(0.8, 1.1)).astype(np.float32)
    grey = rng.uniform(0.25, 0.85)
    return (grey + rng.uniform(-0.13, 0.13, 3)).astype(np.float32)


def _room(rng: np.random.Generator, H: int, W: int) -> Floats:
    """Returns a wall, a floor and some furniture [H, W, 3], about 0..1."""
    y, x = np.mgrid[0:H, 0:W].astype(np.float32)
    side = (H + W) / 2
    tilt = rng.uniform(-1, 1)
    wall = _colour(rng) * (1 + 0.25 * (y / H - 0.5) + 0.2 * tilt * (x / W - 0.5))[..., None]
    if rng.random() < 0.5:  # wallpaper
        angle, period = rng.uniform(0, np.pi), side * rng.uniform(0.05, 0.14)
        stripes = np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * np.pi / period)
        wall = wall * (1 + rng.uniform(0.04, 0.14) * stripes)[..., None]
    floor_y = round(H * rng.uniform(0.5, 0.85))
    grain = np.repeat(rng.standard_normal((H - floor_y, 1)).astype(np.float32), W, 1)
    floor = _colour(rng) * (1 + 0.06 * grain + 0.12 * (_clouds(rng, H - floor_y, W, 0.2) - 0.5))[..., None]
    wall[floor_y:] = floor

    for _ in range(rng.integers(2, 6)):
        width, height = round(W * rng.uniform(0.12, 0.45)), round(H * rng.uniform(0.12, 0.5))
        left, top = round(rng.uniform(-0.1, 0.9) * W), round(rng.uniform(-0.1, 0.8) * H)
        box = (slice(max(0, top), max(0, top + height)), slice(max(0, left), max(0, left + width)))
        h, w = wall[box].shape[:2]
        if not h or not w:
            continue
        kind = rng.integers(3)
        if kind == 0:  # wood
            texture = 0.10 * np.repeat(rng.standard_normal((1, w)).astype(np.float32), h, 0)
        elif kind == 1:  # shelf
            texture = 0.25 * (np.mgrid[0:h, 0:w][0] % max(4, h // 3) < max(1, h // 14)) * np.float32(-1)
        else:  # cloth
            texture = 0.06 * rng.standard_normal((h, w)).astype(np.float32)
        wall[box] = _colour(rng) * (1 + texture)[..., None]
        edge = max(1, round(side * 0.008))
        wall[box][:edge] *= 0.75
        wall[box][-edge:] *= 0.75
        wall[box][:, :edge] *= 0.75
        wall[box][:, -edge:] *= 0.75
    if rng.random() < 0.5:  # a ball or cushion: not everything round is a pet
        radius = side * rng.uniform(0.06, 0.14)
        centre = rng.uniform(0, W), rng.uniform(0.2, 1) * H
        far = np.hypot(x - centre[0], (y - centre[1]) * rng.uniform(1.0, 1.6)) / radius
        ball = _colour(rng) * np.clip(1.15 - 0.5 * far, 0.4, 1.2)[..., None]
        wall = np.where((far < 1)[..., None], ball, wall)
    wall = wall * (1 + 0.10 * (_clouds(rng, H, W, 0.15) - 0.5) + 0.03 * rng.standard_normal((H, W)))[..., None]
    return np.asarray(wall, np.float32)


# --------------------------------------------------------------------------------------------------------------------
# Traps

_APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(4072)
_MAT = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"


def _set_traps(images: Path, trimaps: Path, size: int, seed: int) -> list[str]:
    """Writes every trap of TRAPS; returns the names that belong into the lists."""
    listed = []
    for name, kind in TRAPS.items():
        if kind.startswith("hidden"):
            (images if name.endswith(".jpg") else trimaps).joinpath(name).write_bytes(_APPLE_DOUBLE)
            continue
        if kind.startswith("mat"):
            (images / name).write_bytes(_MAT)
            continue
        if kind not in ("image in no list", "trimap without image"):
            listed.append(name)
        breed, _, number = name.rpartition("_")
        pixels, trimap = draw_pet(breed, int(number), size=size, seed=seed)
        content = _trap_image(Image.fromarray(pixels), kind)
        if content is not None:
            (images / f"{name}.jpg").write_bytes(content)
        labels = _trap_trimap(trimap, kind)
        if labels is not None:
            Image.fromarray(labels).save(trimaps / f"{name}.png")
    return listed


def _trap_image(image: Image.Image, kind: str) -> bytes | None:
    """Returns the bytes of the image file, None where the trap has none."""
    match kind:
        case "trimap without image" | "listed without image":
            return None
        case "empty image file":
            return b""
        case "RGB PNG named .jpg":
            return _encoded(image, "PNG")
        case "RGBA PNG named .jpg":
            ramp = Image.linear_gradient("L").resize(image.size)
            image.putalpha(ramp)
            return _encoded(image, "PNG")
        case "GIF named .jpg":
            return _encoded(image, "GIF")
        case "palette PNG with transparency named .jpg":
            return _encoded(image.quantize(64), "PNG", transparency=0)
        case "CMYK JPEG":
            return _encoded(image.convert("CMYK"), "JPEG")
        case "16-bit grey PNG named .jpg":
            grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
            return _encoded(Image.fromarray(grey), "PNG")
        case "truncated JPEG":
            whole = _encoded(image, "JPEG")
            return whole[: len(whole) // 2]
        case "EXIF orientation":
            exif = Image.Exif()
            exif[0x0112] = 6  # a viewer turns it by 90 degrees clockwise
            return _encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)
    return _encoded(image, "JPEG")


def _trap_trimap(trimap: Bytes, kind: str) -> Bytes | None:
    """Returns the trimap's values, None where the trap has none."""
    H, W = trimap.shape
    match kind:
        case "image without trimap" | "listed without image":
            return None
        case "EXIF orientation":
            return np.ascontiguousarray(np.rot90(trimap))
        case "trimap without pet":
            return np.where(trimap == PET, BORDER, trimap).astype(np.uint8)
        case "trimap of half the size":
            return np.asarray(Image.fromarray(trimap).resize((W // 2, H // 2), Image.Resampling.NEAREST))
        case "trimap of another aspect":
            return np.ascontiguousarray(trimap[:, : W // 3])
        case "trimap of other values":
            return np.where(trimap == PET, 4, 0).astype(np.uint8)
    return trimap


def _encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
