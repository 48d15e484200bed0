"""Training on two processes of one thread each (torchrun, Gloo) against one process of two threads.

    python benchmarks/ddp_speed.py                                          # images a second of each, and the ratio
    python benchmarks/ddp_speed.py --out results/benchmarks/ddp_speed.json

Each turn trains in processes of its own; the last epoch's seconds count, without validation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from measuring import arguments, data_folder, finish, main, prepared, ratio, take_turns, train_speed

from petseg.config import load_recipe
from petseg.training.device import choose_hardware

CONTENDERS = {"two processes": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"), "one": ()}
WANTED = 0.85


def speed(name: str, folder: Path, settings: list[str]) -> float:
    """Returns the training images a second of a contender's last epoch."""
    threads = "1" if CONTENDERS[name] else "2"
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        words = ["train", "--data", str(folder), "--out", str(run), "--device", "cpu", "--threads", threads]
        words += [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, *CONTENDERS[name], "-m", "petseg", *words]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": threads})
        return train_speed(run)


def run() -> None:
    """Measures, writes, prints."""
    parser = arguments(__doc__)
    parser.add_argument("--set", action="append", default=["epochs=2", "data.fraction=0.25"], help="of the recipe")
    options = parser.parse_args()
    folder = data_folder(options.data)
    config = load_recipe("default", options.set).for_model("unet")
    prepared(folder, config)
    found = take_turns({name: partial(speed, name, folder, options.set) for name in CONTENDERS}, options.turns)
    hardware = choose_hardware(config.train.precision, "cpu")
    result = {
        "kind": "benchmark",
        "what": "images a second of training, two processes of one thread each over one process of two threads",
        "command": "python benchmarks/ddp_speed.py",
        "environment": hardware.environment().model_dump() | {"threads": 2},
        "turns": options.turns,
        "settings": options.set,
        "side": config.data.size,
        "batch": config.train.batch_size,
        "wanted": WANTED,
        "images_per_second": found,
        "ratio": ratio(found["two processes"], found["one"]),
    }
    finish(options.out, result, f"two processes do {{ratio:.2f}} of the images a second of one; wanted {WANTED}")


if __name__ == "__main__":
    main(run)
