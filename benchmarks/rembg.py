"""Cut-outs of a folder: the command of petseg and that of rembg, taking turns, each as installed, with all cores.

    python benchmarks/rembg.py --petseg light/bin/petseg --rembg other/bin/rembg --model u2net \\
        --out results/benchmarks/rembg.json

rembg reads its model from U2NET_HOME (<https://github.com/danielgatis/rembg>). A turn is one call for the folder, its
start included. rembg cuts out anything that stands out, petseg pets: this compares time and memory, not quality.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

from cold import SIZES, cold
from measuring import ratio, take_turns
from predict_speed import make_folder

from petseg.cores import core_count
from petseg.environment import environment
from petseg.shipped import DEFAULT
from petseg.storage import write_json

FOLDERS = {"500_px": (40, (500, 333)), "12_megapixels": (10, SIZES["large"])}
"""Photos in each, and their width and height."""


def cut(words: list[str], number: int, peaks: list[float]) -> float:
    """Returns photos a second of a command that cuts out so many into the folder named last; appends its peak in MB."""
    with tempfile.TemporaryDirectory() as out:  # rembg leaves out what is there
        seconds, peak = cold(sys.executable, [*words, out], Path(out))
        assert len(list(Path(out).rglob("*.png"))) == number, words
    peaks.append(peak)
    return number / seconds


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--petseg", required=True, help="its command in an environment without torch")
    parser.add_argument("--rembg", required=True, help="its command")
    parser.add_argument("--model", default="u2net", help="of rembg")
    parser.add_argument("--turns", type=int, default=3, help="how often each is measured")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    told = subprocess.run([options.rembg, "--version"], check=True, capture_output=True, text=True)
    version = told.stdout.split()[-1]
    folders: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind, (number, size) in FOLDERS.items():
            photos, peaks = Path(scratch) / kind, defaultdict[str, list[float]](list)
            make_folder(photos, number, size)

            commands = {
                "petseg": [options.petseg, "predict", str(photos), "--only", "cutout", "--out"],
                "rembg": [options.rembg, "p", "-m", options.model, str(photos)],
            }
            turns = {name: partial(cut, words, number, peaks[name]) for name, words in commands.items()}
            found = take_turns(turns, options.turns)
            row = {
                "photos": number,
                "width": size[0],
                "height": size[1],
                "photos_per_second": {name: statistics.median(rates) for name, rates in found.items()},
                "peak_mb": {name: round(max(own)) for name, own in peaks.items()},
                "ratio": ratio(found["petseg"], found["rembg"]),
            }
            folders.append(row)
            print(row)
    result = {
        "kind": "benchmark",
        "what": "cut-outs of a folder by two commands, starts included; the ratio is of photos a second",
        "command": "python benchmarks/rembg.py",
        "environment": environment(device="cpu", precision="fp32", threads=core_count()),
        "turns": options.turns,
        "models": {"petseg": DEFAULT, "rembg": f"{options.model}, rembg {version}"},
        "folders": folders,
    }
    if options.out is not None:
        write_json(options.out, result)
    print(f"ratio {folders[0]['ratio']['median']:.1f} x")


if __name__ == "__main__":
    main()
