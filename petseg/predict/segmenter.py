"""Prediction without torch: `Segmenter("unet")("cat.jpg")`.

    >>> from petseg import Segmenter
    >>> segmenter = Segmenter("unet_small")
    >>> found = segmenter(np.zeros((40, 60, 3), np.uint8))
    >>> found.mask.shape, found.boxes
    ((40, 60), ())

Axis letters: N photos, C classes, h w pixels of the model's square, H W pixels of the photo.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from petseg.data.dataset import UInt8
from petseg.data.oxford_pets import BACKGROUND, BORDER, PET
from petseg.errors import PetsegError, unknown_name
from petseg.predict.cutout import cut_out, overlay
from petseg.predict.enlarge import Size, enlarged, windows
from petseg.predict.photos import Photo, Source
from petseg.predict.regions import Regions, find_regions
from petseg.predict.runtimes import RUNTIMES, Taken, chosen_runtime

Floats = npt.NDArray[np.float32]

WEIGHTS = files("petseg") / "weights"
"""The shipped models: NAME.onnx, and NAME.json, its card."""

KINDS = ("unet", "segnet")
"""Each stands for the best shipped model of its kind; the first for the one used where none is named."""

SMALLEST = 0.001
"""Share of the photo that a region of pet must cover to count as one; what is smaller is a speckle."""

LARGEST_OVERLAY = 2048
"""Longer side in pixels: an overlay is looked at, and a whole one of 12 megapixels takes 15 MB and a second."""

LARGEST_SIZE = 2048
"""Of a model's square in pixels, as in recipes."""

STRIP = (64, 1 << 20)
"""Rows and columns worked on at once, which fit a processor's cache."""

PETS = ("pet", "cat", "dog")
"""The classes that together are pet."""


@dataclass(frozen=True)
class Species:
    """Cat or dog."""

    name: str
    """ "cat" or "dog"."""
    probability: float
    """.5 to 1."""


@dataclass(frozen=True)
class Box:
    """A connected region of pet. Two pets that touch are one region."""

    left: int
    top: int
    right: int
    """One past the last pixel."""
    bottom: int
    share: float
    """Of the photo's pixels, 0 to 1."""
    confidence: float
    """As `Segmentation.confidence`, of this region."""
    species: Species | None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a model sees in one photo; maps at the photo's own size are made when they are first asked for."""

    probabilities: Floats
    """float32 [C, h, w] in 0..1, at the model's size; the classes of a pixel add up to 1."""
    classes: tuple[str, ...]
    """C names."""
    photo: Photo = field(repr=False)
    seconds: float = 0.0
    """What the network alone took; of a batch, this photo's part."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photo, upright."""
        return self.photo.size

    @cached_property
    def mask(self) -> UInt8:
        """uint8 [H, W]: 255 pet, 0 background.

        Pet is where pet is more likely than background, which divides the border in its middle: the border counts as
        half pet, half background.
        """
        mask = np.empty(self.size, np.uint8)
        for window in windows(self.size, STRIP):
            (pet,) = enlarged(self._log_odds[:1], self.size, *window)
            mask[window] = (pet > 0) * np.uint8(255)
        return mask

    @cached_property
    def trimap(self) -> UInt8:
        """uint8 [H, W]: 1 pet, 2 background, 3 border, as in the data set; no 3 from a model without that class."""
        return self._trimap(self.size)

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """The regions of pet that cover at least a thousandth of the photo, the largest first; empty: no pet."""
        regions = self._regions
        shares, corners = regions.areas() / self.mask.size, regions.boxes()
        boxes: list[Box] = []
        for region in np.argsort(-shares, kind="stable").tolist():
            if shares[region] >= SMALLEST:
                inside = self._region_at == region
                confidence, species = self._mean_confidence(inside), self._species(inside)
                left, top, right, bottom = corners[region].tolist()
                boxes.append(Box(left, top, right, bottom, float(shares[region]), confidence, species))
        return tuple(boxes)

    @property
    def pet_share(self) -> float:
        """Share of the photo that `mask` calls pet, 0 to 1."""
        return float(np.count_nonzero(self.mask) / self.mask.size)

    @cached_property
    def confidence(self) -> float | None:
        """How sure the model is of what it calls pet: mean of p(pet) / (p(pet) + p(background)), .5 to 1.

        None where there is no pet.
        """
        return self._mean_confidence(self._region_at >= 0) if self.boxes else None

    @cached_property
    def species(self) -> Species | None:
        """Cat or dog: the mean over the photo, each pixel weighted by its p(pet). With both in it, see the boxes.

        None where there is no pet, and from a model without the classes cat and dog.
        """
        return self._species(np.ones(self.probabilities.shape[1:], np.bool_)) if self.boxes else None

    def cutout(self, *, matting: bool = False) -> Image.Image:
        """Returns the pet alone at the photo's size, mode RGBA: soft edge, the background's colour taken out of it.

        Args:
            matting: solve for opacity in what the model calls border: finer hair, no holes in fur, more time.

        Raises:
            ModuleNotFoundError: matting needs the extra `matting`.
        """
        speckle = np.append(self._regions.areas() < SMALLEST * self.mask.size, False)[self._region_at]
        height, width = self._share.shape
        trimap = np.where(speckle, np.uint8(BACKGROUND), self._trimap((height, width))) if matting else None
        return cut_out(self.photo.whole(), np.where(speckle, 0, self._share), trimap)

    def overlay(self) -> Image.Image:
        """Returns the photo, at most 2048 px a side, with pet tinted blue, border orange and background paler: RGB."""
        photo = self.photo.reduced(LARGEST_OVERLAY)
        return overlay(photo, self._trimap((photo.height, photo.width)))

    def summary(self) -> dict[str, Any]:
        """Returns what JSON tells of it: size, pet, share, confidence, species, boxes, notes."""

        def told(species: Species | None) -> dict[str, Any] | None:
            return None if species is None else {"name": species.name, "probability": round(species.probability, 4)}

        height, width = self.size
        return {
            "width": width,
            "height": height,
            "pet": bool(self.boxes),
            "pet_share": round(self.pet_share, 6),
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "species": told(self.species),
            "boxes": [
                {
                    "left": box.left,
                    "top": box.top,
                    "right": box.right,
                    "bottom": box.bottom,
                    "share": round(box.share, 6),
                    "confidence": round(box.confidence, 4),
                    "species": told(box.species),
                }
                for box in self.boxes
            ],
            "notes": list(self.photo.notes),
        }

    def _trimap(self, size: Size) -> UInt8:
        trimap = np.empty(size, np.uint8)
        for window in windows(size, STRIP):
            pet, border = enlarged(self._log_odds, size, *window)
            trimap[window] = np.where(border > np.maximum(pet, 0), BORDER, np.where(pet > 0, PET, BACKGROUND))
        return trimap

    @cached_property
    def _merged(self) -> Floats:
        """[3, h, w]: pet, background, border."""
        of = dict(zip(self.classes, self.probabilities, strict=True))
        pet = sum(of[name] for name in PETS if name in of)
        return np.stack([pet, of["background"], of.get("border", np.zeros_like(of["background"]))])

    @cached_property
    def _share(self) -> Floats:
        """[h, w] in 0..1: pet's part of what is pet or background; .5 at the outline."""
        pet, background, _ = self._merged
        share: Floats = pet / np.maximum(pet + background, np.finfo(np.float32).tiny)
        return share

    @cached_property
    def _log_odds(self) -> Floats:
        """[2, h, w]: log of p(pet) and of p(border) over p(background).

        Enlarging these is enlarging logits, as scores are taken: they differ by what softmax takes from all classes.
        """
        pet, background, border = np.log(np.maximum(self._merged, np.finfo(np.float32).tiny))
        return np.stack([pet - background, border - background])

    @cached_property
    def _regions(self) -> Regions:
        return find_regions(self.mask)

    @cached_property
    def _region_at(self) -> npt.NDArray[np.int64]:
        """[h, w]: the region that the middle of each of the model's pixels lies in, -1 outside."""
        rows, columns = (
            ((np.arange(own) + 0.5) * whole / own).astype(np.int64)
            for own, whole in zip(self.probabilities.shape[1:], self.size, strict=True)
        )
        return self._regions.at(rows[:, None], columns)

    def _mean_confidence(self, where: npt.NDArray[np.bool_]) -> float:
        # a region so narrow that it holds no middle of a pixel of the model's lies on the outline, where both are even
        return float(self._share[where].mean()) if where.any() else 0.5

    def _species(self, where: npt.NDArray[np.bool_]) -> Species | None:
        if "cat" not in self.classes or not where.any():
            return None
        cat, dog = (float(self.probabilities[self.classes.index(name)][where].sum()) for name in ("cat", "dog"))
        return Species("cat", cat / (cat + dog)) if cat >= dog else Species("dog", dog / (cat + dog))


class Segmenter:
    """A model, loaded and ready. Any number of threads may call one segmenter at once.

    Args:
        model: a shipped model (`shipped_models`), a kind (`unet`, `segnet`) for the best of it,
            or a path to an ONNX file that `petseg export` wrote.
        threads: of one call. None takes all cores: the fastest for one photo; where many threads call, take 1.
        runtime: onnxruntime or openvino; None takes the faster one for many photos (`runtimes.chosen_runtime`).
        flip: average with what it sees in the mirrored photo, at twice the time; no score of petseg's does.

    Raises:
        PetsegError: an unknown name, or a file that is no exported model.
    """

    def __init__(
        self, model: str | Path = "", *, threads: int | None = None, runtime: str | None = None, flip: bool = False
    ) -> None:
        self.flip = flip
        self.name = str(model) if Path(model).suffix == ".onnx" else shipped_model(str(model) or KINDS[0])
        content = model_file(self.name)
        self.runtime = runtime or chosen_runtime()
        """What runs it."""
        if self.runtime not in RUNTIMES:
            raise unknown_name("runtime", self.runtime, RUNTIMES)
        try:
            self._run = RUNTIMES[self.runtime](content, threads)
            metadata = self._run.metadata
            self.card: dict[str, Any] = {name: json.loads(value) for name, value in metadata.items()}
            """What the file says of itself: classes, size, scores, licence."""
            self.classes, self.size = _checked(self.card, self._run.takes)
        except ModuleNotFoundError:
            raise  # of the runtime
        except Exception as error:  # ONNX Runtime's own have no common base but this
            told = str(error).partition("\n")[0]
            raise PetsegError(f"model {self.name}: not a model that `petseg export` wrote ({told})") from None

    def __call__(self, image: Source) -> Segmentation:
        """Returns what the model sees in one photo.

        Args:
            image: a path, an encoded file as bytes, a PIL image, or uint8 [H, W, 3] in RGB.

        Raises:
            PetsegError: not an image, damaged, or too large.
        """
        return self.batch([image])[0]

    def batch(self, images: Sequence[Source | Photo]) -> list[Segmentation]:
        """Returns the same as one call an image, in order; of any sizes.

        Raises:
            PetsegError: one of them cannot be used.
        """
        photos = [image if isinstance(image, Photo) else Photo(image) for image in images]
        if not photos:
            return []
        pictures = np.stack([photo.squeezed(self.size) for photo in photos])
        started = time.perf_counter()
        probabilities = self.probabilities(pictures)
        if self.flip:
            mirrored = self.probabilities(np.ascontiguousarray(pictures[:, :, ::-1]))
            probabilities = np.float32(0.5) * (probabilities + mirrored[..., ::-1])
        seconds = (time.perf_counter() - started) / len(photos)
        return [
            Segmentation(each, self.classes, photo, seconds) for each, photo in zip(probabilities, photos, strict=True)
        ]

    def probabilities(self, pictures: UInt8) -> Floats:
        """Returns what the network itself gives, [N, C, h, w], of uint8 [N, h, w, 3] at its own size."""
        try:
            probabilities = self._run(pictures)
        except Exception as error:  # as above
            told = str(error).partition("\n")[0]
            raise PetsegError(f"model {self.name}: cannot be computed ({told}); export it again") from None
        shape = (len(pictures), len(self.classes), *pictures.shape[1:3])
        if probabilities.shape != shape or not (probabilities.min() >= 0 and probabilities.max() < 1.01):  # nan is not
            raise PetsegError(
                f"model {self.name}: gives {list(probabilities.shape)} from {probabilities.min():.3g} to "
                f"{probabilities.max():.3g}; wanted probabilities {list(shape)}: export it again"
            )
        return probabilities


def model_file(name: str) -> bytes:
    """Returns the ONNX file of a shipped model or the best of a kind, or the file at a path that ends in .onnx.

    Raises:
        PetsegError: an unknown name, or a file that cannot be read.
    """
    path = Path(name)
    if path.suffix == ".onnx":
        try:
            return path.read_bytes()
        except OSError as error:
            raise PetsegError(f"model {path}: cannot be read ({error.strerror or error})") from None
    return (WEIGHTS / f"{shipped_model(name)}.onnx").read_bytes()


def _checked(card: dict[str, Any], takes: Taken) -> tuple[tuple[str, ...], int]:
    """Returns classes and size of a model.

    Raises:
        ValueError: the card, or what the network takes, is not what `petseg export` writes.
    """
    classes, size = card["classes"], card["size"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are not names")
    if len({*classes}) < len(classes) or "background" not in classes or not {*classes} & {*PETS}:
        raise ValueError(f"its classes are {', '.join(classes)[:100]}; wanted background and pet, or cat and dog")
    if ("cat" in classes) != ("dog" in classes):
        raise ValueError("of its classes cat and dog one is missing")
    if type(size) is not int or not 1 <= size <= LARGEST_SIZE:
        raise ValueError(f"its size is {str(size)[:20]}; wanted 1 to {LARGEST_SIZE}")
    name, kind, axes = takes
    wanted = (None, size, size, 3)
    fits = (
        len(axes) == 4 and axes[3] == 3 and all(axis in (None, side) for axis, side in zip(axes, wanted, strict=True))
    )
    if (name, kind) != ("image", "uint8") or not fits:
        raise ValueError(f"it takes {str(takes)[:100]}; wanted image, uint8 [N, {size}, {size}, 3]")
    return tuple(classes), size


def shipped_models() -> list[str]:
    """Returns the names of the models that come with the package, sorted."""
    return sorted(entry.name.removesuffix(".onnx") for entry in WEIGHTS.iterdir() if entry.name.endswith(".onnx"))


def shipped_model(name: str) -> str:
    """Returns the shipped model that a name means: its own, or the best one of a kind.

    >>> shipped_model("segnet_small")
    'segnet_small'

    Raises:
        PetsegError: no model and no kind has that name.
    """
    shipped = shipped_models()
    meant = next((each for each in (name, f"{name}_base", f"{name}_small") if each in shipped), None)
    if meant is None:
        raise unknown_name("model", name, [*KINDS, *shipped])
    return meant
