"""From a photo to the mask: one photo, a whole folder, each on all cores.

    python benchmarks/predict_speed.py --out results/benchmarks/predict_speed.json

One photo goes from decoded, 256 px a side, to its mask. A folder of photos is decoded, resized, predicted and written
as masks; the model alone gets the same images decoded and resized, in as many threads, taking turns with it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ratio, take_turns
from PIL import Image
from serve_speed import cats

from petseg.cores import core_count
from petseg.environment import environment
from petseg.predict.outputs import WORKERS, plan, predict_jobs
from petseg.predict.photos import Photo
from petseg.predict.segmenter import Segmenter
from petseg.shipped import DEFAULT, shipped_models
from petseg.storage import write_json

SIDE = 256

FOLDERS = {"500_px": (100, (500, 333)), "12_megapixels": (20, (4000, 3000))}
"""Photos in each, and their width and height."""

IN_FOLDERS = (DEFAULT, "unet_small")
"""The model that is used where none is named, and one that leaves less time to hide the rest in."""


def one_photo(segmenter: Segmenter, image: np.ndarray, repeats: int) -> float:
    """Returns photos a second, one after the other, from a decoded photo to its mask."""
    segmenter(image)
    started = time.perf_counter()
    for _ in range(repeats):
        segmenter(image).mask  # noqa: B018 - computed when asked for
    return repeats / (time.perf_counter() - started)


def make_folder(folder: Path, number: int, size: tuple[int, int]) -> list[bytes]:
    """Returns the files of a new folder: JPEGs of a cat, each cropped a little differently."""
    folder.mkdir()
    photos = []
    for place, photo in enumerate(cats(number, 451)):
        with Image.open(BytesIO(photo)) as image:
            file = folder / f"{place:03}.jpg"
            image.resize(size, Image.Resampling.BICUBIC).save(file, quality=90)
        photos.append(file.read_bytes())
    return photos


def whole_folder(segmenter: Segmenter, photos: Path, out: Path) -> float:
    """Returns photos a second, from files to masks in files."""
    jobs, _ = plan([photos], ("mask",), out)
    started = time.perf_counter()
    outcomes = list(predict_jobs(segmenter, jobs))
    taken = time.perf_counter() - started
    assert all(outcome.error is None for outcome in outcomes)
    return len(jobs) / taken


def model_alone(segmenter: Segmenter, images: list[np.ndarray]) -> float:
    """Returns images a second of the network alone, in as many threads as a folder gets."""
    with ThreadPoolExecutor(WORKERS) as pool:
        started = time.perf_counter()
        list(pool.map(segmenter.probabilities, images))
        return len(images) / (time.perf_counter() - started)


def measure_folders(scratch: Path, runtimes: list[str], turns: int) -> list[dict[str, Any]]:
    """Returns photos a second of folders, from files to masks in files, beside the model alone."""
    folders: list[dict[str, Any]] = []
    for kind, (number, size) in FOLDERS.items():
        many = scratch / kind
        photos = make_folder(many, number, size)
        contenders = {}
        for name, runtime in product(IN_FOLDERS, runtimes):
            segmenter = Segmenter(name, threads=1, runtime=runtime)
            images = [np.asarray(Photo(photo).resized(segmenter.geometry))[None] for photo in photos]
            out = scratch / "out" / kind / name / runtime
            contenders[f"{name} {runtime}"] = partial(whole_folder, segmenter, many, out)
            contenders[f"{name} {runtime} alone"] = partial(model_alone, segmenter, images)
        rates = take_turns(contenders, turns)
        for name, runtime in product(IN_FOLDERS, runtimes):
            files, alone = rates[f"{name} {runtime}"], rates[f"{name} {runtime} alone"]
            folders.append(
                {
                    "model": name,
                    "runtime": runtime,
                    "photos": number,
                    "width": size[0],
                    "height": size[1],
                    "photos_per_second": statistics.median(files),
                    "model_alone": statistics.median(alone),
                    "of_model_alone": ratio(files, alone),
                }
            )
    return folders


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime", action="append", help="onnxruntime or openvino; default: both where at hand")
    parser.add_argument("--turns", type=int, default=7, help="how often each is measured")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    runtimes = options.runtime or ["onnxruntime", "openvino"]
    names = shipped_models()
    with tempfile.TemporaryDirectory() as scratch:
        with Image.open(BytesIO(cats(1, 451)[0])) as image:
            pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE)))
        contenders: dict[str, Callable[[], float]] = {}
        for name in names:
            for runtime in runtimes:
                segmenter = Segmenter(name, runtime=runtime)
                contenders[f"{name} {runtime}"] = partial(one_photo, segmenter, pixels, 30)
        one = take_turns(contenders, options.turns)
        folders = measure_folders(Path(scratch), runtimes, options.turns)
    result = {
        "kind": "benchmark",
        "what": "one photo from decoded to mask, and a folder of photos beside the model alone",
        "command": "python benchmarks/predict_speed.py",
        "environment": environment(device="cpu", precision="as listed", threads=core_count()),
        "turns": options.turns,
        "default_model": DEFAULT,
        "one_photo": {
            "side": SIDE,
            "photos_per_second": {
                name: {"median": statistics.median(found), "low": min(found), "high": max(found)}
                for name, found in one.items()
            },
        },
        "workers": WORKERS,
        "folders": folders,
    }
    for name, rate in result["one_photo"]["photos_per_second"].items():
        print(f"{name}: {rate['median']:.0f} photos a second")
    for row in folders:
        print(f"{row['width']} px, {row['model']} {row['runtime']}: folder / model alone: {row['of_model_alone']}")
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
