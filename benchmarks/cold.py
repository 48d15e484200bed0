"""Cold starts of the command: seconds and peak memory of two installs, in turns.

    python benchmarks/cold.py --python light/bin/python --before other/bin/python --out results/benchmarks/cold.json

Each interpreter has petseg without torch (`pip install .`); every start is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

from measuring import ratio, take_turns
from PIL import Image
from serve_speed import cats

from petseg.cores import core_count
from petseg.environment import environment
from petseg.shipped import DEFAULT
from petseg.storage import write_json

SIZES = {"small": (451, 300), "large": (4000, 3000), "huge": (8660, 5774)}
"""A tenth of a megapixel, twelve, fifty."""

COMMANDS = {"help": ["--help"], **{name: ["predict", f"{name}.jpg"] for name in SIZES}}

APART = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e6, status]))
"""
"""Starts a command from a small process: a new one is counted from its parent's memory on."""


def cold(python: str, command: list[str], folder: Path) -> tuple[float, float]:
    """Returns seconds and peak resident MB of a command; `python` runs the small process."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run([python, "-c", APART, *command], cwd=folder, env=clean, check=True, stdout=subprocess.PIPE)
    seconds, megabytes, status = json.loads(found.stdout)
    assert status == 0, command
    return seconds, megabytes


def measured(installs: dict[str, str], turns: int) -> list[dict[str, Any]]:
    """Returns a row for each command: seconds and peak memory of both installs, which take turns."""
    peaks: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        with Image.open(BytesIO(cats(1, 451)[0])) as image:
            for name, size in SIZES.items():
                image.resize(size, Image.Resampling.BICUBIC).save(Path(scratch) / f"{name}.jpg", quality=90)

        def start(install: str, name: str) -> float:
            python = installs[install]
            taken, peak = cold(python, [python, "-m", "petseg", *COMMANDS[name]], Path(scratch))
            peaks.setdefault(f"{name} {install}", []).append(peak)
            return taken

        pairs = [*product(installs, COMMANDS)]
        for pair in pairs:
            start(*pair)  # the files' own cache is warm, as after any first use
        seconds = take_turns({f"{name} {install}": partial(start, install, name) for install, name in pairs}, turns)

    def figures(name: str) -> dict[str, float]:
        found = seconds[name]
        middle = statistics.median(found)
        return {"seconds": middle, "low": min(found), "high": max(found), "peak_mb": round(max(peaks[name]))}

    return [
        {
            "command": " ".join(["petseg", *command]),
            **{install: figures(f"{name} {install}") for install in installs},
            "ratio": ratio(seconds[f"{name} now"], seconds[f"{name} before"]),
        }
        for name, command in COMMANDS.items()
    ]


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="of an environment without torch")
    parser.add_argument("--before", required=True, help="of one with the petseg to compare with")
    parser.add_argument("--turns", type=int, default=7, help="how often each is measured")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    rows = measured({"now": options.python, "before": options.before}, options.turns)
    if options.out is not None:
        write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "cold starts of the command",
                "command": "python benchmarks/cold.py",
                "environment": environment(device="cpu", precision="fp32", threads=core_count()),
                "turns": options.turns,
                "default_model": DEFAULT,
                "rows": rows,
            },
        )
    for row in rows:
        print(f"{row['command']}: {row['now']['peak_mb']} MB, before {row['before']['peak_mb']}; time {row['ratio']}")


if __name__ == "__main__":
    main()
