"""`petseg data check`: what a data folder holds, trap by trap, and what happens to each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from petseg.data.oxford_pets import NO_PET, Contents, Pet, open_pair
from petseg.errors import PetsegError

STRAYS = {
    "hidden file among the images": "passed over",
    "hidden file among the trimaps": "passed over",
    "not a .jpg among the images": "passed over",
    "not a .png among the trimaps": "passed over",
    "second image of one name": "left out",
    "image without trimap": "left out",
    "trimap without image": "left out",
    "listed, but no image": "left out",
    "pair in no list": "in protocol seed only; species and breed from its name",
}
"""What `read_contents` found beside the pairs -> what happens to it."""

MENDED = {
    "trimap of another size, resized (nearest)": "kept",
    NO_PET: "kept: it counts as all background and border, as in everybody's figures",
    "EXIF rotation, not applied (the trimap has none)": "kept",
}
"""What `open_pair` notes -> what happens; every other note (formats, modes) says itself what was done."""


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    found: str
    count: int
    action: str
    names: tuple[str, ...]
    """Files or pictures, sorted; empty for the row of sound pairs."""
    left_out: bool


def check_pairs(contents: Contents, *, on_progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Returns a row for the sound pairs, then one for each kind of trap, after opening every pair.

    Args:
        contents: what `open_data` found.
        on_progress: called with (done, total) pairs.
    """
    by_kind: dict[str, list[str]] = defaultdict(list)
    broken: dict[str, list[str]] = defaultdict(list)
    sound = 0
    with ThreadPoolExecutor() as pool:
        for done, (pet, outcome) in enumerate(zip(contents.pets, pool.map(_open, contents.pets), strict=True), start=1):
            if isinstance(outcome, str):
                broken[_kind(outcome, pet.name)].append(pet.name)
            else:
                sound += not outcome
                for note in outcome:
                    by_kind[note].append(pet.name)
            if on_progress is not None:
                on_progress(done, len(contents.pets))
    rows = [Finding("sound pair", sound, "used", (), False)]
    rows += [
        Finding(kind, len(names), MENDED.get(kind, "kept"), tuple(names), False)
        for kind, names in sorted(by_kind.items())
    ]
    rows += [Finding(reason, len(names), "left out", tuple(names), True) for reason, names in sorted(broken.items())]
    rows += [
        Finding(kind, len(names), STRAYS[kind], names, STRAYS[kind] == "left out")
        for kind, names in contents.strays.items()
    ]
    return rows


def _kind(reason: str, name: str) -> str:
    """Returns the part of a reason that does not differ from picture to picture: no brackets, what stands after ';'."""
    return re.sub(r"\(.*\)", "", reason.removeprefix(f"{name}: ")).strip().rpartition("; ")[2]


def _open(pet: Pet) -> tuple[str, ...] | str:
    try:
        return open_pair(pet).notes
    except PetsegError as error:
        return str(error)
