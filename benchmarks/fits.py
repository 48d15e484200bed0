"""Scores of `data.fit` square, pad and crop on a dataset's validation images, after training on equally many pixels.

    python benchmarks/fits.py --data ../shared/camvid --set "ignore=[11]"               # mIoU of each
    python benchmarks/fits.py --data ../shared/camvid --set "ignore=[11]" --out results/benchmarks/fits.json

Each trains U-Net of 8 channels at 96 px, one seed, until it has seen about as many squares of that size; the last
weights are scored at each image's own size. They train at once, on one thread each.
"""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import arguments, data_folder, main

from petseg import storage
from petseg.config import load_recipe
from petseg.data.cache import prepare
from petseg.data.geometry import Geometry
from petseg.data.sources import open_dataset
from petseg.evaluation.evaluate import evaluate_run
from petseg.experiments.executor import LocalProcesses
from petseg.training.batches import load_splits
from petseg.training.device import choose_hardware
from petseg.training.loop import Execution, train

SETTINGS = ("data.size=96", "model.base_channels=8", "train.batch_size=8", "train.seed=0")
ARMS = {  # name -> title and settings
    "square": ("square", ("fit=square",)),
    "pad": ("pad", ("fit=pad",)),
    "crop-half": ("crop, reduced to 240 px", ("fit=crop", "reduce_to=240")),
    "crop": ("crop, own size", ("fit=crop",)),
}


def arm(name: str, folder: Path, settings: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Returns the scores of one arm, trained on one thread, and what the data and the machine are."""
    torch.set_num_threads(1)
    title, own = ARMS[name]
    settings, hardware = (*SETTINGS, *settings, *own), choose_hardware("fp32", "cpu")
    config = load_recipe("default", settings).for_model("unet")
    dataset = open_dataset(folder, config.data)
    # without a test split, so that the last weights are scored: the arms have different numbers of epochs
    dataset = replace(dataset, splits={part: dataset.splits[part] for part in ("train", "val")})
    prepared = prepare(dataset, Geometry.of(config.data))
    splits = load_splits(prepared, config, hardware.device)
    images, squares = len(splits["train"].rows), len(splits["train"].epoch_rows)
    epochs = max(1, round(rounds * images / squares))
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "run"
        train(config, prepared, place, Execution(hardware=hardware, splits=splits))
        scores = evaluate_run(place, hardware, splits, "val").scores
    print(f"{title:<26} mIoU {100 * scores.miou:.1f}, {epochs} epochs, {epochs * squares} squares", flush=True)
    return {
        "arm": {
            "title": title,
            "settings": settings,
            "epochs": epochs,
            "squares": epochs * squares,
            "scores": scores.model_dump(mode="json"),
        },
        "data": {"name": dataset.name, "provenance": dataset.provenance, "train_images": images},
        "environment": hardware.environment().model_dump(),
    }


def run() -> None:
    """Trains, scores, writes, prints."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="squares that each training image is seen as, about")
    parser.add_argument("--set", action="append", default=[], help="further settings, for all")
    options = parser.parse_args()
    folder = data_folder(options.data)
    with LocalProcesses(len(ARMS)) as pool:
        jobs = {name: pool.submit(arm, name, folder, tuple(options.set), options.rounds) for name in ARMS}
        found = {name: job.result() for name, job in jobs.items()}
    if options.out is not None:
        changes = [word for setting in options.set for word in ("--set", setting)]
        storage.write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "validation scores of each data.fit, one seed, U-Net of 8 channels at 96 px",
                "command": shlex.join(["python", "benchmarks/fits.py", "--data", str(options.data), *changes]),
                "environment": found["square"]["environment"],
                "data": found["square"]["data"],
                "arms": {name: one["arm"] for name, one in found.items()},
            },
        )


if __name__ == "__main__":
    main(run)
