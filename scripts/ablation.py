"""Trains a network with each camera fault in turn left out of its augmentation, and scores all on validation.

python scripts/ablation.py --runs FOLDER --out results/masks/ablation.json

An arm is the recipe `pretrained` with one field of `train.augment` at 0; `all` leaves none out, `none` all of them.
Runs and figures that FOLDER holds are not made again. Needs PETSEG_DATA and the extra models. `--jobs` trains so many
at once, a thread each.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from presence import free

from petseg import storage
from petseg.cli.data import data_folder
from petseg.data.geometry import Geometry
from petseg.data.sources import open_dataset
from petseg.evaluation.corruptions import UNCHANGED, Corruption
from petseg.evaluation.evaluate import load_run
from petseg.evaluation.robustness import Looker, looked_at
from petseg.evaluation.statistics import paired_bootstrap
from petseg.metrics import mean_iou
from petseg.models import title_of
from petseg.training.device import choose_hardware

MODEL = "timm:tf_efficientnet_lite0@imagenet"
SIZE, EPOCHS, BATCH, RATE = 128, 5, 16, 1e-3
FAULTS = {  # field of train.augment -> how it is called in the table
    "jpeg": "JPEG",
    "blur": "blur",
    "shrink": "reduced and enlarged",
    "noise": "noise",
    "light": "darkness and casts",
    "occlusion": "occlusion",
    "composite": "second pets",
    "background_crop": "parts without a pet",
}
LOOKS = tuple(Corruption(kind, 3) for kind in ("jpeg", "blur", "noise", "dark", "small"))
"""What the files are put through, each in its strongest severity."""
LEFT_OUT: dict[str, tuple[str, ...]] = {"all": (), "none": tuple(FAULTS), **{name: (name,) for name in FAULTS}}


def train(runs: Path, data: Path, arm: str) -> None:
    """Trains an arm into its run folder, or goes on with it."""
    run = runs / arm
    if (run / "evaluated.json").is_file():
        return
    settings = [f"size={SIZE}", f"epochs={EPOCHS}", f"batch_size={BATCH}", f"learning_rate={RATE}", "ramp=[]"]
    settings += [f"train.augment.{field}=0.0" for field in LEFT_OUT[arm]]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "petseg", "train", "pretrained", "--model", MODEL, "--data", str(data)]
    command += ["--out", str(run), "--threads", "1", "--device", "cpu", *words]
    command += ["--resume"] if run.exists() else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"trained: {arm}", flush=True)


def score(runs: Path, data: Path, arm: str) -> dict[str, Any]:
    """Returns confusion matrices of each validation image under each look, and what pet-free parts have of a pet."""
    kept = runs / arm / "evaluated.json"
    if not kept.is_file():
        trained = load_run(runs / arm, choose_hardware("fp32", "cpu"))
        dataset = open_dataset(data, trained.config.data)
        looker = Looker(trained.network.probabilities, Geometry.of(trained.config.data))
        looks, samples = (UNCHANGED, *LOOKS), [dataset.by_id[name] for name in dataset.splits["val"]]
        counts = [looked_at(looker, dataset, looks, sample) for sample in samples]
        found: dict[str, Any] = {
            look.name: column for look, column in zip(looks, zip(*counts, strict=True), strict=True)
        }
        with torch.inference_mode():
            background = [place for place, each in enumerate(dataset.scored_classes) if each.role == "background"]
            parts = (np.asarray(photo.whole()) for photo, _ in free(dataset, "val"))
            found["parts"] = [float(np.mean(~np.isin(looker.ids(part, dataset.merge), background))) for part in parts]
        storage.write_json(kept, found)
    return dict(storage.read_json(kept))


def main() -> int:
    """Trains, scores, writes, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="the dataset; default: PETSEG_DATA")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--jobs", type=int, default=2, help="trained at once")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    data = data_folder(options.data)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(partial(train, options.runs, data), LEFT_OUT))
    figures = {arm: score(options.runs, data, arm) for arm in LEFT_OUT}
    whole, rows = figures["all"], []
    for arm, found in figures.items():
        row: dict[str, Any] = {"arm": arm, "title": FAULTS.get(arm, arm), "pet_in_free_parts": np.mean(found["parts"])}
        for look in (UNCHANGED, *LOOKS):
            counts, base = (np.array(each[look.name]).reshape(len(each[look.name]), 3, 3) for each in (found, whole))
            gain = paired_bootstrap(base, counts)
            row[look.kind if look.severity else "unchanged"] = {
                "miou": float(mean_iou(counts.sum(axis=0))),
                "gain": {"points": gain.points, "low": gain.low, "high": gain.high},
            }
        rows.append(row)
    trained = load_run(options.runs / "all", choose_hardware("fp32", "cpu"))
    result = {
        "kind": "ablation",
        "what": "mIoU on validation; gain is of all faults over all but this one (`none`: over none), pictures redrawn",
        "command": "python scripts/ablation.py",
        "environment": storage.read_json(options.runs / "all" / "environment.json"),
        "images": open_dataset(data, trained.config.data).provenance,
        "split": "val",
        "seeds": [trained.config.train.seed],
        "model": title_of(MODEL),
        "config": trained.config.model_dump(mode="json"),
        "rows": rows,
    }
    if options.out is not None:
        storage.write_json(options.out, result)
    for row in rows:
        print(
            row["title"], *(f"{look} {row[look]['miou']:.4f}" for look in ("unchanged", *(each.kind for each in LOOKS)))
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
