"""Exports a run into petseg/weights: NAME.onnx, and NAME.json, its card; its JSON goes to results/models/NAME.

python scripts/ship.py runs/compare-base/runs/unet unet_base
"""

import sys
from pathlib import Path

from publish import copy_records

from petseg import storage
from petseg.errors import PetsegError
from petseg.export.onnx import export_run

ROOT = Path(__file__).parent.parent
WEIGHTS, RESULTS = ROOT / "petseg" / "weights", ROOT / "results" / "models"

LARGEST = 60_000_000
"""Bytes that all shipped files may take together."""


def ship(run: Path, name: str, weights: Path = WEIGHTS, results: Path = RESULTS) -> Path:
    """Returns petseg/weights/NAME.onnx, now this run's; its card lies beside it, what the run wrote in `results`.

    Raises:
        PetsegError: the run has not been scored, or the package would become too large.
    """
    if not any((run / "evaluations" / f"{split}.json").is_file() for split in ("test", "val")):
        raise PetsegError(f"{run} has no evaluation; a model is shipped with its scores: run `petseg evaluate {run}`")
    out = weights / f"{name}.onnx"
    metadata = export_run(run, out)
    card = {"name": name, "bytes": out.stat().st_size, "sha256": storage.sha256(out), **metadata}
    storage.write_json(out.with_suffix(".json"), card)
    total = sum(path.stat().st_size for path in weights.iterdir())
    if total > LARGEST:
        out.unlink()
        out.with_suffix(".json").unlink()
        raise PetsegError(
            f"{name} would make {total:,} bytes of weights; wanted at most {LARGEST:,}: ship fewer models"
        )
    copy_records(run, results / name)
    return out


if __name__ == "__main__":
    try:
        print(ship(Path(sys.argv[1]), sys.argv[2]))
    except PetsegError as error:
        sys.exit(str(error))
