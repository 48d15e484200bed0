"""Images a second of petseg's training loop and of the usual one, taking turns in one process.

    python benchmarks/train_speed.py                                           # the last line is `ratio N.N x`
    python benchmarks/train_speed.py --out results/benchmarks/train_speed.json

petseg's loop: pictures prepared once, a batch is an index, augmentation in batches, bf16 and channels_last where the
hardware gains from them, freed memory kept. The usual loop: a DataLoader with two workers decodes, resizes and augments
every JPEG in every epoch (torchvision's transforms), fp32, NCHW, AdamW. The ratio is of these two with the same
network, batch and size. Beside them run segmentation_models.pytorch's U-Net (its default, a ResNet-34 encoder) in the
usual loop, the classic tutorial's network in the tutorial's setting, and the recipes `default` and `speedrun`.

Needs torchvision and segmentation_models.pytorch: pip install '.[bench]'
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from measuring import arguments, data_folder, finish, main, ratio, take_turns
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from tutorial import BATCH, SIZE, TutorialNetwork, tutorial_optimiser

from petseg.config import RunConfig, load_recipe
from petseg.data.augment import augment
from petseg.data.cache import Prepared, prepare
from petseg.data.oxford_pets import BACKGROUND, Pet, read_trimap
from petseg.models import build_model
from petseg.train import (
    Hardware,
    choose_hardware,
    environment,
    keep_freed_memory,
    load_splits,
    make_optimiser,
    train_step,
)

NUM_CLASSES = 3
STEPS = 6
"""Steps of a turn that are timed, after one that is not; of the tutorial's batches of 64, two after one."""

Step = Callable[[], float]
"""Trains on one batch; returns the seconds that its data took."""


class JpegPets(Dataset[tuple[Tensor, Tensor]]):
    """What a usual data set does for a picture: open, resize, augment, to tensor."""

    def __init__(self, pets: Sequence[Pet], size: int, *, augmented: bool) -> None:
        changes = [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(15, (0.1, 0.1), (0.8, 1.25), fill={tv_tensors.Mask: BACKGROUND, "others": 0}),
            v2.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25),
        ]
        ends = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self.pets = pets
        self.transform = v2.Compose([v2.Resize((size, size)), *(changes if augmented else []), *ends])

    def __len__(self) -> int:
        return len(self.pets)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        pet = self.pets[row]
        mask = tv_tensors.Mask(torch.from_numpy(read_trimap(pet.trimap))[None])
        image, mask = self.transform(Image.open(pet.image).convert("RGB"), mask)
        return image, mask[0].long() - 1


def usual_loop(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    pets: Sequence[Pet],
    size: int,
    batch: int,
    device: torch.device,
    *,
    augmented: bool = True,
) -> Step:
    """Returns the step of the usual loop; its loader's two workers live as long as the process."""
    loader = DataLoader(
        JpegPets(pets, size, augmented=augmented),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> float:
        started = time.perf_counter()
        images, labels = next(batches)
        images, labels = images.to(device), labels.to(device)
        fetched = time.perf_counter()
        loss = F.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()  # for a progress bar, as most loops have it; waits for the device
        return fetched - started

    return step


def petseg_loop(config: RunConfig, prepared: Prepared, hardware: Hardware) -> Step:
    """Returns the step of petseg's loop, from the functions that `petseg train` calls."""
    model = build_model(config.model, NUM_CLASSES).to(hardware.device, memory_format=torch.channels_last)
    optimiser = make_optimiser(model.train(), config.train)
    pictures = load_splits(prepared, config, hardware.device)["train"]
    generator = torch.Generator().manual_seed(0)

    def rows() -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
        random = np.random.default_rng(0)
        while True:
            order = random.permutation(pictures.rows)
            yield from order[: len(order) // config.train.batch_size * config.train.batch_size].reshape(
                -1, config.train.batch_size
            )

    batches = rows()

    def step() -> float:
        started = time.perf_counter()
        images, labels = augment(*pictures.batch(next(batches)), config.train.augment, generator)
        fetched = time.perf_counter()
        loss, _ = train_step(model, optimiser, images, labels, config.train, hardware)
        loss.item()
        return fetched - started

    return step


def run() -> None:
    """Measures, writes, prints."""
    options = arguments(__doc__).parse_args()
    keep_freed_memory()
    hardware = choose_hardware()
    folder = data_folder(options.data)
    wide = load_recipe("default", ["protocol=seed", "base_channels=32"]).for_model("unet")
    default = load_recipe("default", ["protocol=seed"]).for_model("unet")
    speedrun = load_recipe("speedrun").for_model("unet")
    prepared = {size: prepare(folder, size) for size in {wide.data.size, speedrun.data.size}}
    pets = [
        prepared[wide.data.size].pets[row]
        for row in load_splits(prepared[wide.data.size], wide, hardware.device)["train"].rows
    ]

    torch.manual_seed(0)
    device, size, batch = hardware.device, wide.data.size, wide.train.batch_size
    networks = {
        "usual": build_model(wide.model, NUM_CLASSES),
        "smp": smp.Unet(encoder_weights=None, classes=NUM_CLASSES),
        "tutorial": TutorialNetwork(NUM_CLASSES),
    }
    for network in networks.values():
        network.to(device).train()
    adam = {name: torch.optim.AdamW(networks[name].parameters(), lr=1e-3) for name in ("usual", "smp")}
    # name -> (title, batch, size, timed steps a turn, step)
    loops: dict[str, tuple[str, int, int, int, Step]] = {
        "petseg": (
            "petseg's loop, U-Net, 32 channels",
            batch,
            size,
            STEPS,
            petseg_loop(wide, prepared[size], hardware),
        ),
        "usual": (
            "usual loop, the same U-Net",
            *(batch, size, STEPS),
            usual_loop(networks["usual"], adam["usual"], pets, size, batch, device),
        ),
        "smp": (
            "usual loop, segmentation_models.pytorch's U-Net",
            *(batch, size, STEPS),
            usual_loop(networks["smp"], adam["smp"], pets, size, batch, device),
        ),
        "tutorial": (
            "the tutorial's network and setting",
            *(BATCH, SIZE, 2),
            usual_loop(
                networks["tutorial"],
                tutorial_optimiser(networks["tutorial"]),
                pets,
                SIZE,
                BATCH,
                device,
                augmented=False,
            ),
        ),
        "default": (
            "recipe `default`, U-Net",
            *(default.train.batch_size, default.data.size, 4 * STEPS),
            petseg_loop(default, prepared[default.data.size], hardware),
        ),
        "speedrun": (
            "recipe `speedrun`, U-Net",
            *(speedrun.train.batch_size, speedrun.data.size, 8 * STEPS),
            petseg_loop(speedrun, prepared[speedrun.data.size], hardware),
        ),
    }
    data_shares: dict[str, list[float]] = {name: [] for name in loops}

    def turn(name: str) -> float:
        _, batch, _, steps, step = loops[name]
        step()  # brings the caches back and lets this loop's loader fill its queue
        started = time.perf_counter()
        data = sum(step() for _ in range(steps))
        taken = time.perf_counter() - started
        data_shares[name].append(data / taken)
        return steps * batch / taken

    speeds = take_turns({name: lambda name=name: turn(name) for name in loops}, options.turns)
    result = {
        "kind": "benchmark",
        "what": "images a second in training; ratios are petseg's loop over the other, turn by turn",
        "command": "python benchmarks/train_speed.py",
        "environment": environment(hardware),
        "training_images": len(pets),
        "turns": options.turns,
        "loops": {
            name: {
                "title": title,
                "batch": batch,
                "size": size,
                "images_per_second": [round(speed, 3) for speed in speeds[name]],
                "data_share": [round(share, 4) for share in data_shares[name]],
                "ratio": ratio(speeds["petseg"], speeds[name]),
            }
            for name, (title, batch, size, _, _) in loops.items()
        },
        "ratio": ratio(speeds["petseg"], speeds["usual"]),
    }
    for loop in result["loops"].values():
        found = loop["ratio"]
        print(f"{loop['title']:<50} {found['median']:6.2f} ({found['low']:.2f} to {found['high']:.2f})")
    finish(options.out, result)


if __name__ == "__main__":
    main(run)
