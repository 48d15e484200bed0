"""Images a second of preparing the cache, and of a plain loop with Pillow, taking turns in one process.

    python benchmarks/prepare_speed.py                                           # the last line is `ratio N.N x`
    python benchmarks/prepare_speed.py --out results/benchmarks/prepare_speed.json

Both read every pair and leave uint8 arrays of 128 px. The plain loop opens, converts and resizes one image after the
other; petseg also verifies every trimap and finds its content's key. The ratio is of a part of the dataset enlarged to
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

from petseg.data.cache import prepare
from petseg.data.dataset import Dataset
from petseg.data.sources import open_dataset
from petseg.training.device import choose_hardware

SIZE = 128
OFFICIAL_SIDE, QUALITY = 500, 92
"""Longest side of most official images, and the JPEG quality that gives about their size in bytes."""
ENLARGED = 1500


def enlarge(dataset: Dataset, folder: Path) -> Dataset:
    """Returns the first pairs at the official images' size, in the official layout."""
    for name in ("images", "annotations/trimaps"):
        (folder / name).mkdir(parents=True)
    lists = dataset.samples[0].label.parent.parent
    for name in ("list.txt", "trainval.txt", "test.txt"):
        shutil.copy(lists / name, folder / "annotations")
    for sample in dataset.samples[:ENLARGED]:
        image = Image.open(sample.image).convert("RGB")
        scale = OFFICIAL_SIDE / max(image.size)
        size = (round(scale * image.width), round(scale * image.height))
        large = image.resize(size, Image.Resampling.BICUBIC)
        large.save(folder / "images" / sample.image.name, "JPEG", quality=QUALITY)
        trimap = Image.open(sample.label).resize(size, Image.Resampling.NEAREST)
        trimap.save(folder / "annotations" / "trimaps" / sample.label.name)
    return open_dataset(folder)


def plain(dataset: Dataset) -> None:
    """Prepares as a script would."""
    images = np.empty((len(dataset.samples), SIZE, SIZE, 3), np.uint8)
    trimaps = np.empty((len(dataset.samples), SIZE, SIZE), np.uint8)
    for row, sample in enumerate(dataset.samples):
        images[row] = Image.open(sample.image).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        trimaps[row] = Image.open(sample.label).resize((SIZE, SIZE), Image.Resampling.NEAREST)


def petseg(dataset: Dataset) -> None:
    """Prepares into the cache, which is empty."""
    prepare(dataset, SIZE)


def speed(work: Callable[[Dataset], None], dataset: Dataset) -> float:
    """Returns images a second."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PETSEG_CACHE"] = cache
        started = time.perf_counter()
        work(dataset)
        taken = time.perf_counter() - started
    return round(len(dataset.samples) / taken, 1)


def run() -> None:
    """Measures, writes, prints."""
    options = arguments(__doc__).parse_args()
    own = open_dataset(data_folder(options.data))  # archives are unpacked here, once
    with tempfile.TemporaryDirectory() as scratch:
        sets = {"official size": enlarge(own, Path(scratch) / "pets"), "as given": own}
        speeds = take_turns(
            {
                f"{name}, {work.__name__}": partial(speed, work, dataset)
                for name, dataset in sets.items()
                for work in (petseg, plain)
            },
            options.turns,
        )
        found = {
            name: {
                "images": len(dataset.samples),
                "longest_side_median": int(
                    np.median([max(Image.open(each.image).size) for each in dataset.samples[::50]])
                ),
                "ratio": ratio(speeds[f"{name}, petseg"], speeds[f"{name}, plain"]),
            }
            for name, dataset in sets.items()
        }
    finish(
        options.out,
        {
            "kind": "benchmark",
            "what": "images a second in preparation; ratios are petseg's over a plain Pillow loop's, turn by turn",
            "command": "python benchmarks/prepare_speed.py",
            "environment": choose_hardware().environment().model_dump(),
            "size": SIZE,
            "turns": options.turns,
            "sets": found,
            "images_per_second": speeds,
            "ratio": found["official size"]["ratio"],
        },
    )


if __name__ == "__main__":
    main(run)
