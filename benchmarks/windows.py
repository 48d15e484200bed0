"""Windows over a photo of 6,000 x 4,000 pixels against the whole photo at once: differences, memory, time.

    python benchmarks/windows.py                                          # largest difference, peak memory
    python benchmarks/windows.py --out results/benchmarks/windows.json

The photo is a mosaic of synthetic pets. A U-Net of 4 channels and 2 levels is trained on crops of such pets, once
through. It sees the whole photo at once, and in windows, as `petseg predict` does. `petseg predict` itself is measured
with a shipped model. Each of the three has a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import arguments, main
from PIL import Image
from train_memory import peak_mb

from petseg import Segmenter, storage
from petseg.config import load_recipe
from petseg.data.cache import prepare
from petseg.data.dataset import UInt8
from petseg.data.geometry import Geometry
from petseg.data.sources import open_dataset
from petseg.data.synthetic import CATS, draw_pet, make_pets
from petseg.evaluation.evaluate import load_run
from petseg.training.device import choose_hardware
from petseg.training.inference import Network
from petseg.training.loop import Execution, train

SETTINGS = ("fit=crop", "data.size=256", "base_channels=4", "depth=2", "train.epochs=1", "train.batch_size=4")
SIDE, SIZE, SHIPPED = 256, (4000, 6000), "unet_small"
SEES = 32  # pixels that 2 levels of 2 convolutions of 3 x 3 see in each direction, at most
HARDWARE = choose_hardware("fp32", "cpu")


def mosaic() -> UInt8:
    """Returns synthetic pets side by side, [H, W, 3]."""
    cell = 400
    pets = [np.asarray(Image.fromarray(draw_pet(breed, 1, size=cell)[0]).resize((cell, cell))) for breed in CATS]
    down, across = (range(length // cell) for length in SIZE)
    return np.concatenate([np.concatenate([pets[(row + k) % len(pets)] for k in across], axis=1) for row in down])


def trained(scratch: Path) -> Path:
    """Returns the folder of a run on crops of synthetic pets."""
    config = load_recipe("default", SETTINGS).for_model("unet")
    pets = make_pets(scratch / "pets", per_breed=8, breeds=6, size=400)
    prepared = prepare(open_dataset(pets, config.data), Geometry.of(config.data))
    train(config, prepared, scratch / "run", Execution(hardware=HARDWARE))
    return scratch / "run"


def network_of(scratch: Path) -> Network:
    """Returns the trained network, ready to predict."""
    network = load_run(scratch / "run", HARDWARE).network
    network.module.eval()
    return network


def whole(scratch: Path) -> None:
    """Writes the probabilities of the whole photo, [C, H, W]."""
    image = np.array(Image.open(scratch / "photo.png"))
    with torch.inference_mode():
        np.save(scratch / "whole.npy", network_of(scratch).probabilities(image[None])[0])


def windows(scratch: Path) -> None:
    """Writes the probabilities in windows, [C, H, W], band by band: none of them stays in memory."""
    image, network = np.asarray(Image.open(scratch / "photo.png")), network_of(scratch)
    bands = Geometry(SIDE, "crop").bands(image, SIZE, network.probabilities)
    joined, top = np.lib.format.open_memmap(scratch / "windows.npy", "w+", np.float32, (3, *SIZE)), 0
    with torch.inference_mode():
        for band in bands:
            joined[:, top : top + band.shape[1]] = band
            top += band.shape[1]


def predict(scratch: Path) -> None:
    """Makes the class ids that `petseg predict --windows 0 --only classes` writes."""
    Segmenter(SHIPPED, threads=1, runtime="onnxruntime").using(windows=0)(scratch / "photo.png").class_ids.sum()


def differences(scratch: Path) -> dict[str, float]:
    """Returns how far windows are from the whole photo, everywhere and in their inner parts."""
    joined, reference = (np.load(scratch / f"{name}.npy", mmap_mode="r") for name in ("windows", "whole"))
    down, across = (_inner(length) for length in SIZE)
    largest = {True: 0.0, False: 0.0}
    other = 0
    for rows in np.split(np.arange(SIZE[0]), 40):
        part = slice(rows[0], rows[-1] + 1)
        difference = np.abs(joined[:, part] - reference[:, part]).max(axis=0)
        inner = down[part, None] & across
        for where in (True, False):
            largest[where] = max(largest[where], float(difference[inner == where].max(initial=0.0)))
        other += int((joined[:, part].argmax(axis=0) != reference[:, part].argmax(axis=0)).sum())
    return {
        "inner_share": float(down.mean() * across.mean()),
        "largest_inner": largest[True],
        "largest_elsewhere": largest[False],
        "other_class_share": other / (SIZE[0] * SIZE[1]),
    }


def _inner(length: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Returns where no window that covers a pixel has its edge as near as the network sees, [length]."""
    inner = np.ones(length, bool)
    for start in [*range(0, length - SIDE, SIDE // 2), length - SIDE]:
        for edge in (start, start + SIDE):
            if 0 < edge < length:
                inner[edge - SEES : edge + SEES] = False
    return inner


def run() -> None:
    """Measures, writes, prints."""
    torch.set_num_threads(1)
    measured = {"whole": whole, "windows": windows, "predict": predict}
    parser = arguments(__doc__)
    parser.add_argument("--one", choices=measured, help="measure this in this process")
    parser.add_argument("--scratch", type=Path, help="where that lies")
    options = parser.parse_args()
    if options.one:
        before, started = peak_mb(), time.perf_counter()
        measured[options.one](options.scratch)
        print(json.dumps({"seconds": round(time.perf_counter() - started, 1), "peak_mb": round(peak_mb() - before)}))
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        Image.fromarray(mosaic()).save(scratch / "photo.png", compress_level=1)
        trained(scratch)
        figures = {}
        for one in measured:
            command = [sys.executable, __file__, "--one", one, "--scratch", name]
            figures[one] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{one}: {figures[one]['seconds']} s, {figures[one]['peak_mb']} MB", flush=True)
        found = differences(scratch)
    print(f"largest difference of a probability {found['largest_inner']:.2g} in inner parts")
    if options.out is not None:
        storage.write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "windows over a photo of 6,000 x 4,000 pixels against the whole photo at once",
                "command": "python benchmarks/windows.py",
                "environment": HARDWARE.environment().model_dump(),
                "settings": SETTINGS,
                "height": SIZE[0],
                "width": SIZE[1],
                "window": SIDE,
                "sees": SEES,
                "shipped": SHIPPED,
                **figures,
                "differences": found,
            },
        )


if __name__ == "__main__":
    main(run)
