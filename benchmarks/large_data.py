"""Peak memory of preparing, training and scoring a set of 20 GB on disk.

    python benchmarks/large_data.py --scratch /somewhere                           # needs 21 GB free there
    python benchmarks/large_data.py --scratch /somewhere --out results/benchmarks/large_data.json

Drawn pets, a few files under many ids, are prepared as any set is, at 512 px. Training reads every training image once
and reduces it to 64 px, as `train.ramp` does: what a batch at 512 px takes belongs to the network, not to the set. The
peak is of anonymous memory (`RssAnon`, looked at every 20 ms): what the process holds itself, torch included. Pages of
the mapped cache, which the system drops when it needs the memory, are not counted. Linux.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from measuring import arguments, main

from petseg.config import load_recipe
from petseg.data.cache import prepare
from petseg.data.dataset import Dataset
from petseg.data.sources import open_dataset
from petseg.data.synthetic import make_pets
from petseg.evaluation.evaluate import evaluate
from petseg.storage import write_json
from petseg.training.batches import load_splits
from petseg.training.device import choose_hardware
from petseg.training.inference import build_network
from petseg.training.loop import Trainer

SIZE = 512
GIGABYTES = 20.0
LIMIT_MB = 2000
SETTINGS = ("epochs=2", "train.ramp=[64]", f"data.size={SIZE}", "base_channels=8", "class_weights=median_frequency")


def repeated(dataset: Dataset, count: int) -> Dataset:
    """Returns a dataset of many samples of the same files, half a percent for validation and as many for test."""
    samples = tuple(
        replace(dataset.samples[number % len(dataset.samples)], id=f"{number:06}") for number in range(count)
    )
    species = {f"{number:06}": sample for number, sample in zip(range(count), dataset.samples * count, strict=False)}
    ids = tuple(sample.id for sample in samples)
    few = max(1, count // 200)
    splits = {"train": ids[2 * few :], "val": ids[:few], "test": ids[few : 2 * few]}
    read = dataset.read_label
    return replace(dataset, samples=samples, splits=splits, read_label=lambda sample: read(species[sample.id]))


def anonymous_mb() -> float:
    """Returns the process's resident memory that belongs to no file, in megabytes."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024 / 1e6


@contextmanager
def peak(stages: dict[str, int], stage: str) -> Iterator[None]:
    """Writes down the largest anonymous memory of the block, in megabytes."""
    done, largest = threading.Event(), [anonymous_mb()]

    def watch() -> None:
        while not done.wait(0.02):
            largest.append(max(largest.pop(), anonymous_mb()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        stages[stage] = round(largest[0])
        print(f"{stage}: {stages[stage]} MB", flush=True)


def progress(stage: str) -> Callable[..., None]:
    """Returns what prints each twentieth of a stage."""

    def show(stage: str, done: int, total: int, *rest: object) -> None:
        if done * 20 // total > (done - 1) * 20 // total:
            print(f"{stage} {done * 100 // total} %", file=sys.stderr, flush=True)

    return partial(show, stage)


def run() -> None:
    """Measures, writes, prints."""
    parser = arguments(__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="where the set is made, and removed after")
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES, help="of the prepared set")
    options = parser.parse_args()
    count = math.ceil(options.gigabytes * 1e9 / (4 * SIZE * SIZE))
    stages: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        os.environ["PETSEG_CACHE"] = f"{folder}/cache"
        dataset = repeated(open_dataset(make_pets(Path(folder) / "pets", per_breed=4, breeds=10)), count)
        config, hardware = load_recipe("default", SETTINGS).for_model("unet"), choose_hardware("fp32", "cpu")
        with peak(stages, "prepare"):
            prepared = prepare(dataset, SIZE, on_progress=progress("prepare"))
        size = sum(path.stat().st_size for path in prepared.folder.iterdir())
        splits = load_splits(prepared, config, hardware.device)
        with peak(stages, "train"):
            network = build_network(config.model, len(dataset.classes), hardware)
            Trainer(config, network, splits["train"]).epoch(1, "", progress("train"))
        with peak(stages, "evaluate"):
            evaluate(network, splits["test"], "test", progress("evaluate"))
    if options.out is not None:
        write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "peak anonymous memory, torch included: preparing, an epoch at 64 px, scoring",
                "command": "python benchmarks/large_data.py",
                "environment": hardware.environment().model_dump(),
                "limit_mb": LIMIT_MB,
                "size": SIZE,
                "images": count,
                "bytes": size,
                "settings": list(SETTINGS),
                "peak_mb": stages,
            },
        )


if __name__ == "__main__":
    main(run)
