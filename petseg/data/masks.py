"""Masks as image files: what values they hold, and masks as class ids.

A value is a class id (grey or indexed masks) or a colour 0xRRGGBB; `petseg.data.classes` decides which class it is.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from pydantic import TypeAdapter

from petseg.data.cache import Work, remembered
from petseg.data.dataset import IGNORE, Class, Label, Progress, Sample
from petseg.data.images import opened, outcomes, unused
from petseg.errors import PetsegError

Kind = Literal["ids", "indexed", "colours"]
ROWS = TypeAdapter(dict[str, tuple[Kind, dict[int, int], dict[int, int]]])
REACH = 8  # pixels from an edge to where a smoothed one ends, at most
OVERSHOOT = 0.15  # share of an edge's height by which bicubic and Lanczos filters go beyond it
SMOOTHED = ": smoothed edges, values between two classes"
MAX_VALUES = 4096  # different values in a mask, beyond which it is a photo and they are not listed


@dataclass(frozen=True)
class MaskFile:
    """What one mask holds."""

    kind: Kind
    counts: Mapping[int, int]  # value -> pixels; colours where `kind` is "colours"; empty where there are too many
    palette: Mapping[int, int]  # index in use -> colour, of an indexed mask

    @cached_property
    def colours(self) -> Mapping[int, int]:
        """The colours that it shows, colour -> pixels."""
        shades = {value: self.palette.get(value, grey(value)) for value in self.counts}
        return self.counts if self.kind == "colours" else _summed((shades[v], n) for v, n in self.counts.items())


def grey(value: int) -> int:
    """Returns the colour of a grey value.

    >>> f"{grey(128):06X}"
    '808080'
    """
    return value * 0x010101


def scan(sample: Sample) -> MaskFile:
    """Returns what a mask holds, without what it means; PetsegError where it is no opaque image of whole numbers."""
    with opened(sample.label, f"{sample.id}: mask") as image:
        _refuse_transparent(image, sample)
        if image.mode in ("L", "P"):
            counts = {value: count for value, count in enumerate(image.histogram()) if count}
            shades = _palette(image) if image.mode == "P" else {}
            kind: Kind = "indexed" if image.mode == "P" else "ids"
            return MaskFile(kind, counts, {value: shades[value] for value in counts if value in shades})
        if image.mode in ("RGB", "RGBA"):
            found = image.convert("RGB").getcolors(MAX_VALUES) or []
            return MaskFile("colours", {_code(colour): count for count, colour in found}, {})
        values, counts_of = np.unique(_numbers(image, sample), return_counts=True)
        few = len(values) <= MAX_VALUES
        return MaskFile("ids", dict(zip(values.tolist(), counts_of.tolist(), strict=True)) if few else {}, {})


def _refuse_transparent(image: Image.Image, sample: Sample) -> None:
    """Refuses a mask with alpha unless it is opaque: the colour below a transparent pixel may be any, nobody saw it."""
    if image.mode in ("RGBA", "LA") and (clear := int((np.asarray(image.getchannel("A")) < 255).sum())):
        raise PetsegError(
            f"{sample.id}: mask has transparent pixels ({clear:,} of {image.width * image.height:,}); wanted none: "
            "save it without alpha, each class in a value or a colour of its own"
        )


def _palette(image: Image.Image) -> dict[int, int]:
    flat = image.getpalette("RGB") or []
    return {place: _code(flat[3 * place : 3 * place + 3]) for place in range(len(flat) // 3)}


def _code(colour: Any) -> int:
    return int.from_bytes(bytes(colour))  # of red, green, blue


def _numbers(image: Image.Image, sample: Sample) -> npt.NDArray[Any]:
    """Returns the values of one channel, whole numbers from 0, [H, W]."""
    values = np.asarray(image.getchannel(0) if image.mode == "LA" else image)
    if values.ndim == 2 and values.dtype == np.uint8:
        return values
    if values.ndim != 2 or not np.isfinite(values).all() or (values < 0).any() or (values != np.floor(values)).any():
        what = f"is of mode {image.mode}" if values.ndim != 2 else "holds values that are no whole numbers from 0"
        raise PetsegError(f"{sample.id}: mask {what}; wanted class ids, an indexed image or RGB colours")
    return values.astype(np.uint8 if values.max(initial=0) <= IGNORE else np.uint32)


def scan_all(samples: Sequence[Sample], on_progress: Progress | None = None) -> dict[str, MaskFile]:
    """Returns sample id -> what its mask holds, of those that can be opened; kept until a file changes."""

    def make() -> str:
        found = outcomes(scan, samples, on_progress)
        rows = {sample.id: [one.kind, one.counts, one.palette] for sample, one in found if not isinstance(one, str)}
        return json.dumps(rows, default=dict)

    def read(text: str) -> dict[str, MaskFile]:
        return {name: MaskFile(*row) for name, row in ROWS.validate_json(text).items()}

    return remembered("masks-v2", "", (sample.label for sample in samples), Work(make, read))


def smoothed(channels: npt.NDArray[Any], wrong: npt.NDArray[np.bool_]) -> bool:
    """Returns whether nearly all `wrong` pixels, [H, W], lie between right ones near them in each of the channels.

    Channels are [c, H, W]. Then an edge was interpolated; a class without a name has an inside.
    """
    rows, columns = np.nonzero(wrong)
    some = np.linspace(0, len(rows) - 1, min(len(rows), 500)).astype(int)
    rows, columns, sides = rows[some], columns[some], (2 * REACH + 1, 2 * REACH + 1)
    padded = np.pad(channels, ((0, 0), (REACH, REACH), (REACH, REACH)))
    around = sliding_window_view(padded, sides, axis=(1, 2))[:, rows, columns].astype(np.int64)
    right = sliding_window_view(np.pad(~wrong, REACH), sides)[rows, columns]
    low, high = around.min(axis=(2, 3), initial=1 << 32, where=right), around.max(axis=(2, 3), initial=-1, where=right)
    own, beyond = channels[:, rows, columns], OVERSHOOT * (high - low)
    return bool(((low - beyond <= own) & (own <= high + beyond)).all(axis=0).mean() > 0.9)


@dataclass(frozen=True)
class Table:
    """Which class each value of a dataset's masks is."""

    classes: tuple[Class, ...]
    by_colour: bool  # values are colours
    ids: Mapping[int, int]  # value -> class id; 255 where ignored
    origin: str  # of the names, in a few words

    def values(self, mask: MaskFile) -> Mapping[int, int]:
        """Returns value -> pixels of one mask, in this table's terms."""
        if self.by_colour:
            return mask.colours
        return _summed((value & 0xFF, n) for value, n in mask.counts.items()) if mask.kind == "colours" else mask.counts

    def unknown(self, mask: MaskFile) -> dict[int, int]:
        """Returns value -> pixels of what no class has."""
        return {value: count for value, count in self.values(mask).items() if value not in self.ids}

    def classes_in(self, mask: MaskFile) -> frozenset[int]:
        """Returns the class ids that a mask holds, without what is ignored or unknown."""
        return frozenset(self.ids.get(value, IGNORE) for value in self.values(mask)) - {IGNORE}

    def shown(self, value: int) -> str:
        """Returns a value as a classes file writes it."""
        return hex_colour(value) if self.by_colour else str(value)

    def nearest(self, value: int) -> str:
        """Returns the known value nearest to one, and its class."""

        def distance(known: int) -> int:
            parts = ((value >> shift & 0xFF) - (known >> shift & 0xFF) for shift in (0, 8, 16))
            return sum(part**2 for part in parts) if self.by_colour else abs(value - known)

        near = min(self.ids, key=lambda known: (distance(known), known))
        return f"{self.shown(near)}, {'ignored' if self.ids[near] == IGNORE else self.classes[self.ids[near]].name}"

    def read(self, sample: Sample) -> Label:
        """Returns a mask as class ids; PetsegError where it holds what no class has, or transparent pixels."""
        with opened(sample.label, f"{sample.id}: mask") as image:
            _refuse_transparent(image, sample)
            notes = tuple(f"mask: {note}" for note in unused(image))
            notes += ("mask stored as JPEG",) if image.format == "JPEG" else ()
            values = self._values(image, sample)
        keys = np.array(sorted(self.ids), np.uint32)
        places = np.searchsorted(keys, np.arange(256) if values.dtype == np.uint8 else values).clip(max=len(keys) - 1)
        known = np.array([self.ids[key] for key in keys.tolist()], np.uint8)[places]
        if values.dtype == np.uint8:  # through a table of 256 entries, many times as fast
            wrong, known = (keys[places] != np.arange(256))[values], known[values]
        else:
            wrong = keys[places] != values
        if wrong.any():
            found, counts = np.unique(values[wrong], return_counts=True)
            worst = int(counts.argmax())
            fault = self.fault(int(found[worst]), int(counts[worst]))
            channels = [values >> shift & 0xFF for shift in (16, 8, 0)] if self.by_colour else [values]
            raise PetsegError(f"{sample.id}: mask has {fault}{SMOOTHED if smoothed(np.array(channels), wrong) else ''}")
        return Label(known, notes)

    def _values(self, image: Image.Image, sample: Sample) -> npt.NDArray[Any]:
        if not self.by_colour and image.mode not in ("RGB", "RGBA"):
            return _numbers(image, sample)
        planes = np.asarray(image.convert("RGB"))
        if not self.by_colour:
            return planes[..., 0].copy()  # a colour beside the greys is an error of the whole dataset, in `choose`
        return planes.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)

    def fault(self, value: int, count: int) -> str:
        """Returns what is wrong with pixels of a value that no class has."""
        what = "colour" if self.by_colour else "value"
        return f"{count:,} pixels of {what} {self.shown(value)}, which no class has (nearest: {self.nearest(value)})"


def _summed(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    total = Counter[int]()
    for value, count in pairs:
        total[value] += count
    return dict(total)


def hex_colour(code: int) -> str:
    """Returns 0xRRGGBB as "#RRGGBB"."""
    return f"#{code:06X}"
