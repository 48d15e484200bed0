"""Pictures a second of preparing the cache, and of a plain loop with Pillow, taking turns in one process.

    python benchmarks/prepare_speed.py                                           # the last line is `ratio N.N x`
    python benchmarks/prepare_speed.py --out results/benchmarks/prepare_speed.json

Both read every pair and leave uint8 arrays of 128 px. The plain loop opens, converts and resizes one picture after the
other; petseg also verifies every trimap and finds its content's key. The ratio is of a part of the data set enlarged to
the official size: a reduced copy of the set leaves the JPEG decoder little to do, and is shown beside it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from measuring import arguments, data_folder, finish, main, ratio, take_turns
from PIL import Image

from petseg.data.cache import open_data, prepare
from petseg.data.oxford_pets import Contents, read_contents
from petseg.training.loop import choose_hardware, environment

SIZE = 128
OFFICIAL_SIDE, QUALITY = 500, 92
"""Longest side of most official pictures, and the JPEG quality that gives about their size in bytes."""
ENLARGED = 1500


def enlarge(contents: Contents, folder: Path) -> Contents:
    """Returns the first pairs at the official pictures' size, in the official layout."""
    for name in ("images", "annotations/trimaps"):
        (folder / name).mkdir(parents=True)
    shutil.copy(contents.folder / "annotations" / "list.txt", folder / "annotations")
    for name in ("trainval.txt", "test.txt"):
        shutil.copy(contents.folder / "annotations" / name, folder / "annotations")
    for pet in contents.pets[:ENLARGED]:
        image = Image.open(pet.image).convert("RGB")
        scale = OFFICIAL_SIDE / max(image.size)
        size = (round(scale * image.width), round(scale * image.height))
        large = image.resize(size, Image.Resampling.BICUBIC)
        large.save(folder / "images" / pet.image.name, "JPEG", quality=QUALITY)
        trimap = Image.open(pet.trimap).resize(size, Image.Resampling.NEAREST)
        trimap.save(folder / "annotations" / "trimaps" / pet.trimap.name)
    return read_contents(folder)


def plain(contents: Contents) -> None:
    """Prepares as a script would."""
    images = np.empty((len(contents.pets), SIZE, SIZE, 3), np.uint8)
    trimaps = np.empty((len(contents.pets), SIZE, SIZE), np.uint8)
    for row, pet in enumerate(contents.pets):
        images[row] = Image.open(pet.image).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        trimaps[row] = Image.open(pet.trimap).resize((SIZE, SIZE), Image.Resampling.NEAREST)


def petseg(contents: Contents) -> None:
    """Prepares into the cache, which is empty."""
    prepare(contents.folder, SIZE)


def speed(work: Callable[[Contents], None], contents: Contents) -> float:
    """Returns pictures a second."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PETSEG_CACHE"] = cache
        started = time.perf_counter()
        work(contents)
        taken = time.perf_counter() - started
    return round(len(contents.pets) / taken, 1)


def run() -> None:
    """Measures, writes, prints."""
    options = arguments(__doc__).parse_args()
    own, _ = open_data(data_folder(options.data))  # archives are unpacked here, once
    with tempfile.TemporaryDirectory() as scratch:
        sets = {"official size": enlarge(own, Path(scratch) / "pets"), "as given": own}
        speeds = take_turns(
            {
                f"{name}, {work.__name__}": partial(speed, work, contents)
                for name, contents in sets.items()
                for work in (petseg, plain)
            },
            options.turns,
        )
        found = {
            name: {
                "pictures": len(contents.pets),
                "longest_side_median": int(np.median([max(Image.open(pet.image).size) for pet in contents.pets[::50]])),
                "ratio": ratio(speeds[f"{name}, petseg"], speeds[f"{name}, plain"]),
            }
            for name, contents in sets.items()
        }
    finish(
        options.out,
        {
            "kind": "benchmark",
            "what": "pictures a second in preparation; ratios are petseg's over a plain Pillow loop's, turn by turn",
            "command": "python benchmarks/prepare_speed.py",
            "environment": environment(choose_hardware()),
            "size": SIZE,
            "turns": options.turns,
            "sets": found,
            "pictures_per_second": speeds,
            "ratio": found["official size"]["ratio"],
        },
    )


if __name__ == "__main__":
    main(run)
