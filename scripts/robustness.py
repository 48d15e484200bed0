"""Scores the shipped models on corrupted test images; writes JSON for the documents.

python scripts/robustness.py --counts FOLDER --out results/models/robustness.json
python scripts/robustness.py --model unet_small --counts FOLDER --out results/models/robustness.json

`--counts` keeps what `petseg robustness` counts of each image, so that a stopped call goes on. Needs PETSEG_DATA.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from petseg import environment, storage
from petseg.cores import core_count
from petseg.evaluation.corruptions import KINDS, corruptions
from petseg.evaluation.robustness import Robustness
from petseg.evaluation.statistics import bootstrap, paired_bootstrap
from petseg.schema import read_record
from petseg.shipped import shipped_models

PAIRS = (("unet_base", "segnet_base"), ("unet_small", "segnet_small"))  # alike but for the network


def counted(names: Sequence[str], folder: Path) -> dict[str, Robustness]:
    """Returns model -> counts, made by the command where the folder lacks them."""
    found = {}
    for name in names:
        path = folder / f"{name}.json"
        if not path.is_file():
            words = f"robustness {name} --split test --threads {core_count()} --out".split()
            subprocess.run([sys.executable, "-m", "petseg", *words, str(path)], check=True)
        found[name] = read_record(path, Robustness)
    return found


def scores(found: dict[str, Robustness]) -> list[dict[str, Any]]:
    """Returns for each corruption the mIoU of each model with its interval, and U-Net less SegNet."""
    (ids,) = {counts.ids for counts in found.values()}
    rows = []
    for corruption in corruptions():
        counts = {name: each.counts(corruption.name) for name, each in found.items()}
        strong = corruption.severity > 0
        rows.append(
            {
                "name": corruption.name,
                "title": f"{KINDS[corruption.kind].unit}: {corruption.amount:g}" if strong else "unchanged",
                "miou": {name: bootstrap(own).model_dump() for name, own in counts.items()},
                "differences": {
                    first.partition("_")[2]: paired_bootstrap(counts[first], counts[second]).model_dump()
                    for first, second in PAIRS
                    if {first, second} <= counts.keys()
                },
            }
        )
        print(corruption.name, len(ids), file=sys.stderr)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=shipped_models(), help="repeatable; else all")
    parser.add_argument("--counts", type=Path, required=True, help="folder of the counts")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    options = parser.parse_args(arguments)
    found = counted(options.model or shipped_models(), options.counts)
    first, named = next(iter(found.values())), [f"--model {name}" for name in options.model or ()]
    (runtime,) = {counts.runtime for counts in found.values()}
    storage.write_json(
        options.out,
        {
            "kind": "robustness",
            "command": " ".join(["python scripts/robustness.py", *named]),
            "environment": environment.environment(device="cpu", precision=runtime, threads=core_count()),
            "versions": {(package := runtime.partition(",")[0]): version(package)},
            "split": "test",
            "images": len(first.ids),
            "data": first.data,
            "rows": scores(found),
        },
    )
    print(options.out)


if __name__ == "__main__":
    main()
