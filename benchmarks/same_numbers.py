"""Trains the first epochs of a published comparison again and says how far the losses are from the published ones.

    python benchmarks/same_numbers.py                                          # the last line is the largest difference
    python benchmarks/same_numbers.py --out results/benchmarks/same_numbers.json

A change that only makes training faster leaves them equal to the last digit on the machine that they were published
from, and the published scores stand. On another processor kernels round otherwise, and the difference says how much.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from measuring import arguments, data_folder, main, prepared

from petseg import storage
from petseg.schema import EpochRow
from petseg.training import runs
from petseg.training.device import choose_hardware
from petseg.training.loop import Execution, train

RESULTS = Path(__file__).parent.parent / "results"


class EnoughError(Exception):
    """The epochs that were asked for are over."""


def run() -> None:
    """Trains, compares, writes, prints."""
    parser = arguments(__doc__)
    parser.add_argument("--comparison", default="official", help="which folder of results/")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    hardware = choose_hardware()
    models: dict[str, Any] = {}
    for published in sorted((RESULTS / options.comparison / "runs").iterdir()):
        config = runs.read_config(published)
        before = [json.loads(line) for line in (published / "metrics.jsonl").read_text().splitlines()]
        now: list[EpochRow] = []

        def keep(row: EpochRow, now: list[EpochRow] = now) -> None:
            now.append(row)
            if len(now) == options.epochs:
                raise EnoughError

        images = prepared(data_folder(options.data), config)
        with tempfile.TemporaryDirectory() as scratch, suppress(EnoughError):
            train(config, images, Path(scratch) / "run", Execution(hardware=hardware, on_epoch=keep))
        models[published.name] = {
            loss: {
                "published": [row[loss] for row in before[: options.epochs]],
                "now": [getattr(row, loss) for row in now],
            }
            for loss in ("train_loss", "val_loss")
        }
    largest = max(
        abs(new - old)
        for losses in models.values()
        for pair in losses.values()
        for old, new in zip(pair["published"], pair["now"], strict=True)
    )
    if options.out is not None:
        storage.write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "losses of the first epochs of a published comparison, then and now",
                "command": "python benchmarks/same_numbers.py",
                "environment": hardware.environment().model_dump(),
                "comparison": options.comparison,
                "epochs": options.epochs,
                "models": models,
                "largest_difference": largest,
            },
        )
    print(f"largest difference {largest:g}")


if __name__ == "__main__":
    main(run)
