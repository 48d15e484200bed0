"""Writes petseg/data/splits/: official_val.txt, 368 of the 3,680 trainval names, stratified by breed, and
official_leaks.txt, the test pictures that have a near-duplicate in trainval.

    python scripts/make_validation_split.py ANNOTATIONS_FOLDER NEAR_DUPLICATES_CSV

A picture with a near-duplicate elsewhere in trainval or test (columns a, b of the CSV) is never drawn, so that no
validation picture has a twin among those that train.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from petseg.data.oxford_pets import stratified_validation

OUT = Path(__file__).parent.parent / "petseg" / "data" / "splits"


def main(annotations: Path, near_duplicates: Path) -> None:
    """Draws and writes the lists."""
    names = [line.split()[0] for line in (annotations / "trainval.txt").read_text(encoding="utf-8").splitlines()]
    with near_duplicates.open(encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file))
    barred = frozenset(row[side] for row in pairs for side in ("a", "b"))
    across = [row for row in pairs if {row["split_a"], row["split_b"]} == {"trainval", "test"}]
    leaks = sorted({row["a" if row["split_a"] == "test" else "b"] for row in across})
    drawn = stratified_validation(names, share=0.1, seed=0, barred=barred)
    header = (
        "# The validation part of trainval: drawn by scripts/make_validation_split.py, 10 % of each breed, seed 0\n"
    )
    (OUT / "official_val.txt").write_text(header + "\n".join(drawn) + "\n", encoding="utf-8")
    header = "# Test pictures with a near-identical one in trainval: written by scripts/make_validation_split.py\n"
    (OUT / "official_leaks.txt").write_text(header + "\n".join(leaks) + "\n", encoding="utf-8")
    print(f"{len(drawn)} of {len(names)} names and {len(leaks)} leaks -> {OUT}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
