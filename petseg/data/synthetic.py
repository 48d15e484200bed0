"""A small synthetic dataset in the official layout, so that tests, demos and a first try need no download.

Cats and dogs stand in rooms whose colours overlap with their fur's: colour alone does not find the pet. About 30 / 58 /
12 % of the pixels are pet, background, border, as in the Oxford-IIIT Pet Dataset. H W are the pixels of one image.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from petseg.data.dataset import UInt8
from petseg.data.oxford_pets import BACKGROUND, BORDER, CAT, COMMITTED_VALIDATION, DOG, PET, breed_of, species_of
from petseg.errors import PetsegError, unknown_name

_BREEDS = sorted({breed_of(name) for name in COMMITTED_VALIDATION}, key=str.lower)
CATS = tuple(breed for breed in _BREEDS if species_of(breed) == CAT)  # breed ids 1..12 in this order
DOGS = tuple(breed for breed in _BREEDS if species_of(breed) == DOG)  # breed ids 1..25 in this order
Floats = npt.NDArray[np.float64]
Colour = tuple[float, float, float]  # RGB in 0..1


def make_pets(folder: str | Path, *, per_breed: int = 6, breeds: int = 6, size: int = 160, seed: int = 0) -> Path:
    """Returns `folder`, now with `images/*.jpg`, `annotations/trimaps/*.png` and the official lists.

    Half of the breeds are cats as long as there are any; half of each breed's images are in test.txt. The longer side
    is 0.85 to 1.15 times `size`. A larger dataset holds the smaller one.
    """
    folder = Path(folder)
    given = {"per_breed": per_breed, "breeds": breeds, "size": size, "seed": seed}
    for (name, value), (low, high) in zip(given.items(), ((2, 900), (2, 37), (32, 4096), (0, 2**63)), strict=True):
        if not low <= value <= high:
            raise PetsegError(f"{name} is {value}; give one from {low} to {high}")
    images, trimaps = folder / "images", folder / "annotations" / "trimaps"
    for place in (images, trimaps):
        place.mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {"list": [], "trainval": [], "test": []}
    cats, beagle = min(len(CATS), (breeds + 1) // 2), DOGS.index("beagle")  # first: the field's usual example
    for breed in (*CATS[:cats], *(DOGS[beagle:] + DOGS[:beagle])[: breeds - cats]):
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
    lines = ["#Image CLASS-ID SPECIES BREED ID"] if path.stem == "list" else []
    for name in sorted(names, key=lambda name: (_BREEDS.index(breed_of(name)), int(name.rpartition("_")[2]))):
        breed, species = breed_of(name), species_of(name)
        among = CATS if species == CAT else DOGS
        lines.append(f"{name} {_BREEDS.index(breed) + 1} {species} {among.index(breed) + 1}")
    path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")


def draw_pet(breed: str, number: int, *, size: int = 160, seed: int = 0) -> tuple[UInt8, UInt8]:
    """Returns an image [H, W, 3] RGB and its trimap [H, W]; `breed` gives coat and proportions, `number` the scene."""
    if breed not in CATS + DOGS:
        raise unknown_name("breed", breed, CATS + DOGS)
    breed_id = (CATS + DOGS).index(breed)
    look = _Look(np.random.default_rng([seed, breed_id]), is_cat=breed in CATS)
    rng = np.random.default_rng([seed, breed_id, number])
    long = round(size * rng.uniform(0.85, 1.15))
    short = round(long * rng.uniform(0.72, 0.97))
    H, W = (short, long) if rng.random() < 0.6 else (long, short)

    coat, alpha = _rasterise(_figure(rng, look, H, W), H, W)
    length, slope = max(3, (H + W) // 50), rng.uniform(-1, 1)
    noise = rng.standard_normal((H, W))  # smeared along a slope it is fur, of mean 0 and deviation 1
    fur = np.sum([np.roll(noise, (step, round(step * slope)), (0, 1)) for step in range(length)], axis=0)
    light = (1 + 0.12 * (fur / math.sqrt(length))) * np.linspace(1.08, 0.88, H)[:, None]  # darker below
    image = _room(rng, H, W) * (1 - alpha[..., None]) + coat * (light * alpha)[..., None]
    image += rng.normal(0, 0.012, (H, W, 1))  # the camera's noise, alike on pet and room
    reach = max(1, round(0.0165 * (H + W) / 2))  # of the border to each side of the outline
    solid = Image.fromarray(np.where(alpha >= 0.5, 255, 0).astype(np.uint8))
    inner = np.asarray(solid.filter(ImageFilter.MinFilter(2 * reach + 1))) > 0
    outer = np.asarray(solid.filter(ImageFilter.MaxFilter(2 * reach + 1))) > 0
    trimap = np.where(inner, PET, np.where(outer, BORDER, BACKGROUND)).astype(np.uint8)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), trimap


# the pet: polygons in its own frame (x right, y down, about -1..1), back to front

FURS: tuple[tuple[Colour, Colour], ...] = (  # main colour, second colour
    ((0.80, 0.50, 0.24), (0.95, 0.86, 0.72)),  # ginger, cream
    ((0.50, 0.48, 0.47), (0.86, 0.85, 0.83)),  # grey, pale
    ((0.18, 0.16, 0.16), (0.88, 0.86, 0.83)),  # black, white
    ((0.88, 0.84, 0.77), (0.60, 0.44, 0.30)),  # cream, tan
    ((0.48, 0.33, 0.22), (0.85, 0.74, 0.58)),  # brown, sand
    ((0.70, 0.56, 0.38), (0.28, 0.20, 0.15)),  # fawn, dark
    ((0.40, 0.43, 0.50), (0.70, 0.73, 0.78)),  # blue, silver
)
BLACK, ROSE, IRIS = (0.05, 0.04, 0.04), (0.80, 0.55, 0.53), (0.65, 0.70, 0.40)
Part = tuple[Floats, Colour]  # the corners of a polygon [K, 2], and what fills it


class _Look:
    """What the images of one breed share; proportions are about 1."""

    def __init__(self, rng: np.random.Generator, *, is_cat: bool) -> None:
        self.is_cat = is_cat
        self.fur, self.fur2 = FURS[rng.integers(len(FURS))]
        self.ear, self.girth, self.snout = rng.uniform(0.9, 1.15, 3)

    def shade(self, tone: float) -> Colour:
        red, green, blue = self.fur
        return (tone * red, tone * green, tone * blue)


def _rotation(degrees: float) -> Floats:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, sin], [-sin, cos]])


def _ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Floats:
    t = np.linspace(0, 2 * np.pi, 40)
    return np.stack([rx * np.cos(t), ry * np.sin(t)], 1) @ _rotation(turn) + (x, y)


def _limb(start: tuple[float, float], end: tuple[float, float], width: float) -> Floats:
    """Returns a straight limb with a round, thinner end."""
    along = np.subtract(end, start) / math.dist(start, end) * width / 2
    side = np.array([-along[1], along[0]])
    t = np.linspace(0, np.pi, 10)[:, None]
    return np.concatenate([[start - side, start + side], end + 0.7 * (np.cos(t) * side + np.sin(t) * along)])


def _figure(rng: np.random.Generator, look: _Look, H: int, W: int) -> list[Part]:
    """Returns a sitting or standing pet in pixels; it covers about 37 % of the image, and may be cut by its edges."""
    body, place = (_sitting(rng, look), (0.0, -0.37)) if rng.random() < 0.7 else (_standing(rng, look), (0.74, -0.44))
    turn = _rotation(rng.uniform(-14, 14))
    head = _cat_head(look) if look.is_cat else _dog_head(look)
    figure = body + [(points @ turn + place, colour) for points, colour in head]
    matrix = np.diag([rng.choice((-1.0, 1.0)), rng.uniform(0.9, 1.1)]) @ _rotation(rng.uniform(-8, 8))
    corners = np.concatenate([points for points, _ in figure]) @ matrix
    low, sides = corners.min(0), np.ptp(corners, 0)
    scale = min(math.sqrt(rng.uniform(0.6, 0.95) * H * W / sides.prod()), 1.08 * min(W / sides[0], H / sides[1]))
    # where it does not fit it is cut at both ends; near an edge it is rare, as photographers centre
    shift = (np.array([W, H]) - sides * scale) * rng.uniform(0.2, 0.8, 2) - low * scale
    return [(points @ matrix * scale + shift, colour) for points, colour in figure]


def _sitting(rng: np.random.Generator, look: _Look) -> list[Part]:
    wide, leg = (0.34 * look.girth, 0.17) if look.is_cat else (0.46 * look.girth, 0.24)
    parts = [(_limb((0.2, 0.80), (0.8, rng.uniform(0.1, 0.8)), 0.18), look.shade(0.85))]
    parts += [(_ellipse(side * 0.8 * wide, 0.62, 0.68 * wide, 0.29), look.shade(0.85)) for side in (-1, 1)]
    parts += [(_ellipse(0, 0.36, wide, 0.56), look.fur), (_ellipse(0, 0.28, wide / 2, 0.32), look.fur2)]
    for x in (-0.16, 0.16):
        parts.append((_limb((x, 0.25), (1.1 * x, 0.88), leg), look.shade(0.95)))
        parts.append((_ellipse(1.15 * x, 0.89, 0.6 * leg, 0.07), look.fur2))
    return parts


def _standing(rng: np.random.Generator, look: _Look) -> list[Part]:
    leg, height = (0.18, 0.25 * look.girth) if look.is_cat else (0.24, 0.33 * look.girth)
    swing = rng.uniform(-0.12, 0.12)
    parts = [(_limb((-0.5, -0.08), (-1.0, rng.uniform(-0.6, 0.2)), 0.16), look.shade(0.9))]
    for x, step, tone in ((-0.40, swing, 0.70), (0.42, -swing, 0.70), (-0.44, -swing, 0.95), (0.46, swing, 0.95)):
        parts.append((_limb((x, 0.1), (x + step, 0.78), leg), look.shade(tone)))
    torso, neck = _ellipse(0.0, 0.0, 0.66, height), _limb((0.38, -0.05), (0.70, -0.40), 1.8 * height)
    return [*parts, (torso, look.fur), (neck, look.fur)]


def _cat_head(look: _Look) -> list[Part]:
    """Returns a round head with triangle ears around (0, 0)."""
    ear = np.array([(0.32, -0.06), (0.33, -0.28 - 0.26 * look.ear), (0.05, -0.25)])
    ears = [(ear, look.shade(0.9)), (0.6 * ear + (0.09, -0.10), ROSE)]
    ears += [(points * (-1, 1), colour) for points, colour in ears]
    face = [(_ellipse(0, 0, 0.36, 0.31), look.fur), (_ellipse(0, 0.11, 0.19, 0.16), look.fur2)]
    nose = np.array([(-0.045, 0.06), (0.045, 0.06), (0.0, 0.115)])
    return [*ears, *face, *_eyes(0.15, -0.04), (nose, ROSE)]


def _dog_head(look: _Look) -> list[Part]:
    """Returns a head with floppy ears and a muzzle that hangs below the eyes, around (0, 0)."""
    e, n = look.ear, look.snout
    ears = [(_ellipse(s * 0.30, 0.02 + 0.06 * e, 0.125, 0.30 * e, -s * 14), look.shade(0.72)) for s in (-1, 1)]
    tongue = (_ellipse(0.02, 0.24 + 0.20 * n, 0.065, 0.13), ROSE)
    muzzle = (_ellipse(0, 0.12 + 0.09 * n, 0.20, 0.23 * n), look.fur2)
    nose = (_ellipse(0, 0.08, 0.095, 0.07), BLACK)
    return [(_ellipse(0, -0.03, 0.32, 0.33), look.fur), *ears, tongue, muzzle, nose, *_eyes(0.14, -0.10)]


def _eyes(x: float, y: float) -> list[Part]:
    discs = ((0.08, BLACK), (0.06, IRIS), (0.035, BLACK))
    return [(_ellipse(s * x, y, r, r), colour) for s in (-1, 1) for r, colour in discs]


def _rasterise(figure: list[Part], H: int, W: int) -> tuple[Floats, Floats]:
    """Returns the pet's colours [H, W, 3] and its silhouette [H, W], in 0..1."""
    colours, silhouette = Image.new("RGB", (2 * W, 2 * H)), Image.new("L", (2 * W, 2 * H))
    for points, colour in figure:
        corners = (2 * points).ravel().tolist()
        red, green, blue = (round(255 * value) for value in colour)
        ImageDraw.Draw(colours).polygon(corners, fill=(red, green, blue))
        ImageDraw.Draw(silhouette).polygon(corners, fill=255)
    soft = colours.filter(ImageFilter.GaussianBlur((H + W) * 0.01))
    coat, alpha = (np.asarray(image.reduce(2), np.float64) / 255 for image in (soft, silhouette))
    return coat, alpha


def _colour(rng: np.random.Generator) -> Floats:
    """Returns a room's colour [3]: often a fur's, so that colour does not give the pet away."""
    if rng.random() < 0.45:
        return np.array(FURS[rng.integers(len(FURS))][rng.integers(2)]) * rng.uniform(0.8, 1.1)
    return rng.uniform(0.25, 0.85) + rng.uniform(-0.13, 0.13, 3)


def _room(rng: np.random.Generator, H: int, W: int) -> Floats:
    """Returns a wall, a floor and some furniture [H, W, 3], about 0..1."""
    light = np.linspace(0.9, 1.1, H)[:, None] * np.linspace(1, rng.uniform(0.8, 1.2), W)
    room = _colour(rng) * light[..., None]
    floor = round(H * rng.uniform(0.5, 0.85))
    room[floor:] = _colour(rng) * light[floor:, :, None]
    for _ in range(rng.integers(2, 6)):
        top, left = round(rng.uniform(0, 0.8) * H), round(rng.uniform(0, 0.88) * W)
        box = room[top : top + round(H * rng.uniform(0.12, 0.5)), left : left + round(W * rng.uniform(0.12, 0.45))]
        h, w, _ = box.shape
        y, x = np.linspace(-1, 1, h)[:, None, None], np.linspace(-1, 1, w)[:, None]
        if rng.random() < 0.3:  # a ball: not everything round is a pet
            far = np.hypot(x, y)
            box[...] = np.where(far < 1, _colour(rng) * np.clip(1.15 - 0.5 * far, 0.4, 1.2), box)
        else:  # a box of wood with a dark rim
            grain = 1 + 0.1 * rng.standard_normal((1, w, 1))
            box[...] = _colour(rng) * grain * np.where(np.maximum(abs(x), abs(y)) > 0.95, 0.75, 1)
    return room * (1 + 0.03 * rng.standard_normal((H, W, 1)))
