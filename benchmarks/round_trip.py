"""The dataset written in each format and read back: how many labels are the same, and each class's IoU.

    python benchmarks/round_trip.py --out results/formats/round_trip.json
    python benchmarks/round_trip.py --every 20    # a part of each split

Indexed masks are trained on as well, beside the dataset itself: the losses are the same or the figures differ.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import arguments, data_folder, main

from petseg import storage
from petseg.config import RunConfig, load_recipe
from petseg.data.cache import prepare
from petseg.data.dataset import IGNORE, Dataset
from petseg.data.formats.convert import FORMATS, convert
from petseg.data.geometry import Geometry
from petseg.data.images import open_ids, outcomes
from petseg.data.sources import open_as_given, open_dataset
from petseg.environment import environment
from petseg.training.device import choose_hardware
from petseg.training.loop import Execution, train
from petseg.training.runs import read_metrics

POLYGONS = ("coco", "cvat")  # formats that are written in two ways; LabelMe's files hold polygons alone
SETTINGS = ("data.size=64", "model.base_channels=8", "epochs=2", "train.precision=fp32")


def compared(dataset: Dataset, back: Dataset) -> dict[str, Any]:
    """Returns how the labels of `back` agree with those of the dataset, over its splits' images."""
    assert [each.name for each in back.classes] == [each.name for each in dataset.classes]
    assert back.splits == dataset.splits, "splits are kept"
    names = [each.name for each in dataset.classes]
    both, either, same = np.zeros(len(names), int), np.zeros(len(names), int), 0

    def labels(sample: Any) -> Any:
        return open_ids(dataset, dataset.by_id[sample.id]), open_ids(back, sample)

    for _, pair in outcomes(labels, back.samples):
        assert not isinstance(pair, str), pair
        same += bool(np.array_equal(*pair))
        first, second = (np.bincount(ids.ravel(), minlength=IGNORE + 1)[: len(names)] for ids in pair)
        agreed = np.bincount(pair[0][pair[0] == pair[1]], minlength=IGNORE + 1)[: len(names)]
        both, either = both + agreed, either + first + second - agreed
    return {"images": len(back.samples), "same": same, "iou": dict(zip(names, (both / either).tolist(), strict=True))}


def losses(dataset: Dataset, config: RunConfig) -> list[list[float]]:
    """Returns train and validation loss of each epoch."""
    prepared = prepare(dataset, Geometry.of(config.data))
    with tempfile.TemporaryDirectory() as run:
        train(config, prepared, Path(run) / "run", Execution(hardware=choose_hardware("fp32", "cpu")))
        return [[row.train_loss, row.val_loss] for row in read_metrics(Path(run) / "run")]


def run() -> None:
    """Measures, writes, prints."""
    parser = arguments(__doc__)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth image of each split")
    options = parser.parse_args()
    config = load_recipe("default", SETTINGS).for_model("unet")
    whole = open_dataset(data_folder(options.data), config.data)
    splits = {split: ids[:: options.every] for split, ids in whole.splits.items()}
    kept = {sample_id for ids in splits.values() for sample_id in ids}
    dataset = replace(whole, samples=tuple(each for each in whole.samples if each.id in kept), splits=splits)
    formats: dict[str, Any] = {}
    trained = {"given": losses(dataset, config)}
    with tempfile.TemporaryDirectory() as place:
        os.environ["PETSEG_CACHE"] = f"{place}/cache"
        for kind, polygons in [*((kind, False) for kind in FORMATS), *((kind, True) for kind in POLYGONS)]:
            name = f"{kind}, polygons" if polygons else kind
            out = Path(place) / name.replace(", ", "_")
            _, left_out = convert(dataset, out, kind, polygons=polygons)
            files = [path for path in out.rglob("*") if path.suffix in (".json", ".xml", ".txt", ".toml")]
            masks = [path for pattern in ("masks/*", "SegmentationClass/*") for path in out.glob(pattern)]
            size = sum(path.stat().st_size for path in (*files, *masks))
            formats[name] = {**compared(dataset, open_as_given(out)), "left_out": left_out, "annotation_bytes": size}
            print(name, formats[name], file=sys.stderr, flush=True)
            if kind == "png":
                trained["indexed masks"] = losses(open_dataset(out, config.data), config)
    result = {
        "command": f"python benchmarks/round_trip.py --every {options.every}",
        "settings": SETTINGS,
        "data": f"{dataset.name}, {dataset.provenance}",
        "formats": formats,
        "losses": trained,
        "environment": environment(device="cpu", precision="fp32", threads=1),
    }
    if options.out:
        storage.write_json(options.out, result)
    print(f"the same losses: {trained['given'] == trained['indexed masks']}")


if __name__ == "__main__":
    main(run)
