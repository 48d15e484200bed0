"""Windows of a 6,000 x 4,000 photo against the whole photo at once, the memory of each, and what windows are good for.

    python benchmarks/windows.py                                          # differences, peak memory, mIoU
    python benchmarks/windows.py --out results/benchmarks/windows.json

The photo is a mosaic of pets. A U-Net of 4 channels and 2 levels, which sees 26 pixels in each direction, is trained on
crops for a minute. The whole photo at once is torch's, the windows are those of `petseg predict`, each in a process of
its own. Then shipped models, which were trained on whole photos, look at validation photos and at mosaics of 4 x 4 of
them: at once, and in windows in which a pet has about the size that it had in training.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measuring import arguments, data_folder, main
from PIL import Image

from petseg import Segmenter, storage
from petseg.config import load_recipe
from petseg.data.cache import Prepared, prepare
from petseg.data.dataset import Dataset, Sample, UInt8, scored_ids
from petseg.data.geometry import Geometry
from petseg.data.images import open_sample
from petseg.data.sources import open_dataset
from petseg.metrics import confusion_matrix, mean_iou

SETTINGS = ("fit=crop", "data.size=256", "fraction=0.05", "base_channels=4", "depth=2", "train.epochs=1")
SIDE, SIZE = 256, (4000, 6000)
SEES = 26  # pixels in each direction, of 2 levels with 2 convolutions of 3 x 3 each
MODELS, PHOTOS, ACROSS = ("unet_base", "segnet_base"), 64, 4


def peak_mb() -> float:
    """Returns the process's largest resident memory so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def trained(folder: Path, run: Path) -> Prepared:
    """Returns the prepared dataset after training the network on crops into the folder `run`."""
    from petseg.training.device import choose_hardware
    from petseg.training.loop import Execution, train

    config = load_recipe("default", SETTINGS).for_model("unet")
    prepared = prepare(open_dataset(folder, config.data), Geometry.of(config.data))
    train(config, prepared, run, Execution(hardware=choose_hardware("fp32", "cpu")))
    return prepared


def mosaic(images: Sequence[UInt8], size: tuple[int, int]) -> UInt8:
    """Returns images side by side, each cut or repeated to a cell of 250 x 250, until they fill a size."""
    cell = 250
    across = -(-size[1] // cell)
    cells = [np.tile(image, (4, 4, 1))[:cell, :cell] for image in images[: across * -(-size[0] // cell)]]
    rows = [np.concatenate(cells[start : start + across], axis=1) for start in range(0, len(cells), across)]
    return np.concatenate(rows)[: size[0], : size[1]]


def whole(photo: Path, run: Path, out: Path) -> None:
    """Writes torch's probabilities of the whole photo, [3, H, W]."""
    import torch

    from petseg.evaluation.evaluate import load_run
    from petseg.training.device import choose_hardware

    network = load_run(run, choose_hardware("fp32", "cpu")).network
    network.module.eval()
    before = peak_mb()
    started = time.perf_counter()
    with torch.inference_mode():
        np.save(out, network.probabilities(np.asarray(Image.open(photo))[None])[0])
    print(json.dumps({"seconds": round(time.perf_counter() - started, 1), "peak_mb": round(peak_mb() - before)}))


def windows(photo: Path, run: Path, out: Path) -> None:
    """Writes the class ids [H, W] that `petseg predict` gives."""
    segmenter = Segmenter(run / "model.onnx", threads=1, runtime="onnxruntime")
    before = peak_mb()
    started = time.perf_counter()
    np.save(out, segmenter(photo).class_ids)
    print(json.dumps({"seconds": round(time.perf_counter() - started, 1), "peak_mb": round(peak_mb() - before)}))


def differences(photo: Path, run: Path, scratch: Path) -> dict[str, float]:
    """Returns how far windows are from the whole photo, in their inner parts and everywhere."""
    reference, ids = np.load(scratch / "whole.npy", mmap_mode="r"), np.load(scratch / "windows.npy")
    segmenter = Segmenter(run / "model.onnx", threads=1, runtime="onnxruntime")
    geometry, image = segmenter.geometry, np.asarray(Image.open(photo))
    inner_at = [_inner(length) for length in SIZE]
    largest = {"inner": 0.0, "all": 0.0}
    top = 0
    for band in geometry.bands(image, SIZE, segmenter.probabilities):
        rows = slice(top, top + band.shape[1])
        difference = np.abs(band - reference[:, rows]).max(axis=0)
        inner = inner_at[0][rows, None] & inner_at[1]
        largest["all"] = max(largest["all"], float(difference.max()))
        largest["inner"] = max(largest["inner"], float(difference[inner].max(initial=0.0)))
        top = rows.stop
    other = ids != reference.argmax(axis=0)
    return {
        "inner_share": round(float(inner_at[0].mean() * inner_at[1].mean()), 4),
        "inner_largest_difference": largest["inner"],
        "largest_difference": round(largest["all"], 4),
        "other_class_share": float(other.mean()),
        "other_class_share_inner": float(other[inner_at[0][:, None] & inner_at[1]].mean()),
    }


def _inner(length: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Returns where no window that covers a pixel has its edge as near as the network sees, [length]."""
    inner = np.ones(length, bool)
    for start in [*range(0, length - SIDE, SIDE // 2), length - SIDE]:
        for edge in (start, start + SIDE):
            if 0 < edge < length:
                inner[edge - SEES : edge + SEES] = False
    return inner


def shipped(dataset: Dataset) -> dict[str, dict[str, float]]:
    """Returns each shipped model's mIoU of photos and of mosaics, at once and in windows."""
    samples = [dataset.by_id[name] for name in dataset.splits["val"]]
    samples = samples[:: max(1, len(samples) // PHOTOS)][:PHOTOS]
    opened = [_opened(dataset, sample) for sample in samples]
    side = max(max(ids.shape) for _, ids in opened)
    mosaics = [_mosaic(opened[start : start + ACROSS**2], side) for start in range(0, PHOTOS, ACROSS**2)]
    found = {}
    for name in MODELS:
        at_once = Segmenter(name)
        # in training a photo was a square of the model's size
        views = {
            "at_once": (at_once, at_once),
            "in_windows": tuple(_windowed(name, at_once.size, k) for k in (2, ACROSS)),
        }
        for view, segmenters in views.items():
            for kind, segmenter, images in zip(("photos", "mosaics"), segmenters, (opened, mosaics), strict=True):
                total = sum(
                    confusion_matrix(ids, scored_ids(segmenter(image).class_ids, dataset.merge), 3)
                    for image, ids in images
                )
                found.setdefault(name, {})[f"{kind}_{view}"] = round(float(mean_iou(total)), 4)
                print(f"{name} {kind} {view}: mIoU {100 * found[name][f'{kind}_{view}']:.1f}", flush=True)
    return found


def _windowed(name: str, size: int, across: int) -> Segmenter:
    return Segmenter(name).using(windows=size * across)


def _opened(dataset: Dataset, sample: Sample) -> tuple[UInt8, UInt8]:
    labelled = open_sample(dataset, sample)
    return np.asarray(labelled.image), scored_ids(labelled.ids, dataset.merge)


def _mosaic(opened: Sequence[tuple[UInt8, UInt8]], side: int) -> tuple[UInt8, UInt8]:
    """Returns images and labels in a square of 4 x 4 cells, the rest white and ignored."""
    image = np.full((ACROSS * side, ACROSS * side, 3), 255, np.uint8)
    ids = np.full((ACROSS * side, ACROSS * side), 255, np.uint8)
    for place, (one, label) in enumerate(opened):
        top, left = (side * part for part in divmod(place, ACROSS))
        image[top : top + label.shape[0], left : left + label.shape[1]] = one
        ids[top : top + label.shape[0], left : left + label.shape[1]] = label
    return image, ids


def run() -> None:
    """Measures, writes, prints."""
    parser = arguments(__doc__)
    parser.add_argument("--one", choices=("whole", "windows"), help="measure this in this process")
    parser.add_argument("--scratch", type=Path, help="where that lies")
    options = parser.parse_args()
    if options.one:
        photo, place = options.scratch / "photo.png", options.scratch / "run"
        {"whole": whole, "windows": windows}[options.one](photo, place, options.scratch / f"{options.one}.npy")
        return
    folder = data_folder(options.data)
    from petseg.export.onnx import export_run
    from petseg.training.device import choose_hardware

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        prepared = trained(folder, scratch / "run")
        export_run(scratch / "run", scratch / "run" / "model.onnx", fp16=False)
        rows = np.linspace(0, len(prepared.samples) - 1, 400).astype(int)
        Image.fromarray(mosaic([prepared.image(row) for row in rows], SIZE)).save(
            scratch / "photo.png", compress_level=1
        )
        figures = {}
        for one in ("whole", "windows"):
            command = [sys.executable, __file__, "--one", one, "--scratch", name]
            figures[one] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{one}: {figures[one]['seconds']} s, {figures[one]['peak_mb']} MB", flush=True)
        found = differences(scratch / "photo.png", scratch / "run", scratch)
        print(json.dumps(found), flush=True)
    dataset = open_dataset(folder, load_recipe("default", ["task=trimap_species"]).data)
    models = shipped(dataset)
    if options.out is not None:
        storage.write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "windows of 256 px over a photo of 6,000 x 4,000 pixels against the whole photo at once",
                "command": "python benchmarks/windows.py",
                "environment": choose_hardware("fp32", "cpu").environment().model_dump(),
                "settings": SETTINGS,
                "size": {"height": SIZE[0], "width": SIZE[1], "window": SIDE, "sees": SEES},
                **figures,
                "differences": found,
                "shipped": {"photos": PHOTOS, "across": ACROSS, "models": models},
            },
        )


if __name__ == "__main__":
    main(run)
