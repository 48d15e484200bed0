"""How many epochs the classic tutorial's network needs for the validation loss 0.3614, under protocol `seed`.

    python benchmarks/tutorial_loss.py --out results/benchmarks/tutorial_loss.json

Its own setting (200 px, batch 64, RMSprop, no augmentation), but on petseg's prepared pictures and in bf16 where the
hardware gains from it: that leaves the epochs and makes them several times cheaper; `train_speed.py` times an epoch as
the tutorial computes it. The JSON is written after each epoch, so it may be stopped at any.
"""

from __future__ import annotations

import time

import torch
from measuring import arguments, data_folder, main
from torch import Tensor, nn
from tutorial import BATCH, SIZE, TutorialNetwork, tutorial_optimiser

from petseg import storage
from petseg.config import load_recipe
from petseg.data.cache import prepare
from petseg.data.oxford_pets import ORIGINAL_LOSSES, get_task
from petseg.errors import PetsegError
from petseg.training.loop import (
    choose_hardware,
    environment,
    epoch_batches,
    keep_freed_memory,
    load_splits,
    train_step,
    validate,
)

EPOCHS = 30
LOSS = ORIGINAL_LOSSES["unet"]


class Rescaled(nn.Module):
    """The tutorial's network on images that petseg has normalised: back to 0..1, as its first layer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.network = TutorialNetwork(3)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [N, 3, H, W]."""
        logits: Tensor = self.network(image / 4 + 0.5)
        return logits


def run() -> None:
    """Trains until the loss is reached or the epochs are over."""
    options = arguments(__doc__).parse_args()
    if options.out is None:
        raise PetsegError("--out is missing; name the JSON to write")
    keep_freed_memory()
    hardware = choose_hardware()
    settings = ["protocol=seed", f"size={SIZE}", f"batch_size={BATCH}", "gradient_clip=0.0"]
    config = load_recipe("default", settings).for_model("unet")
    splits = load_splits(prepare(data_folder(options.data), SIZE), config, hardware.device)
    torch.manual_seed(config.train.seed)
    network = Rescaled().to(hardware.device, memory_format=torch.channels_last)
    optimiser = tutorial_optimiser(network)
    history: list[dict[str, float]] = []
    while len(history) < EPOCHS and not (history and history[-1]["val_loss"] <= LOSS):
        started = time.perf_counter()
        network.train()
        for rows in epoch_batches(splits["train"].rows, len(history) + 1, config.train):
            train_step(network, optimiser, *splits["train"].batch(rows), config.train, hardware)
        scores = validate(network, splits["val"], get_task("trimap"), hardware)
        history.append({"epoch": len(history) + 1, "seconds": round(time.perf_counter() - started, 1), **scores})
        print(history[-1], flush=True)
        storage.write_json(
            options.out,
            {
                "kind": "benchmark",
                "what": "epochs of the tutorial's network, in bf16, until the validation loss of the original U-Net",
                "command": "python benchmarks/tutorial_loss.py",
                "environment": environment(hardware),
                "loss": LOSS,
                "reached": history[-1]["val_loss"] <= LOSS,
                "history": history,
            },
        )


if __name__ == "__main__":
    main(run)
