"""What images without labels add: an eighth of the labels, with and without the other training images unlabelled.

Three arms: `alone` learns from the labels; `taught` from the labels and what `alone` says of their images; `unlabelled`
as `taught`, and from what `alone` says of the other training images.

    python benchmarks/unlabelled.py runs/unlabelled --out results/benchmarks/unlabelled.json

U-Net at 64 px with 8 base channels, as many steps in all arms; the interval is over seeds, each of which draws its own
eighth, and images of the test split. Trainings are resumed, finished ones are kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from measuring import arguments, data_folder, main, prepared

from petseg import storage
from petseg.config import load_recipe
from petseg.errors import PetsegError
from petseg.evaluation.evaluate import evaluate_run
from petseg.evaluation.statistics import paired_bootstrap
from petseg.training.batches import load_splits
from petseg.training.device import choose_hardware
from petseg.training.loop import Execution, train
from petseg.training.runs import describe

SETTINGS = ["data.size=64", "model.base_channels=8", "data.fraction=0.125", "train.epochs=80", "train.ema=0.99"]
TAUGHT = ["train.teacher_weight=0.5"]
ARMS = {"alone": [], "taught": TAUGHT, "unlabelled": [*TAUGHT, "train.unlabelled.source=rest"]}
SEEDS = (0, 1, 2)


def run() -> None:
    """Trains all arms with each seed, scores them and writes their differences."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="where the runs are kept")
    options = parser.parse_args()
    if options.out is None:
        raise PetsegError("--out is missing; name the JSON to write")
    hardware, confusions, scores = choose_hardware(), {arm: [] for arm in ARMS}, {arm: [] for arm in ARMS}
    for seed in SEEDS:
        for arm, settings in ARMS.items():
            first = options.folder / f"alone-{seed}"
            teacher = [] if arm == "alone" else [f"train.teacher='{first}'"]
            config = load_recipe("default", [*SETTINGS, *settings, *teacher, f"train.seed={seed}"]).for_model("unet")
            images = prepared(data_folder(options.data), config)
            splits = load_splits(images, config, hardware.device)
            place = options.folder / f"{arm}-{seed}"
            how = Execution(hardware, resume=place.exists(), splits=splits, on_epoch=lambda row: print(row, flush=True))
            train(config, images, place, how)
            found = evaluate_run(place, hardware, splits, "test")
            confusions[arm].append(found.images.confusions)
            scores[arm].append({"seed": seed, "miou": found.scores.miou})
            print(arm, scores[arm][-1], flush=True)
    stacked = {arm: np.stack(some) for arm, some in confusions.items()}
    differences = {arm: paired_bootstrap(stacked["unlabelled"], stacked[arm]) for arm in ("alone", "taught")}
    storage.write_json(
        options.out,
        {
            "kind": "benchmark",
            "what": "points of test mIoU from images without labels",
            "command": "python benchmarks/unlabelled.py",
            "environment": hardware.environment().model_dump(),
            "data": describe(images).model_dump(exclude={"left_out"}),
            "images": describe(images).images,
            "settings": SETTINGS,
            "labelled_images": len(splits["train"].rows),
            "scores": scores,
            "more_than": {arm: difference.model_dump() for arm, difference in differences.items()},
        },
    )


if __name__ == "__main__":
    main(run)
