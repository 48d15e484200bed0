"""What a start from the shipped model adds on one's own images: against ImageNet's weights and random ones.

Three arms, the same U-Net on EfficientNet-Lite2: `random`; `imagenet`, the encoder's weights; `shipped`, all weights of
`unet_lite2` but the head. A tenth of a dataset's labels, as many steps in all arms, on the own-images path.

    python benchmarks/starts.py runs/starts --data camvid/ --out results/benchmarks/starts.json

The interval is over seeds, each of which draws its own tenth, and test images. Finished trainings are kept.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from measuring import arguments, main, trained_arms

from petseg import storage
from petseg.config import RunConfig, load_recipe
from petseg.models import run_config
from petseg.shipped import DEFAULT

NETWORK = "timm:tf_efficientnet_lite2"
SETTINGS = ["data.size=192", "data.fraction=0.1", "train.epochs=40", "train.batch_size=8", "train.ema=0.98"]
SETTINGS += ["train.learning_rate=1e-3", "model.decoder_channels=[192, 96, 64, 32, 24]"]
BEGUN = ["train.encoder_rate=0.3"]
ARMS = {
    "random": (NETWORK, []),
    "imagenet": (f"{NETWORK}@imagenet", BEGUN),
    "shipped": (NETWORK, [*BEGUN, f"train.init={DEFAULT}"]),
}
SEEDS = (0, 1, 2)


def arm_of(arm: str, seed: int) -> RunConfig:
    """Returns the run of an arm and a seed."""
    network, settings = ARMS[arm]
    recipe = load_recipe("default", [*SETTINGS, *settings, f"train.seed={seed}"])
    return run_config(recipe.model_copy(update={"models": (network,)}), network)


def run() -> None:
    """Trains all arms with each seed, scores them and writes their differences."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, help="where the runs are kept")
    options = parser.parse_args()
    found = trained_arms(options, {arm: partial(arm_of, arm) for arm in ARMS}, SEEDS)
    storage.write_json(
        options.out,
        {
            "kind": "benchmark",
            "what": "points of test mIoU from weights to start from",
            "command": "python benchmarks/starts.py",
            "settings": SETTINGS,
            **found,
        },
    )


if __name__ == "__main__":
    main(run)
