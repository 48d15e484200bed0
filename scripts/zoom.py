"""Measures on validation what a second, closer look changes; writes JSON for the documents.

python scripts/zoom.py --model unet_lite2 --out results/masks/zoom.json

Each image as it is; reduced in its middle, as `petseg robustness` reduces it; and with all of its pixels in the middle
of a larger one, as a pet far away in a photo of many pixels. The card of a model that loses nothing on images as they
are says so, and the model looks closer by itself from then on. Needs PETSEG_DATA.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from masks import confusion, held
from PIL import Image

from petseg import environment as machine
from petseg import metrics, storage
from petseg.cli.data import data_folder
from petseg.config import load_recipe
from petseg.data.dataset import IGNORE, Dataset, UInt8, scored_ids
from petseg.data.images import open_ids
from petseg.data.sources import open_dataset
from petseg.errors import PetsegError
from petseg.evaluation.corruptions import KINDS, Corruption, in_the_middle, mean_colour
from petseg.predict.photos import Photo
from petseg.predict.segmenter import Segmenter
from petseg.shipped import WEIGHTS

AMOUNTS = KINDS["small"].amounts[1:]  # what is left of each side
SAME = 0.001  # of mIoU: less is no loss
TURNS = 15  # images whose time is measured


def cases(image: UInt8, truth: UInt8, name: str) -> Iterator[tuple[str, UInt8, UInt8]]:
    """Yields what is done to an image [H, W, 3], and it and its class ids [H, W] so changed; 255 where nothing is."""
    yield "as it is", image, truth
    for severity, amount in enumerate(AMOUNTS, start=2):
        small = Corruption("small", severity)
        yield f"reduced to {amount:g}", small.image(image, name), small.truth(truth, name)
    for amount in AMOUNTS:
        size = round(truth.shape[1] / amount), round(truth.shape[0] / amount)
        far = in_the_middle(Image.fromarray(image), size, mean_colour(image))
        yield f"far away, {amount:g}", far, in_the_middle(Image.fromarray(truth), size, IGNORE)


def measured(segmenter: Segmenter, dataset: Dataset) -> list[dict[str, Any]]:
    """Returns for each case mIoU after one look and two, how many images are looked at twice, and what that costs."""
    assert dataset.merge is not None, "cat and dog are scored as pet"
    once, twice = (segmenter.using(zoom=zoom) for zoom in (False, True))
    sums: dict[str, Any] = defaultdict(lambda: np.zeros((2, 3, 3), np.int64))
    looked, costs = defaultdict[str, int](int), defaultdict[str, list[float]](list)
    names = dataset.splits["val"]
    for done, name in enumerate(names):
        sample = dataset.by_id[name]
        truth = scored_ids(open_ids(dataset, sample), dataset.merge)
        for case, image, labels in cases(np.asarray(Photo(sample.image).whole()), truth, name):
            took = []
            for row, used in enumerate((once, twice)):
                started = time.thread_time()  # of this thread alone: the network takes one
                result = used(image)
                took.append(time.thread_time() - started)
                sums[case][row] += confusion(result.probabilities, labels, dataset.merge)
            again = max(result.probabilities.shape[1:]) > segmenter.size
            looked[case] += again
            if again and len(costs[case]) < TURNS:
                costs[case].append(took[1] / took[0])
        if done % 50 == 49:
            print(segmenter.name, done + 1, "of", len(names), file=sys.stderr, flush=True)
    return [
        {
            "case": case,
            "one_look": float(metrics.mean_iou(one)),
            "two_looks": float(metrics.mean_iou(two)),
            "looked_at_twice": looked[case] / len(names),
            "cost": statistics.median(costs[case] or [1.0]),
        }
        for case, (one, two) in sums.items()
    ]


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", required=True, help="a shipped model")
    parser.add_argument("--data", type=Path, help="the data set; default: PETSEG_DATA, then what was downloaded")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write; other models in it stay")
    options = parser.parse_args()
    settings = ["data.oxford_pets.task=trimap_species"]
    dataset = open_dataset(data_folder(options.data), load_recipe("default", settings).for_model("unet").data)
    models, environments = held(options.out)
    for name in options.model:
        models[name] = measured(Segmenter(name, threads=1, runtime="onnxruntime"), dataset)
        environments[name] = machine.environment(device="cpu", precision="fp32", threads=1)
        content = {"kind": "zoom", "split": "val", "images": len(dataset.splits["val"]), "data": dataset.provenance}
        storage.write_json(options.out, content | {"environments": environments, "models": models})
        as_it_is = models[name][0]
        card = Path(str(WEIGHTS)) / f"{name}.json"
        zoom = as_it_is["two_looks"] > as_it_is["one_look"] - SAME
        storage.write_json(card, {**storage.read_json(card), "zoom": zoom})
        print(name, *models[name], sep="\n", flush=True)


if __name__ == "__main__":
    try:
        main()
    except PetsegError as error:
        sys.exit(str(error))
