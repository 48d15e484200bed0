"""Copies what a finished comparison may publish into results/: every JSON, no picture, no weights.

python scripts/publish.py runs/compare-default official
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from petseg.errors import PetsegError
from petseg.report.page import read_comparison

RESULTS = Path(__file__).parent.parent / "results"


def publish(comparison: Path, name: str, results: Path = RESULTS) -> Path:
    """Returns results/NAME, now with the comparison's JSON files; what stood there before is gone."""
    found = read_comparison(comparison / "comparison.json")
    if found["made_data"]:
        raise PetsegError(f"{comparison} was trained on made pets; only results on the real data set are published")
    target = results / name
    if target.exists():
        shutil.rmtree(target)
    for path in sorted([*comparison.rglob("*.json"), *comparison.rglob("*.jsonl")]):
        copy = target / path.relative_to(comparison)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return target


if __name__ == "__main__":
    print(publish(Path(sys.argv[1]), sys.argv[2]))
