"""What images without labels add: an eighth of the labels, with and without the other training images unlabelled.

Three arms: `alone` learns from the labels; `taught` from the labels and what `alone` says of their images; `unlabelled`
as `taught`, and from what `alone` says of the other training images.

    python benchmarks/unlabelled.py runs/unlabelled --out results/benchmarks/unlabelled.json

U-Net at 64 px with 8 base channels, as many steps in all arms; the interval is over seeds, each of which draws its own
eighth, and images of the test split. Trainings are resumed, finished ones are kept.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from measuring import arguments, main, trained_arms

from petseg import storage
from petseg.config import RunConfig, load_recipe

SETTINGS = ["data.size=64", "model.base_channels=8", "data.fraction=0.125", "train.epochs=80", "train.ema=0.99"]
TAUGHT = ["train.teacher_weight=0.5"]
ARMS = {"alone": [], "taught": TAUGHT, "unlabelled": [*TAUGHT, "train.unlabelled.source=rest"]}
SEEDS = (0, 1, 2)


def arm_of(arm: str, folder: Path, seed: int) -> RunConfig:
    """Returns the run of an arm and a seed; all but the first learn from the first one's run."""
    teacher = [] if arm == "alone" else [f"train.teacher='{folder / f'alone-{seed}'}'"]
    return load_recipe("default", [*SETTINGS, *ARMS[arm], *teacher, f"train.seed={seed}"]).for_model("unet")


def run() -> None:
    """Trains all arms with each seed, scores them and writes their differences."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="where the runs are kept")
    options = parser.parse_args()
    found = trained_arms(options, {arm: partial(arm_of, arm, options.folder) for arm in ARMS}, SEEDS)
    storage.write_json(
        options.out,
        {
            "kind": "benchmark",
            "what": "points of test mIoU from images without labels",
            "command": "python benchmarks/unlabelled.py",
            "settings": SETTINGS,
            **found,
        },
    )


if __name__ == "__main__":
    main(run)
