"""Images a second of petseg's training loop and of the usual one, taking turns in one run.

    python benchmarks/train_speed.py                                           # the last line is `ratio N.N x`
    python benchmarks/train_speed.py --out results/benchmarks/train_speed.json

petseg's loop: images prepared once, a batch is an index, augmentation in batches, bf16 and channels_last where the
hardware gains from them, freed memory kept. The usual loop: a DataLoader with two workers decodes, resizes and augments
every JPEG in every epoch (torchvision's transforms), fp32, NCHW, AdamW. The ratio is of these two with the same
network, batch and size. Beside them run petseg's loop with `train.compile`, segmentation_models.pytorch's U-Net (its
default, a ResNet-34 encoder) in the usual loop, the classic tutorial's network in the tutorial's setting, and the
recipes `default` and `speedrun`.

Each loop lives in a process of its own and waits while another has its turn: what one leaves behind in its heap would
change the others.

Needs a C++ compiler, torchvision and segmentation_models.pytorch: pip install '.[train,bench]'
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from measuring import arguments, data_folder, finish, main, prepared, ratio, take_turns
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from tutorial import BATCH, SIZE, tutorial_network, tutorial_optimiser

from petseg.config import RunConfig, load_recipe
from petseg.data.augment import augment
from petseg.data.cache import Prepared
from petseg.data.dataset import IGNORE
from petseg.data.dataset import Dataset as Samples
from petseg.data.sources import open_dataset
from petseg.memory import keep_freed_memory
from petseg.models import build_model
from petseg.training.batches import load_splits
from petseg.training.device import Hardware, choose_hardware
from petseg.training.inference import build_network
from petseg.training.loop import Objective, make_optimiser, train_step

NUM_CLASSES = 3
STEPS = 6
"""Steps of a turn that are timed, after one that is not; of the tutorial's batches of 64, one after one."""

WARM = 3
"""Steps before the first turn: kernels are chosen, compiled, and the heap grows."""

Step = Callable[[], float]
"""Trains on one batch; returns the seconds that its data took."""


class JpegPets(Dataset[tuple[Tensor, Tensor]]):
    """What a usual dataset does for an image: open, resize, augment, to tensor."""

    def __init__(self, samples: Samples, size: int, *, augmented: bool) -> None:
        changes = [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(15, (0.1, 0.1), (0.8, 1.25), fill={tv_tensors.Mask: IGNORE, "others": 0}),
            v2.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25),
        ]
        ends = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        self.samples, self.names = samples, samples.splits["train"]
        self.transform = v2.Compose([v2.Resize((size, size)), *(changes if augmented else []), *ends])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        sample = self.samples.by_id[self.names[row]]
        mask = tv_tensors.Mask(torch.from_numpy(self.samples.read_label(sample).ids)[None])
        image, mask = self.transform(Image.open(sample.image).convert("RGB"), mask)
        return image, mask[0].long()


def usual_loop(network: nn.Module, optimiser: torch.optim.Optimizer, images: JpegPets, batch: int) -> Step:
    """Returns the step of the usual loop; its loader's two workers live as long as the process."""
    device = next(network.parameters()).device
    loader = DataLoader(
        images,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context="fork",  # as on Linux by default; this process itself was spawned
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def step() -> float:
        started = time.perf_counter()
        images, labels = next(batches)
        images, labels = images.to(device), labels.to(device)
        fetched = time.perf_counter()
        loss = F.cross_entropy(network(images), labels, ignore_index=IGNORE)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()  # for a progress bar, as most loops have it; waits for the device
        return fetched - started

    return step


def petseg_loop(config: RunConfig, images: Prepared, hardware: Hardware) -> Step:
    """Returns the step of petseg's loop, from the functions that `petseg train` calls."""
    network = build_network(config.model, NUM_CLASSES, hardware)
    optimiser, objective = make_optimiser(network.module.train(), config.train), Objective(config.train)
    if config.train.compile:
        network = replace(network, module=torch.compile(network.module, dynamic=False))
    split = load_splits(images, config, hardware.device)["train"]
    generator = torch.Generator().manual_seed(0)

    def rows() -> Iterator[np.ndarray[Any, np.dtype[np.int64]]]:
        random = np.random.default_rng(0)
        while True:
            order = random.permutation(split.rows)
            yield from order[: len(order) // config.train.batch_size * config.train.batch_size].reshape(
                -1, config.train.batch_size
            )

    batches = rows()

    def step() -> float:
        started = time.perf_counter()
        images, labels = augment(*split.batch(next(batches)), config.train.augment, generator)
        fetched = time.perf_counter()
        loss, _ = train_step(network, optimiser, images, labels, objective)
        loss.item()
        return fetched - started

    return step


def recipe_loop(recipe: str, *settings: str, model: str = "unet") -> Callable[[Path], tuple[Step, int, int]]:
    """Returns what builds petseg's loop of a model by a recipe under protocol `seed`."""

    def build(folder: Path) -> tuple[Step, int, int]:
        keep_freed_memory()  # as the commands do
        config = load_recipe(recipe, ["protocol=seed", *settings]).for_model(model)
        step = petseg_loop(config, prepared(folder, config), choose_hardware())
        return step, config.train.batch_size, config.data.size

    return build


def usual(
    network: Callable[[], nn.Module], size: int = 128, batch: int = 16, *, tutorial: bool = False
) -> Callable[[Path], tuple[Step, int, int]]:
    """Returns what builds the usual loop of a network, on the same training images."""

    def build(folder: Path) -> tuple[Step, int, int]:
        device = choose_hardware().device
        built = network().to(device).train()
        optimiser = tutorial_optimiser(built) if tutorial else torch.optim.AdamW(built.parameters(), lr=1e-3)
        images = JpegPets(seed_split(folder), size, augmented=not tutorial)
        return usual_loop(built, optimiser, images, batch), batch, size

    return build


WIDE = "base_channels=32"
LITE = "smp:Unet/tu-tf_efficientnet_lite0"
"""Its speed does not hang on what its weights are, so they are not loaded."""

LOOPS: dict[str, tuple[str, int, Callable[[Path], tuple[Step, int, int]]]] = {
    "petseg": ("petseg's loop, U-Net of 32 channels", STEPS, recipe_loop("default", WIDE)),
    "compiled": ("the same, compiled", STEPS, recipe_loop("default", WIDE, "compile=true")),
    "usual": (
        "the usual loop, the same U-Net",
        STEPS,
        usual(lambda: build_model(load_recipe("default", [WIDE]).for_model("unet").model, NUM_CLASSES)),
    ),
    "smp": (
        "the usual loop, segmentation_models.pytorch's U-Net",
        STEPS,
        usual(lambda: smp.Unet(encoder_weights=None, classes=NUM_CLASSES)),
    ),
    "lite": (
        "petseg's loop, segmentation_models.pytorch's U-Net on EfficientNet-Lite0",
        STEPS,
        recipe_loop("default", "size=160", model=LITE),
    ),
    "lite_usual": (
        "the usual loop, the same U-Net on EfficientNet-Lite0",
        STEPS,
        usual(lambda: smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=NUM_CLASSES), 160),
    ),
    "tutorial": (
        "the tutorial's network and setting",
        1,
        usual(lambda: tutorial_network(NUM_CLASSES), SIZE, BATCH, tutorial=True),
    ),
    "default": ("petseg's loop, recipe `default`, U-Net", 4 * STEPS, recipe_loop("default")),
    "speedrun": ("petseg's loop, recipe `speedrun`, U-Net, last size", 8 * STEPS, recipe_loop("speedrun")),
}
"""Name -> title, timed steps a turn, and what builds the loop: (step, batch, size)."""


def seed_split(folder: Path) -> Samples:
    """Returns the dataset with the splits of protocol `seed`."""
    return open_dataset(folder, load_recipe("default", ["protocol=seed"]).data)


def contend(name: str, folder: Path, pipe: Connection) -> None:
    """Builds a loop in this process and, at each word from the pipe, takes a turn: sends (images a second, share)."""
    _, steps, build = LOOPS[name]
    torch.manual_seed(0)
    step, batch, size = build(folder)
    for _ in range(WARM):
        step()
    pipe.send((batch, size))
    while pipe.recv():
        step()  # brings the caches back and lets the loader's queue fill
        started = time.perf_counter()
        data = sum(step() for _ in range(steps))
        taken = time.perf_counter() - started
        pipe.send((steps * batch / taken, data / taken))


def run() -> None:
    """Measures, writes, prints."""
    options = arguments(__doc__).parse_args()
    folder = data_folder(options.data)
    training = seed_split(folder).splits["train"]  # unpacks archives, once
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    frames: dict[str, tuple[int, int]] = {}
    for name in LOOPS:
        pipes[name], theirs = spawn.Pipe()
        spawn.Process(target=contend, args=(name, folder, theirs)).start()
        frames[name] = pipes[name].recv()
    shares: dict[str, list[float]] = {name: [] for name in LOOPS}

    def turn(name: str) -> float:
        pipes[name].send(True)
        speed, share = pipes[name].recv()
        shares[name].append(round(share, 4))
        return round(speed, 3)

    speeds = take_turns({name: lambda name=name: turn(name) for name in LOOPS}, options.turns)
    for pipe in pipes.values():
        pipe.send(False)
    result = {
        "kind": "benchmark",
        "what": "images a second in training; ratios are petseg's first loop over the other, turn by turn",
        "command": "python benchmarks/train_speed.py",
        "environment": choose_hardware().environment().model_dump(),
        "training_images": len(training),
        "turns": options.turns,
        "loops": {
            name: {
                "title": title,
                "batch": frames[name][0],
                "size": frames[name][1],
                "images_per_second": speeds[name],
                "data_share": shares[name],
                "ratio": ratio(speeds["petseg"], speeds[name]),
            }
            for name, (title, _, _) in LOOPS.items()
        },
        "lite_ratio": ratio(speeds["lite"], speeds["lite_usual"]),
        "ratio": ratio(speeds["petseg"], speeds["usual"]),
    }
    for loop in result["loops"].values():
        found = loop["ratio"]
        print(f"{loop['title']:<52} {found['median']:6.2f} ({found['low']:.2f} to {found['high']:.2f})")
    finish(options.out, result)


if __name__ == "__main__":
    main(run)
