"""Packs what travels to a machine with a GPU and back, as tar files of few megabytes.

python scripts/pack.py --data FOLDER --out pets.tar    # trainval's images of at most 256 px, trimaps and lists
python scripts/pack.py --run RUN --out unet.tar        # a run with its best weights, large tensors in fp16
"""

import argparse
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save

from petseg.data.oxford_pets import read_contents
from petseg.training.checkpoint import BEST
from petseg.training.runs import NETWORK, PLACE

FP16_FROM = 40_000  # values from which a tensor loses nothing that counts in fp16, as in exported files
LISTS = ("list.txt", "trainval.txt", "test.txt")


def reduced(path: Path, side: int, **options: int) -> bytes:
    """Returns an image or a trimap with a longer side of at most `side` pixels, as PNG or WebP."""
    with Image.open(path) as opened:
        trimap = opened.format == "PNG"
        image = opened.copy() if trimap else opened.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.NEAREST if trimap else Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "PNG" if trimap else "WEBP", **options)  # it is read by content, whatever its name
    return stream.getvalue()


def images(folder: Path, side: int) -> Iterator[tuple[str, bytes]]:
    """Yields (path, content) of a data folder with the pairs that trainval.txt lists, and the lists."""
    contents = read_contents(folder)
    for sample in contents.samples:
        if contents.listed[sample.id] == "trainval":
            yield str(sample.image.relative_to(folder)), reduced(sample.image, side, quality=80)
            yield str(sample.label.relative_to(folder)), reduced(sample.label, side)
    for name in LISTS:
        yield f"annotations/{name}", (folder / "annotations" / name).read_bytes()


def run_files(run: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (path, content) of a run folder: its records, evaluations and best weights."""
    for path in sorted(
        {*run.glob("*.json"), *run.glob("*.jsonl"), *run.glob("evaluations/*")} - {run / PLACE, run / NETWORK}
    ):
        yield f"{run.name}/{path.relative_to(run)}", path.read_bytes()
    with safe_open(run / BEST, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        halves = {name: each.astype(np.float16) if each.size >= FP16_FROM else each for name, each in tensors.items()}
        yield f"{run.name}/{BEST}", save(halves, file.metadata())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", type=Path, help="folder with images/ and annotations/")
    what.add_argument("--run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="tar file")
    parser.add_argument("--side", type=int, default=256, help="longer side of the images in pixels")
    given = parser.parse_args()
    with tarfile.open(given.out, "w") as tar:
        for name, content in images(given.data, given.side) if given.data else run_files(given.run):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    print(f"{given.out}: {given.out.stat().st_size / 2**20:.1f} MiB")
