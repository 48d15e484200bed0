"""A small synthetic dataset in the official layout, so that tests, demos and a first try need no download.

Cats and dogs are drawn from ellipses, polygons and strokes, given fur, and put into furnished rooms whose colours
overlap with the fur's: colour alone does not find the pet, shape and texture do. Class shares are near those of the
Oxford-IIIT Pet Dataset (about 30 / 58 / 12 % of the pixels are pet, background, border).

H W are the pixels of one image; drawing happens at twice its size and is averaged down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
Colour = tuple[float, float, float]


def make_pets(folder: Path, *, per_breed: int = 6, breeds: int = 6, size: int = 160, seed: int = 0) -> Path:
    """Returns `folder`, now with `images/*.jpg`, `annotations/trimaps/*.png` and the official lists.

    Half of the breeds are cats as long as there are any; half of each breed's images are in trainval.txt, half in
    test.txt (an odd one goes to trainval). Trimaps are uint8 with 1 pet, 2 background, 3 border. Sizes vary, odd ones
    among them; the longer side is between 0.85 and 1.15 times `size`. An image depends on its breed, number, `size` and
    `seed` alone, so a larger dataset holds the smaller one.

    Args:
        folder: Created if missing; files of the same names are overwritten.
        per_breed: Images a breed, 2..900.
        breeds: How many of the 37 breeds, 2..37.
        size: Pixels of the longer side, about; at least 32.
        seed: Not negative.

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
    for key, names in lists.items():
        write_list(folder / "annotations" / f"{key}.txt", names)
    return folder


def write_list(path: Path, names: Sequence[str]) -> None:
    """Writes an official list of image names: name, class id 1..37, species 1 cat 2 dog, breed id."""
    ids = {breed: number for number, breed in enumerate(sorted(CATS + DOGS, key=str.lower), start=1)}
    rows = []
    for name in names:
        breed, _, number = name.rpartition("_")
        species, among = (1, CATS) if breed in CATS else (2, DOGS)
        rows.append((ids[breed], int(number), f"{name} {ids[breed]} {species} {among.index(breed) + 1}\n"))
    header = "#Image CLASS-ID SPECIES BREED ID\n" if path.stem == "list" else ""
    path.write_text(header + "".join(line for _, _, line in sorted(rows)), encoding="ascii")


def _chosen(breeds: int) -> list[str]:
    cats = min(len(CATS), (breeds + 1) // 2)
    start = DOGS.index("beagle")  # a short dataset has the field's usual example
    return [*CATS[:cats], *(DOGS[start:] + DOGS[:start])[: breeds - cats]]


def draw_pet(breed: str, number: int, *, size: int = 160, seed: int = 0) -> tuple[Bytes, Bytes]:
    """Returns one image [H, W, 3] uint8 RGB and its trimap [H, W] uint8 (1 pet, 2 background, 3 border).

    `breed` gives the coat and proportions, `number` the pose, the place and the room. Raises PetsegError for an unknown
    breed.
    """
    if breed not in CATS + DOGS:
        raise unknown_name("breed", breed, CATS + DOGS)
    breed_id = (CATS + DOGS).index(breed)
    look = _look(np.random.default_rng([seed, breed_id]), is_cat=breed in CATS)
    rng = np.random.default_rng([seed, breed_id, number])
    long = round(size * rng.uniform(0.85, 1.15))
    short = round(long * rng.uniform(0.72, 0.97))
    H, W = (short, long) if rng.random() < 0.6 else (long, short)

    layers = _rasterise(_placed(rng, _figure(rng, look), H, W), H, W)
    alpha, ink = layers.silhouette[..., None], layers.details[..., 3:]
    shadow = np.pad(layers.silhouette, ((round(H * 0.03), 0), (round(W * 0.02), 0)))[:H, :W]
    room = _room(rng, H, W) * (1 - 0.45 * _blurred(shadow, max(H, W) * 0.03)[..., None])
    pet = _coat(rng, look, layers) * (1 - ink) + layers.details[..., :3] * ink
    image = (room * (1 - alpha) + pet * alpha) * rng.uniform(0.85, 1.1)
    image += rng.normal(0, 0.012, (H, W, 1)).astype(np.float32)  # the camera's noise, alike on pet and room
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), _trimap(layers.silhouette)


def _blurred(values: Floats, radius: float) -> Floats:
    image = Image.fromarray((values * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, np.float32) / np.float32(255)


def _trimap(alpha: Floats) -> Bytes:
    """Returns the trimap of a silhouette: a band of about 3.3 % of the mean side around its outline is border."""
    H, W = alpha.shape
    reach = max(1, round(0.0165 * (H + W) / 2))
    solid = Image.fromarray(np.where(alpha >= 0.5, 255, 0).astype(np.uint8))
    inner = np.asarray(solid.filter(ImageFilter.MinFilter(2 * reach + 1))) > 0
    outer = np.asarray(solid.filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0
    return np.where(inner, PET, np.where(outer, BORDER, BACKGROUND)).astype(np.uint8)


# --- the pet: parts in its own frame (x right, y down, about -1..1) --------------------------------------------------

FURS: tuple[tuple[Colour, Colour], ...] = (  # main colour, second colour
    ((0.80, 0.50, 0.24), (0.95, 0.86, 0.72)),  # ginger, cream
    ((0.50, 0.48, 0.47), (0.86, 0.85, 0.83)),  # grey, pale
    ((0.18, 0.16, 0.16), (0.88, 0.86, 0.83)),  # black, white
    ((0.88, 0.84, 0.77), (0.60, 0.44, 0.30)),  # cream, tan
    ((0.48, 0.33, 0.22), (0.85, 0.74, 0.58)),  # brown, sand
    ((0.70, 0.56, 0.38), (0.28, 0.20, 0.15)),  # fawn, dark
    ((0.40, 0.43, 0.50), (0.70, 0.73, 0.78)),  # blue, silver
    ((0.93, 0.92, 0.90), (0.72, 0.54, 0.36)),  # white, tan
)
BLACK, ROSE = (0.05, 0.04, 0.04), (0.80, 0.55, 0.53)


@dataclass(frozen=True)
class _Look:
    """What the images of one breed share."""

    is_cat: bool
    fur: Colour
    fur2: Colour
    pattern: str  # plain, tabby, patches, points
    eyes: Colour
    ear: float  # proportion, about 1
    snout: float
    girth: float
    fluff: float  # amplitude of the fur

    @property
    def points(self) -> float:
        """How much of the second colour legs, tail and ears have."""
        return 0.9 if self.pattern == "points" else 0.0


def _look(rng: np.random.Generator, *, is_cat: bool) -> _Look:
    fur, fur2 = FURS[rng.integers(len(FURS))]
    patterns = ("plain", "tabby", "tabby", "points") if is_cat else ("plain", "patches", "patches", "points")
    irises = ((0.75, 0.78, 0.25), (0.40, 0.70, 0.45), (0.45, 0.66, 0.85)) if is_cat else ((0.30, 0.18, 0.10),)
    pattern, eyes = patterns[rng.integers(len(patterns))], irises[rng.integers(len(irises))]
    ear, snout = rng.uniform(0.85, 1.2, 2)
    return _Look(is_cat, fur, fur2, pattern, eyes, ear, snout, rng.uniform(0.9, 1.1), rng.uniform(0.10, 0.22))


@dataclass(frozen=True)
class _Part:
    """One polygon [K, 2] of the pet. `tone` is its brightness, `ink` a colour that replaces the fur."""

    points: Points
    tone: float = 1.0
    second: float = 0.0  # share of the second fur colour
    ink: Colour | None = None


def _ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([rx * np.cos(t), ry * np.sin(t)], 1) @ _rotation(turn) + (x, y)


def _rotation(degrees: float) -> Points:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, sin], [-sin, cos]])


def _stroke(knots: Sequence[tuple[float, float]], start: float, end: float) -> Points:
    """Returns the outline of a smooth line from the first to the last knot, half width from `start` to `end`."""
    p = np.array(knots, np.float64)
    t = np.linspace(0, 1, 24)[:, None]
    bend = p[1] if len(p) == 3 else (p[0] + p[1]) / 2
    line = (1 - t) ** 2 * p[0] + 2 * t * (1 - t) * bend + t**2 * p[-1]  # a quadratic Bezier curve
    along = np.gradient(line, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1, keepdims=True)
    width = np.linspace(start, end, len(line))[:, None]
    width[-4:] *= np.sqrt(np.linspace(1, 0.1, 4))[:, None]  # a rounded end
    return np.concatenate([line + normal * width, (line - normal * width)[::-1]])


def _figure(rng: np.random.Generator, look: _Look) -> list[_Part]:
    """Returns the parts of a sitting, standing or lying pet, back to front."""
    pose = (_sitting, _standing, _lying)[rng.choice(3, p=(0.5, 0.25, 0.25))]
    body, (x, y, scale) = pose(rng, look)
    matrix = _rotation(rng.uniform(-14, 14)) * scale
    head = _cat_head(look) if look.is_cat else _dog_head(look)
    return body + [replace(part, points=part.points @ matrix + (x, y)) for part in head]


Pose = tuple[list[_Part], tuple[float, float, float]]
"""The body, and the head's place and scale."""


def _sitting(rng: np.random.Generator, look: _Look) -> Pose:
    g, cat = look.girth, look.is_cat
    wide, leg = (0.34, 0.085) if cat else (0.46, 0.12)
    tail = ((0.2, 0.85), (0.85, 0.80), (0.62, rng.uniform(-0.2, 0.3) if cat else 0.5))
    parts = [_Part(_stroke(tail, 0.10, 0.06), 0.85, look.points)]
    parts += [_Part(_ellipse(side * 0.8 * wide * g, 0.62, 0.23 * g, 0.29), 0.85) for side in (-1, 1)]
    parts += [_Part(_ellipse(0, 0.36, wide * g, 0.56)), _Part(_ellipse(0, 0.28, wide / 2, 0.32), 1.05, 0.8)]
    for x in (-0.16 * g, 0.16 * g):
        parts.append(_Part(_stroke(((x, 0.25), (x * 1.1, 0.88)), leg, leg), 0.98, look.points))
        parts.append(_Part(_ellipse(x * 1.15, 0.89, leg * 1.25, 0.07), 1.04, max(look.points, 0.4)))
    return parts, (0.0, -0.37, 1.0)


def _standing(rng: np.random.Generator, look: _Look) -> Pose:
    cat, swing = look.is_cat, rng.uniform(-0.12, 0.12)
    thick, height = (0.075, 0.24 * look.girth) if cat else (0.105, 0.33 * look.girth)
    tail = ((-0.55, -0.08), (-1.0, -0.05), (-1.0, rng.uniform(-0.8, -0.3)))
    parts = [_Part(_stroke(tail, 0.08, 0.045), 0.9, look.points)]
    for x, step, tone in ((-0.40, swing, 0.70), (0.42, -swing, 0.70), (-0.44, -swing, 0.98), (0.46, swing, 0.98)):
        parts.append(_Part(_stroke(((x, 0.1), (x + step, 0.78)), thick * 1.4, thick), tone, look.points))
    torso, neck = _ellipse(0.0, 0.0, 0.66, height), _stroke(((0.38, -0.05), (0.70, -0.40)), height * 0.95, 0.17)
    return [*parts, _Part(torso), _Part(neck)], (0.74, -0.44, 0.80 if cat else 0.95)


def _lying(rng: np.random.Generator, look: _Look) -> Pose:
    cat, reach = look.is_cat, rng.uniform(0.85, 1.05)
    thick, height = (0.07, 0.27 * look.girth) if cat else (0.095, 0.33 * look.girth)
    parts = [
        _Part(_stroke(((-0.6, 0.24), (-1.0, 0.3), (-1.02, rng.uniform(-0.35, 0.1))), 0.08, 0.05), 0.88, look.points),
        _Part(_stroke(((0.35, 0.22), (reach - 0.06, 0.24)), thick * 1.2, thick), 0.78, look.points),
        _Part(_ellipse(0.0, 0.08, 0.70, height)),
        _Part(_ellipse(-0.42, 0.10, 0.30, height * 0.98)),
        _Part(_ellipse(-0.30, 0.32, 0.24, 0.07), 1.02, max(look.points, 0.4)),
        _Part(_stroke(((0.40, 0.28), (reach, 0.32)), thick * 1.3, thick), 1.02, look.points),
        _Part(_stroke(((0.40, 0.0), (0.60, -0.30)), height * 0.85, 0.17)),
    ]
    return parts, (0.62, -0.33, 0.87)


def _cat_head(look: _Look) -> list[_Part]:
    """Returns a round head with triangle ears around (0, 0), radius 0.33."""
    e, parts = look.ear, []
    for s in (-1, 1):
        outer = np.array([(s * 0.32, -0.06), (s * 0.33, -0.28 - 0.26 * e), (s * 0.05, -0.25)])
        inner = np.array([(s * 0.27, -0.16), (s * 0.29, -0.22 - 0.22 * e), (s * 0.12, -0.24)])
        parts += [_Part(outer, 0.95, look.points), _Part(inner, ink=ROSE)]
    parts += [_Part(_ellipse(0, 0, 0.36, 0.31)), _Part(_ellipse(0, 0.11, 0.19, 0.16), 1.06, 0.7)]
    nose = _Part(np.array([(-0.045, 0.06), (0.045, 0.06), (0.0, 0.115)]), ink=ROSE)
    return [*parts, *_eyes(look, 0.15, -0.04, 0.075), nose]


def _dog_head(look: _Look) -> list[_Part]:
    """Returns a head with floppy ears and a muzzle that hangs below the eyes, around (0, 0)."""
    e, n = look.ear, look.snout
    parts = [_Part(_ellipse(0, -0.03, 0.32, 0.33)), _Part(_stroke(((0, -0.33), (0, 0.1)), 0.05, 0.09), 1.03, 0.7)]
    parts += [_Part(_ellipse(s * 0.30, 0.02 + 0.06 * e, 0.125, 0.30 * e, -s * 14), 0.72, look.points) for s in (-1, 1)]
    return [
        *parts,
        _Part(_ellipse(0.02, 0.24 + 0.20 * n, 0.065, 0.13), ink=ROSE),
        _Part(_ellipse(0, 0.12 + 0.09 * n, 0.20, 0.23 * n), 1.04, 0.3 if look.pattern == "plain" else 0.8),
        _Part(_ellipse(0, 0.06 + 0.02 * n, 0.095, 0.07), ink=BLACK),
        *_eyes(look, 0.14, -0.10, 0.055),
    ]


def _eyes(look: _Look, x: float, y: float, radius: float) -> list[_Part]:
    discs = ((1.15 * radius, BLACK), (0.9 * radius, look.eyes), (0.5 * radius, BLACK))
    return [_Part(_ellipse(s * x, y, r, r), ink=ink) for s in (-1, 1) for r, ink in discs]


# --- pixels ----------------------------------------------------------------------------------------------------------


def _placed(rng: np.random.Generator, figure: list[_Part], H: int, W: int) -> list[_Part]:
    """Returns the parts in pixels: the pet covers about 37 % of the image, and may be cut a little by its edges."""
    matrix = np.diag([-1.0 if rng.random() < 0.5 else 1.0, rng.uniform(0.9, 1.1)]) @ _rotation(rng.uniform(-8, 8))
    turned = [part.points @ matrix for part in figure]
    low, high = np.concatenate(turned).min(0), np.concatenate(turned).max(0)
    grain = 100 / float((high - low).max())
    probe = Image.new("L", (100, 100))
    for points in turned:
        ImageDraw.Draw(probe).polygon(((points - low) * grain).ravel().tolist(), fill=1)
    wanted = math.sqrt(rng.uniform(0.30, 0.49) * H * W / float(np.asarray(probe).sum())) * grain
    scale = min(wanted, 1.08 * min(W / (high[0] - low[0]), H / (high[1] - low[1])))
    # where it does not fit it is cut at both ends; near an edge it is rare, as photographers centre
    shift = -low * scale + (np.array([W, H]) - (high - low) * scale) * rng.uniform(0.2, 0.8, 2)
    return [replace(part, points=points * scale + shift) for part, points in zip(figure, turned, strict=True)]


@dataclass(frozen=True)
class _Layers:
    """The drawn figure, each in 0..1 (`shade` about 1)."""

    silhouette: Floats  # [H, W]
    shade: Floats  # [H, W], brightness of the fur
    second: Floats  # [H, W], share of the second fur colour
    details: Floats  # [H, W, 4], RGBA of eyes and noses


def _rasterise(figure: list[_Part], H: int, W: int) -> _Layers:
    full, scale = (2 * W, 2 * H), 0.5 * (H + W)
    images = [Image.new("L", full), Image.new("L", full, 200), Image.new("L", full), Image.new("RGBA", full)]
    silhouette, shade, second, details = (ImageDraw.Draw(image) for image in images)
    for part in figure:
        flat = (part.points * 2).ravel().tolist()
        silhouette.polygon(flat, fill=255)
        if part.ink is not None:
            details.polygon(flat, fill=(*(round(255 * c) for c in part.ink), 255))
            continue
        tone = round(200 * part.tone)
        shade.polygon(flat, fill=tone, outline=round(0.7 * tone), width=max(1, round(0.025 * scale)))
        second.polygon(flat, fill=round(255 * part.second))
        details.polygon(flat, fill=(0, 0, 0, 0))  # what lies in front covers the details behind it
    soft = ImageFilter.GaussianBlur(0.02 * scale)
    images[1:3] = [image.filter(soft) for image in images[1:3]]
    a, s, c, d = (np.asarray(image.reduce(2), np.float32) / np.float32(255) for image in images)
    return _Layers(a, s * np.float32(255 / 200), c, d)


def _coat(rng: np.random.Generator, look: _Look, layers: _Layers) -> Floats:
    """Returns the pet's fur [H, W, 3] in 0..1, drawn everywhere: the silhouette cuts it out."""
    H, W = layers.shade.shape
    share = layers.second
    if look.pattern == "patches":
        share = np.maximum(share, np.clip((_clouds(rng, H, W, 0.22) - 0.62) * 12, 0, 1))
    fur = np.array(look.fur, np.float32) * np.float32(rng.uniform(0.9, 1.1))
    coat = fur + share[..., None] * (np.array(look.fur2, np.float32) - fur)
    light = layers.shade * (1 + look.fluff * _strands(rng, H, W))
    if look.pattern == "tabby":
        wave = _waves(rng.uniform(-0.5, 0.5), 0.044 * (H + W), 9 * _clouds(rng, H, W, 0.3))
        light *= 1 - 0.32 * np.clip(wave * 1.5, 0, 1) * (1 - share)
    # round bodies turn away from the light at their outline and below
    light *= 0.55 + 0.5 * _blurred(layers.silhouette, (H + W) * 0.02)
    light *= np.linspace(1.08, 0.88, H, dtype=np.float32)[:, None]
    return np.asarray(coat * light[..., None], np.float32)


# --- textures and rooms ----------------------------------------------------------------------------------------------


def _clouds(rng: np.random.Generator, H: int, W: int, cell: float) -> Floats:
    """Returns smooth noise [H, W] in 0..1 whose blobs are about `cell` of the side long."""
    side = 2 + round(1 / cell)
    grid = Image.fromarray(rng.random((side, side), np.float32))
    return np.asarray(grid.resize((W, H), Image.Resampling.BICUBIC), np.float32).clip(0, 1)


def _waves(angle: float, period: float, phase: Floats) -> Floats:
    """Returns stripes [H, W] in -1..1, `period` pixels wide, shifted by `phase` [H, W] in radians."""
    y, x = np.indices(phase.shape, np.float32)
    return np.asarray(np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * np.pi / period + phase), np.float32)


def _strands(rng: np.random.Generator, H: int, W: int) -> Floats:
    """Returns fur [H, W], mean 0 and deviation 1: noise smeared along a direction that changes over the image."""
    length = max(3, round(0.04 * (H + W) / 2))
    noise, lean = rng.standard_normal((H, W)).astype(np.float32), rng.uniform(-0.7, 0.7)
    sheets = [
        sum(np.roll(noise, (step, round(step * slope)), (0, 1)) for step in range(length)) / math.sqrt(length)
        for slope in (lean - 0.35, lean + 0.35)
    ]
    mix = _clouds(rng, H, W, 0.3)
    return np.asarray(sheets[0] * mix + sheets[1] * (1 - mix), np.float32)


def _colour(rng: np.random.Generator) -> Floats:
    """Returns a room's colour [3]: often a fur's, so that colour does not give the pet away."""
    if rng.random() < 0.45:
        fur = FURS[rng.integers(len(FURS))][rng.integers(2)]
        return (np.array(fur) * rng.uniform(0.8, 1.1)).astype(np.float32)
    return (rng.uniform(0.25, 0.85) + rng.uniform(-0.13, 0.13, 3)).astype(np.float32)


def _room(rng: np.random.Generator, H: int, W: int) -> Floats:
    """Returns a wall, a floor and some furniture [H, W, 3], about 0..1."""
    side = (H + W) / 2
    stripes = _waves(rng.uniform(0, np.pi), side * rng.uniform(0.05, 0.14), np.zeros((H, W), np.float32))
    light = np.linspace(0.9, 1.1, H)[:, None] * np.linspace(1, rng.uniform(0.8, 1.2), W)
    room = _colour(rng) * (light * (1 + rng.uniform(0, 0.12) * stripes))[..., None]
    floor = round(H * rng.uniform(0.5, 0.85))
    room[floor:] = _colour(rng) * (1 + 0.12 * (_clouds(rng, H - floor, W, 0.2) - 0.5))[..., None]
    for _ in range(rng.integers(2, 6)):  # furniture: boxes of wood, shelves or cloth, and balls
        _furnish(rng, room)
    return np.asarray(room * (1 + 0.03 * rng.standard_normal((H, W)))[..., None], np.float32)


def _furnish(rng: np.random.Generator, room: Floats) -> None:
    H, W, _ = room.shape
    width, height = round(W * rng.uniform(0.12, 0.45)), round(H * rng.uniform(0.12, 0.5))
    left, top = round(rng.uniform(-0.1, 0.88) * W), round(rng.uniform(-0.1, 0.8) * H)
    box = room[max(0, top) : top + height, max(0, left) : left + width]
    h, w, _ = box.shape
    y, x = np.indices((h, w), np.float32)
    kind = rng.integers(4)
    if kind == 0:  # a ball or cushion: not everything round is a pet
        far = np.hypot(2 * x / w - 1, 2 * y / h - 1)
        ball = _colour(rng) * np.clip(1.15 - 0.5 * far, 0.4, 1.2)[..., None]
        box[...] = np.where((far < 1)[..., None], ball, box)
        return
    wood, shelf = rng.standard_normal((1, w)) * 0.10, -0.25 * (y % max(4, h // 3) < max(1, h // 14))
    cloth = 0.06 * rng.standard_normal((h, w))
    box[...] = _colour(rng) * (1 + (wood, shelf, cloth)[kind - 1] + np.zeros((h, w)))[..., None]
    edge = max(1, round((H + W) * 0.004))
    for rim in (box[:edge], box[-edge:], box[:, :edge], box[:, -edge:]):
        rim *= 0.75
