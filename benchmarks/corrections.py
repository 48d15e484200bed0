"""How many pixels a person changes in labels of a model, against drawing them from nothing.

    python benchmarks/corrections.py --out results/formats/corrections.json

100 validation images, evenly chosen, at their own size. From nothing means that all is background.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from measuring import arguments, data_folder, main
from scipy.stats import spearmanr

from petseg import storage
from petseg.config import DataConfig, OxfordPetsConfig
from petseg.data.dataset import UInt8, scored_ids
from petseg.data.images import open_sample
from petseg.data.sources import open_dataset
from petseg.environment import environment
from petseg.predict.segmenter import Segmenter
from petseg.shipped import shipped_model

IMAGES = 100
PET, BACKGROUND, BORDER = range(3)  # of the scored classes


def changes(drawn: UInt8, wanted: UInt8) -> dict[str, int]:
    """Returns pixels to change, of all classes, and of pet against background with the border left out."""
    inside = wanted != BORDER
    return {
        "all": int((drawn != wanted).sum()),
        "pet": int(((drawn == PET) != (wanted == PET))[inside].sum()),
    }


def run() -> None:
    """Measures, writes, prints."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="unet", help="a shipped model or an ONNX file")
    options = parser.parse_args()
    config = DataConfig(oxford_pets=OxfordPetsConfig(task="trimap_species"))
    dataset = open_dataset(data_folder(options.data), config)
    segmenter = Segmenter(options.model)
    assert segmenter.classes == dataset.classes, "the model's classes are the dataset's"
    chosen = dataset.splits["val"][:: len(dataset.splits["val"]) // IMAGES][:IMAGES]
    rows: list[dict[str, Any]] = []
    for sample_id in chosen:
        opened = open_sample(dataset, dataset.by_id[sample_id])
        wanted = scored_ids(opened.ids, dataset.merge)
        result = segmenter(np.asarray(opened.image))
        drawn = scored_ids(result.class_ids, dataset.merge)
        nothing, model = changes(np.full_like(wanted, BACKGROUND), wanted), changes(drawn, wanted)
        rows.append({"image": sample_id, "entropy": result.entropy, "nothing": nothing, "model": model})
    totals = {
        what: {way: sum(row[way][what] for row in rows) for way in ("nothing", "model")} for what in ("all", "pet")
    }
    for total in totals.values():
        total["saved"] = 1 - total["model"] / total["nothing"]
    ordered = sorted(rows, key=lambda row: -row["entropy"])
    first = sum(row["model"]["all"] for row in ordered[: IMAGES // 4]) / totals["all"]["model"]
    rank = spearmanr([row["entropy"] for row in rows], [row["model"]["all"] for row in rows]).statistic
    result = {
        "command": f"python benchmarks/corrections.py --model {options.model}",
        "model": shipped_model(options.model),
        "data": f"{dataset.name}, {dataset.provenance}",
        "images": len(rows),
        "pixels": totals,
        "better_from_model": sum(row["model"]["all"] < row["nothing"]["all"] for row in rows),
        "order": {"spearman": float(rank), "share_of_changes_in_first_quarter": first},
        "rows": rows,
        "environment": environment(device="cpu", precision="fp32", threads=1),
    }
    if options.out:
        storage.write_json(options.out, result)
    print(totals, result["better_from_model"], result["order"], file=sys.stderr)


if __name__ == "__main__":
    main(run)
