"""`petseg compare --quick` alone and two of them at once, on all cores.

    python benchmarks/two_at_once.py --out results/benchmarks/two_at_once.json

The cache is prepared before. The ratio is the speed of each of the two over that of one alone: .5 is an even share.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import arguments, data_folder, finish, main, prepared, ratio, take_turns

from petseg.config import load_recipe
from petseg.training.device import choose_hardware


def seconds(folder: Path, processes: int) -> float:
    """Returns seconds until the last of so many comparisons has ended."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "petseg", "compare", "--quick", "--data", str(folder), "--out"]
        started = time.perf_counter()
        running = [
            subprocess.Popen([*command, f"{scratch}/{number}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for number in range(processes)
        ]
        assert [process.wait() for process in running] == [0] * processes
        return time.perf_counter() - started


def run() -> None:
    """Measures, writes, prints."""
    options = arguments(__doc__).parse_args()
    folder = data_folder(options.data)
    prepared(folder, load_recipe("quick").for_model("unet"))
    found = take_turns({"alone": lambda: seconds(folder, 1), "two": lambda: seconds(folder, 2)}, options.turns)
    result = {
        "kind": "benchmark",
        "what": "seconds of one `petseg compare --quick` and of two at once; the ratio is the speed that each keeps",
        "command": "python benchmarks/two_at_once.py",
        "environment": choose_hardware().environment().model_dump(),
        "cores": os.cpu_count(),
        "turns": options.turns,
        "seconds": found,
        "ratio": ratio(found["alone"], found["two"]),
    }
    finish(options.out, result)


if __name__ == "__main__":
    main(run)
