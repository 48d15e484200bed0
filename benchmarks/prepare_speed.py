"""Pictures a second of preparing the cache, and of a plain loop with Pillow, taking turns in one process.

    python benchmarks/prepare_speed.py                                           # the last line is `ratio N.N x`
    python benchmarks/prepare_speed.py --out results/benchmarks/prepare_speed.json

Both read every pair of the data set and leave uint8 arrays of 128 px. The plain loop opens, converts and resizes one
picture after the other; petseg also verifies every trimap and finds its content's key.
"""

from __future__ import annotations

import os
import tempfile
import time

import numpy as np
from measuring import arguments, data_folder, finish, main, ratio, take_turns
from PIL import Image

from petseg.data.cache import open_data, prepare
from petseg.train import choose_hardware, environment

SIZE = 128


def run() -> None:
    """Measures, writes, prints."""
    options = arguments(__doc__).parse_args()
    contents, _ = open_data(data_folder(options.data))  # archives are unpacked here, once
    folder, pets = contents.folder, contents.pets
    images = np.empty((len(pets), SIZE, SIZE, 3), np.uint8)
    trimaps = np.empty((len(pets), SIZE, SIZE), np.uint8)

    def plain() -> None:
        for row, pet in enumerate(pets):
            images[row] = Image.open(pet.image).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            trimaps[row] = Image.open(pet.trimap).resize((SIZE, SIZE), Image.Resampling.NEAREST)

    def petseg() -> None:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["PETSEG_CACHE"] = cache
            prepare(folder, SIZE)

    def speed(work: object) -> float:
        started = time.perf_counter()
        work()  # type: ignore[operator]
        return len(pets) / (time.perf_counter() - started)

    speeds = take_turns({"petseg": lambda: speed(petseg), "plain": lambda: speed(plain)}, options.turns)
    sides = [max(Image.open(pet.image).size) for pet in pets[::50]]
    finish(
        options.out,
        {
            "kind": "benchmark",
            "what": "pictures a second in preparation; the ratio is petseg's over a plain Pillow loop's, turn by turn",
            "command": "python benchmarks/prepare_speed.py",
            "environment": environment(choose_hardware()),
            "pictures": len(pets),
            "size": SIZE,
            "longest_side_median": int(np.median(sides)),
            "turns": options.turns,
            "pictures_per_second": {name: [round(figure, 1) for figure in found] for name, found in speeds.items()},
            "ratio": ratio(speeds["petseg"], speeds["plain"]),
        },
    )


if __name__ == "__main__":
    main(run)
