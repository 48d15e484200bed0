"""Trains the first epochs of a published comparison again and says how far the losses are from the published ones.

    python benchmarks/same_numbers.py                                          # the last line is the largest difference
    python benchmarks/same_numbers.py --out results/benchmarks/same_numbers.json

A change that only makes training faster leaves them equal to the last digit on the machine that they were published
from, and the published scores stand. On another processor kernels round otherwise, and the difference says how much.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from measuring import arguments, data_folder, main

from petseg import storage
from petseg.data.cache import prepare
from petseg.training import runs
from petseg.training.loop import choose_hardware, environment, keep_freed_memory, train

RESULTS = Path(__file__).parent.parent / "results"


class EnoughError(Exception):
    """The epochs that were asked for are over."""


def run() -> None:
    """Trains, compares, writes, prints."""
    parser = arguments(__doc__)
    parser.add_argument("--comparison", default="official", help="which folder of results/")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    keep_freed_memory()
    hardware = choose_hardware()
    models: dict[str, Any] = {}
    for published in sorted((RESULTS / options.comparison / "runs").iterdir()):
        config = runs.read_config(published)
        before = [json.loads(line) for line in (published / "metrics.jsonl").read_text().splitlines()]
        now: list[dict[str, Any]] = []

        def keep(row: Mapping[str, Any], now: list[dict[str, Any]] = now) -> None:
            now.append(dict(row))
            if len(now) == options.epochs:
                raise EnoughError

        prepared = prepare(data_folder(options.data), config.data.size)
        with tempfile.TemporaryDirectory() as scratch, suppress(EnoughError):
            train(config, prepared, Path(scratch) / "run", hardware=hardware, on_epoch=keep)
        models[published.name] = {
            loss: {
                "published": [row[loss] for row in before[: options.epochs]],
                "now": [row[loss] for row in now],
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
                "environment": environment(hardware),
                "comparison": options.comparison,
                "epochs": options.epochs,
                "models": models,
                "largest_difference": largest,
            },
        )
    print(f"largest difference {largest:g}")


if __name__ == "__main__":
    main(run)
