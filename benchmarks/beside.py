"""Training and prediction beside a busy single-threaded process, against alone: what is left of images a second.

    python benchmarks/beside.py                                       # what is kept, by default and as 0.1 did it
    python benchmarks/beside.py --out results/benchmarks/beside.json

Each figure is of a process of its own: the last of two epochs of recipe `default`, and a folder of photos to masks, the
loading of the model included. "before" is 0.1's way of training: as many threads as cores, spinning at barriers;
prediction of a folder computes alike in both, so it is measured once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from measuring import arguments, data_folder, finish, main, prepared, ratio, take_turns, train_speed
from serve_speed import cats

from petseg.config import load_recipe
from petseg.threads import PATIENCE
from petseg.training.device import choose_hardware

WANTED = 0.45
SETTINGS = ["epochs=2", "data.fraction=0.25"]
BEFORE = ["epochs=2", "data.fraction=0.05"]  # six images a second beside other work, on two cores with AMX
SPINNING = {"PETSEG_THREADS": str(os.cpu_count()), "GOMP_SPINCOUNT": "300000"}  # what libgomp does untold


@contextmanager
def busy() -> Iterator[None]:
    """Keeps one core busy for the block."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1)
        yield
    finally:
        process.kill()
        process.wait()


def petseg(*words: object, before: bool = False) -> None:
    """Runs a command of petseg, quietly, by its own defaults or as `before`."""
    environment = {name: value for name, value in os.environ.items() if name not in {*PATIENCE, *SPINNING}}
    command = [sys.executable, "-m", "petseg", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True, env=environment | (SPINNING if before else {}))


def train(folder: Path, *, before: bool) -> float:
    """Returns the training images a second of the last epoch."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        settings = [word for setting in (BEFORE if before else SETTINGS) for word in ("--set", setting)]
        petseg("train", "--data", folder, "--out", run, "--device", "cpu", *settings, before=before)
        return train_speed(run)


def predict(photos: Path) -> float:
    """Returns the photos a second of a folder to masks."""
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        petseg("predict", photos, "--out", Path(scratch) / "out", "--only", "mask")
        return len(list(photos.iterdir())) / (time.perf_counter() - started)


def run() -> None:
    """Measures, writes, prints."""
    parser = arguments(__doc__)
    parser.add_argument("--photos", type=int, default=300)
    options = parser.parse_args()
    folder = data_folder(options.data)
    config = load_recipe("default", SETTINGS).for_model("unet")
    prepared(folder, config)
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch)
        for place, photo in enumerate(cats(100, 451) * (options.photos // 100)):
            (photos / f"{place:04}.jpg").write_bytes(photo)

        def measured(measure: Callable[[], float], where: str) -> float:
            with busy() if where == "beside" else nullcontext():
                return measure()

        measures: dict[tuple[str, str], Callable[[], float]] = {
            ("training", "before"): partial(train, folder, before=True),
            ("training", "now"): partial(train, folder, before=False),
            ("prediction", "now"): partial(predict, photos),
        }
        contenders = {
            f"{title}, {how}, {where}": partial(measured, measure, where)
            for (title, how), measure in measures.items()
            for where in ("alone", "beside")
        }
        found = take_turns(contenders, options.turns)
    rows = [
        {"title": title, "how": how, "kept": ratio(found[f"{title}, {how}, beside"], found[f"{title}, {how}, alone"])}
        for title, how in measures
    ]
    result = {
        "kind": "benchmark",
        "what": "images a second beside a busy process, over those alone",
        "command": "python benchmarks/beside.py",
        "environment": choose_hardware(config.train.precision, "cpu").environment().model_dump()
        | {"threads": os.cpu_count()},
        "turns": options.turns,
        "settings": {"before": BEFORE, "now": SETTINGS},
        "photos": options.photos,
        "wanted": WANTED,
        "images_per_second": found,
        "rows": rows,
        "ratio": rows[1]["kept"],
    }
    finish(options.out, result, f"training keeps {{ratio:.2f}} of its images a second; wanted {WANTED}")


if __name__ == "__main__":
    main(run)
