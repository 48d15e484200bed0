"""Images without labels: a trained run says what is on them, and the model learns that beside the labelled images.

Self-training with soft labels, as "noisy student" (Xie et al., 2020, arXiv 1911.04252): `train.teacher` sees what the
model sees, `training.distillation` compares them. A mean teacher was tried and did worse than no such images.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from petseg.config import RunConfig, TrainConfig
from petseg.data.cache import Prepared, prepare
from petseg.data.dataset import Class, Progress
from petseg.data.geometry import Geometry
from petseg.data.unlabelled import open_unlabelled
from petseg.errors import PetsegError
from petseg.training import distributed
from petseg.training.batches import Rows, Split, on_device

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


def batches_beside(unlabelled: Split, epoch: int, sizes: Sequence[int], settings: TrainConfig) -> list[Rows]:
    """Returns rows beside an epoch's batches of some sizes, at least one a rank; all are taken before one is again."""
    counts = [max(distributed.count(), round(size * settings.unlabelled.ratio)) for size in sizes]
    generator = np.random.default_rng([settings.seed, epoch, 1])
    rounds = -(-sum(counts) // len(unlabelled.rows))
    order = np.concatenate([generator.permutation(unlabelled.rows) for _ in range(rounds)])
    return np.split(order[: sum(counts)], np.cumsum(counts)[:-1])
