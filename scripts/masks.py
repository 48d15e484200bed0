"""Measures on validation what cleaning masks, mirrored photos and larger copies change; writes JSON for the documents.

python scripts/masks.py --model unet_base --maps FOLDER --out results/masks

`--maps` keeps probabilities, so that a stopped call goes on. Needs PETSEG_DATA and the extra dev.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from petseg import environment as machine
from petseg import metrics, storage
from petseg.cli.data import data_folder
from petseg.config import load_recipe
from petseg.data.dataset import Dataset, Merge, UInt8, scored_ids
from petseg.data.images import open_ids
from petseg.data.sources import open_dataset
from petseg.errors import PetsegError
from petseg.predict.clean import SMALL, Limits, cleaned, ids_of
from petseg.predict.enlarge import Floats, painted
from petseg.predict.photos import Photo
from petseg.predict.segmenter import Segmenter

NONE = (0.0, 0.0)
TRIED = (  # limits of pieces and holes: surrounded, then joined by a boundary class
    (NONE, NONE),
    ((0.02, 0.02), NONE),
    ((0.05, 0.05), NONE),
    ((0.1, 0.1), NONE),
    ((0.05, 0.05), (0.05, 0.05)),
    SMALL,
)
WAYS: dict[str, tuple[tuple[float, bool], ...]] = {  # option -> the views that are averaged: scale, mirrored
    "": ((1, False),),
    "--flip": ((1, False), (1, True)),
    "--scales 1,1.25": ((1, False), (1.25, False)),
    "--scales 1,1.25 --flip": ((1, False), (1, True), (1.25, False), (1.25, True)),
}
TURNS = 15


def views(segmenter: Segmenter, dataset: Dataset, scale: float, mirrored: bool, folder: Path) -> Floats:
    """Returns probabilities [N, C, h, w] of the validation images in one view, at the model's own size."""
    path = folder / f"{segmenter.name}_val_{scale:g}_{int(mirrored)}.npz"
    if not path.is_file():
        maps = []
        for name in dataset.splits["val"]:
            image = Photo(dataset.by_id[name].image).resized(segmenter.side(scale))[None]
            seen = segmenter.probabilities(np.ascontiguousarray(image[:, :, ::-1]) if mirrored else image)
            maps.append(segmenter.at_own_size(seen[..., ::-1] if mirrored else seen)[0].astype(np.float16))
        np.savez(path, maps=np.stack(maps))
        print(path.name, flush=True)
    with np.load(path) as kept:
        probabilities: Floats = kept["maps"]
    return probabilities


def costs(segmenter: Segmenter, dataset: Dataset) -> dict[str, float]:
    """Returns option -> processor time over that without options, the median of turns of one image each."""
    ratios: dict[str, list[float]] = {option: [] for option in WAYS}
    for name in dataset.splits["val"][:TURNS]:
        photo, took = Photo(dataset.by_id[name].image), {}
        for option, parts in WAYS.items():
            scales = list(dict.fromkeys(scale for scale, _ in parts))
            used = segmenter.using(flip=(1, True) in parts, scales=scales, zoom=False)
            started = time.thread_time()  # of this thread alone: the network takes one
            used.batch([photo])
            took[option] = time.thread_time() - started
        for option, seconds in took.items():
            ratios[option].append(seconds / took[""])
    return {option: statistics.median(values) for option, values in ratios.items()}


def mean_iou(maps: Floats, truths: Sequence[UInt8], dataset: Dataset) -> float:
    """Returns mIoU of the scored classes at each image's own size, of probabilities [N, C, h, w]."""
    assert dataset.merge is not None, "cat and dog are scored as pet"
    each = (confusion(probabilities, truth, dataset.merge) for probabilities, truth in zip(maps, truths, strict=True))
    return float(metrics.mean_iou(np.sum(list(each), axis=0)))


def confusion(probabilities: Floats, truth: UInt8, merge: Merge) -> metrics.Confusion:
    """Returns counts of the scored classes, truth in rows, of probabilities [C, h, w] at the size of a truth [H, W]."""
    merged = np.stack([probabilities[list(ids)].astype(np.float32).sum(axis=0) for ids in merge.members()])
    ids = painted(np.log(merged.clip(1e-7)), truth.shape, lambda window: window.argmax(axis=0).astype(np.uint8))
    return metrics.confusion_matrix(truth, ids, len(merged))


def cleaning(maps: Floats, truths: Sequence[UInt8], segmenter: Segmenter, small: Limits) -> dict[str, Any]:
    """Returns IoU of pet against background, without the truth's border, and stray pieces and false holes left."""
    roles = [ids_of(segmenter.classes, "foreground"), ids_of(segmenter.classes, "background")]
    hits = total = 0
    found = {"strays": 0, "with_strays": 0, "holes": 0, "with_holes": 0}
    for raw, truth in zip(maps, truths, strict=True):
        probabilities = cleaned(raw.astype(np.float32), segmenter.classes, small)
        inside, outside = (np.log(probabilities[ids].sum(axis=0).clip(1e-7)) for ids in roles)
        mask = painted((inside - outside)[None], truth.shape, lambda window: window[0] > 0) > 0
        counted = truth != 2
        hits += int((mask & (truth == 0) & counted).sum())
        total += int(((mask | (truth == 0)) & counted).sum())
        strays, holes = untouched(mask, truth != 1), untouched(~mask, truth == 1, enclosed=True)
        for kind, number in (("strays", strays), ("holes", holes)):
            found[kind] += number
            found[f"with_{kind}"] += number > 0
    return {"surrounded": small[0], "joined": small[1], "chosen": small == SMALL, "iou": hits / total, **found}


def untouched(where: Any, truth: Any, enclosed: bool = False) -> int:
    """Returns how many regions of `where` hold no pixel of `truth`; with `enclosed`, of those off the image's edge."""
    labels, count = ndimage.label(where)
    right = {*np.unique(labels[truth])}
    edge = {*labels[[0, -1]].ravel(), *labels[:, [0, -1]].ravel()} if enclosed else set()
    return sum(label not in right and label not in edge for label in range(1, count + 1))


def held(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what a file holds of each model, and in which environment each was measured."""
    content = storage.read_json(path) if path.is_file() else {"models": {}, "environments": {}}
    return content["models"], content["environments"]


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", required=True, help="a shipped model")
    parser.add_argument("--data", type=Path, help="the data set; default: PETSEG_DATA, then what was downloaded")
    parser.add_argument("--maps", type=Path, required=True, help="folder that keeps probabilities")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of cleaning.json, options.json; other models in them stay"
    )
    options = parser.parse_args()
    settings = ["data.oxford_pets.task=trimap_species"]
    dataset = open_dataset(data_folder(options.data), load_recipe("default", settings).for_model("unet").data)
    truths = [scored_ids(open_ids(dataset, dataset.by_id[name]), dataset.merge) for name in dataset.splits["val"]]
    files = [options.out / f"{title}.json" for title in ("cleaning", "options")]
    (clean, environments), (ways, _) = map(held, files)
    for name in options.model:
        segmenter = Segmenter(name, threads=1, runtime="onnxruntime")
        seen = {view: views(segmenter, dataset, *view, options.maps) for view in WAYS["--scales 1,1.25 --flip"]}
        maps, cost = seen[1, False], costs(segmenter, dataset)
        clean[name] = [cleaning(maps, truths, segmenter, small) for small in TRIED]
        ways[name] = [
            {
                "option": option,
                "sides": sorted({segmenter.side(scale) for scale, _ in parts}),
                "miou": mean_iou(np.mean([seen[part] for part in parts], axis=0, dtype=np.float32), truths, dataset),
                "cost": cost[option],
            }
            for option, parts in WAYS.items()
        ]
        environments[name] = machine.environment(device="cpu", precision="fp32", threads=1)
        print(name, clean[name], ways[name], sep="\n", flush=True)
    for path, models in zip(files, (clean, ways), strict=True):
        content = {"kind": path.stem, "split": "val", "images": len(truths)}
        storage.write_json(path, content | {"environments": environments, "models": models})


if __name__ == "__main__":
    try:
        main()
    except PetsegError as error:
        sys.exit(str(error))
