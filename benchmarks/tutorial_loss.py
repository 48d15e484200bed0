"""How many epochs the classic tutorial's network needs for the validation loss 0.3614, under protocol `seed`.

    python benchmarks/tutorial_loss.py --out results/benchmarks/tutorial_loss.json

Its own setting (200 px, batch 64, RMSprop, no augmentation), but on petseg's prepared images and in bf16 where the
hardware gains from it: that leaves the epochs and makes them several times cheaper; `train_speed.py` times an epoch as
the tutorial computes it. The JSON is written after each epoch, so it may be stopped at any.
"""

from __future__ import annotations

import time
from dataclasses import asdict

import torch
from measuring import arguments, data_folder, main, prepared
from tutorial import BATCH, SIZE, tutorial_network, tutorial_optimiser

from petseg import storage
from petseg.config import load_recipe
from petseg.data.oxford_pets import ORIGINAL_LOSSES
from petseg.errors import PetsegError
from petseg.models import MODELS
from petseg.training.batches import epoch_batches, load_splits
from petseg.training.device import choose_hardware
from petseg.training.inference import Network, validate
from petseg.training.loop import Objective, train_step

EPOCHS = 30
LOSS = ORIGINAL_LOSSES["unet"]


def run() -> None:
    """Trains until the loss is reached or the epochs are over."""
    options = arguments(__doc__).parse_args()
    if options.out is None:
        raise PetsegError("--out is missing; name the JSON to write")
    hardware = choose_hardware()
    settings = ["protocol=seed", f"size={SIZE}", f"batch_size={BATCH}", "gradient_clip=0.0"]
    config = load_recipe("default", settings).for_model("unet")
    splits = load_splits(prepared(data_folder(options.data), config), config, hardware.device)
    torch.manual_seed(config.train.seed)
    module = tutorial_network(3).to(hardware.device, memory_format=torch.channels_last)
    network, objective = Network(module, MODELS["tutorial"].input, hardware), Objective(config.train)
    optimiser = tutorial_optimiser(network.module)
    history: list[dict[str, float]] = []
    while len(history) < EPOCHS and not (history and history[-1]["val_loss"] <= LOSS):
        started = time.perf_counter()
        network.module.train()
        for rows in epoch_batches(splits["train"].rows, len(history) + 1, config.train):
            train_step(network, optimiser, *splits["train"].batch(rows), objective)
        scores = asdict(validate(network, splits["val"]))
        history.append({"epoch": len(history) + 1, "seconds": round(time.perf_counter() - started, 1), **scores})
        print(history[-1], flush=True)
        storage.write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "epochs of the tutorial's network, in bf16, until the validation loss of the original U-Net",
                "command": "python benchmarks/tutorial_loss.py",
                "environment": hardware.environment().model_dump(),
                "loss": LOSS,
                "reached": history[-1]["val_loss"] <= LOSS,
                "history": history,
            },
        )


if __name__ == "__main__":
    main(run)
