"""Images without labels: the average of the weights labels them, and the model learns where that is sure.

The mean teacher (Tarvainen and Valpola, 2017, arXiv 1703.01780) with the labels of FixMatch (Sohn et al., 2020, arXiv
2001.07685): the teacher sees an image as it is, the model sees it augmented and learns the teacher's class at each
pixel that is given more than `confidence`. The labels move with the image.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from petseg.config import RunConfig, TrainConfig
from petseg.data.cache import Prepared, prepare
from petseg.data.dataset import IGNORE, Class, Progress
from petseg.data.geometry import GREY, Geometry
from petseg.data.unlabelled import open_unlabelled
from petseg.errors import PetsegError
from petseg.training.batches import Rows, Split, on_device
from petseg.training.inference import Network

REST = "rest"


def load_unlabelled(config: RunConfig, training: Split) -> Split | None:
    """Returns the images that `train.unlabelled` names, where it names some; their labels, if any, are never read."""
    source = config.train.unlabelled.source
    if not source:
        return None
    if source == REST:
        prepared = training.prepared
        rest = np.setdiff1d(prepared.rows(prepared.dataset.splits["train"]), training.rows)
        if not len(rest):
            raise PetsegError(
                f"train.unlabelled.source is {REST!r}, but data.fraction {config.data.fraction:g} leaves no training "
                "image out; lower it, or name a folder"
            )
        return Split(training.images, training.labels, rest, training.device, prepared)
    prepared = prepare_unlabelled(config, training.dataset.classes)
    if prepared.left_out:
        first = next(iter(prepared.left_out.values()))
        logging.getLogger("petseg").warning(
            "petseg: warning: unlabelled images %s: %d left out (first: %s)", source, len(prepared.left_out), first
        )
    images, labels = on_device(prepared, training.device)
    return Split(images, labels, np.arange(len(prepared.samples)), training.device, prepared)


def prepare_unlabelled(config: RunConfig, classes: Sequence[Class], on_progress: Progress | None = None) -> Prepared:
    """Returns the images of the folder that `train.unlabelled` names, prepared as the labelled ones are."""
    dataset = open_unlabelled(Path(config.train.unlabelled.source), classes)
    return prepare(dataset, Geometry.of(config.data), on_progress=on_progress)


@dataclass(frozen=True)
class Teacher:
    """Labels images by the average of the weights."""

    network: Network  # with the averaged weights
    split: Split  # the images
    settings: TrainConfig

    def batches(self, epoch: int, sizes: Sequence[int]) -> list[Rows]:
        """Returns rows beside the epoch's batches of some sizes; all are taken before one is taken again."""
        counts = [max(1, round(size * self.settings.unlabelled.ratio)) for size in sizes]
        generator = np.random.default_rng([self.settings.seed, epoch, 1])
        rounds = -(-sum(counts) // len(self.split.rows))
        order = np.concatenate([generator.permutation(self.split.rows) for _ in range(rounds)])
        return np.split(order[: sum(counts)], np.cumsum(counts)[:-1])

    def batch(self, rows: Rows, side: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Returns images float32 [n, 3, H, W] in 0..1 and the teacher's class ids uint8 [n, H, W], 255 where unsure.

        The generator draws crops, where images are cropped.
        """
        images, _ = self.split.batch(rows, side, generator)
        self.network.module.eval()
        with torch.no_grad():
            confidence, labels = self.network.logits(images).float().softmax(dim=1).max(dim=1)
        if self.split.prepared.geometry.fit != "square":
            grey = ((images - GREY / 255).abs() < 1 / 512).all(dim=1)  # as padding is
            confidence = confidence.masked_fill(grey, 0.0)
        return images, labels.to(torch.uint8).masked_fill(confidence < self.settings.unlabelled.confidence, IGNORE)

    def weight(self, step: int, steps: int) -> float:
        """Returns the weight of its labels at a step (from 0); it rises, since the first labels are guesses."""
        settings = self.settings.unlabelled
        return settings.weight * min(1.0, (step + 1) / max(1.0, settings.ramp_up * steps))
