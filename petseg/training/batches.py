"""Batches: the prepared images of each split on the training device, and the order in which an epoch takes them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from petseg.config import RunConfig, TrainConfig
from petseg.data.cache import Prepared
from petseg.data.dataset import Dataset, UInt8, part_of
from petseg.data.geometry import Geometry
from petseg.data.splits import refuse_unsplit
from petseg.errors import PetsegError
from petseg.models import to_unit_range
from petseg.training import distributed
from petseg.training.runs import usable_rows

Rows = npt.NDArray[np.int64]
GPU_SHARE = 0.5  # of a GPU's free memory that the images may take; a larger set stays in the prepared cache


@dataclass(frozen=True)
class Split:
    """The images of one split, on the GPU or, where they do not fit and on the CPU, mapped from the prepared cache."""

    images: Tensor  #: uint8, the whole prepared array, as `Prepared.images`; `rows` says which belong to the split
    labels: Tensor  #: uint8, as `Prepared.labels`: class ids, 255 ignored
    rows: Rows
    device: torch.device  #: where batches are wanted
    prepared: Prepared

    @property
    def dataset(self) -> Dataset:
        """What the class ids mean."""
        return self.prepared.dataset

    @property
    def epoch_rows(self) -> Rows:
        """The rows of an epoch: each once; of fit crop as often as its windows lie side by side in the image."""
        geometry = self.prepared.geometry
        if geometry.fit != "crop":
            return self.rows
        contents = [self.prepared.contents[row] for row in self.rows]
        return np.repeat(self.rows, [geometry.count(content, step=geometry.size) for content in contents])

    def label_images(self) -> Iterator[UInt8]:
        """Yields class ids uint8 [H, W], image by image: together they may be larger than memory."""
        return map(self.prepared.label, self.rows)

    def batch(
        self, rows: Rows, side: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns images float32 [n, 3, H, W] in 0..1 and labels uint8 [n, H, W] on `device`, sides at most `side`.

        Of fit crop they are random crops by the generator, which is on the CPU.
        """
        if self.prepared.geometry.fit == "crop":
            images, labels = (part.to(self.device) for part in self._crops(rows, generator))
        else:
            index = torch.from_numpy(rows).to(self.images.device)
            images, labels = self.images[index].to(self.device), self.labels[index].to(self.device)
        if side in (None, images.shape[1]):
            return to_unit_range(images), labels
        planes = images.permute(0, 3, 1, 2)
        if planes.device.type != "cpu":
            planes = planes.float()  # antialiased bytes are the CPU's, and 50 times as fast there
        planes = F.interpolate(planes, size=(side, side), mode="bilinear", antialias=True)
        labels = F.interpolate(labels[:, None], size=(side, side), mode="nearest-exact")[:, 0]
        return to_unit_range(planes.permute(0, 2, 3, 1)), labels

    def _crops(self, rows: Rows, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        side = self.prepared.size
        images, labels = [], []
        for row in rows:
            start, size = self.prepared.places[row]
            pixels = slice(start, start + size[0] * size[1])
            top, left = (int(torch.randint(length - side + 1, (), generator=generator)) for length in size)
            crop = slice(top, top + side), slice(left, left + side)
            images.append(self.images[pixels].view(*size, 3)[crop])
            labels.append(self.labels[pixels].view(size)[crop])
        return torch.stack(images), torch.stack(labels)


def load_splits(prepared: Prepared, config: RunConfig, device: torch.device) -> dict[str, Split]:
    """Returns "train", "val" and, where the dataset has one, "test"; refuses another geometry than the config's."""
    if prepared.geometry != (wanted := Geometry.of(config.data)):
        raise PetsegError(f"images are prepared at {prepared.geometry}, the recipe wants {wanted}; prepare them so")
    refuse_unsplit(prepared.dataset)
    dataset, found = prepared.dataset, scored_splits(prepared, device)
    if config.data.fraction < 1:
        training = [dataset.by_id[sample_id] for sample_id in dataset.splits["train"]]
        whole = bool(config.data.groups)
        rows = prepared.rows(part_of(training, config.data.fraction, seed=config.train.seed, whole=whole))
        found["train"] = replace(found["train"], rows=rows)
    train, val = (len(found[part].rows) if part in found else 0 for part in ("train", "val"))
    if train < 2 or not val:
        raise PetsegError(
            f"{dataset.name}: {train} training and {val} validation images can be used; wanted at least 2 and 1, with "
            "labelled pixels: is the data folder complete? (`petseg data check`)"
        )
    return found


def scored_splits(prepared: Prepared, device: torch.device) -> dict[str, Split]:
    """Returns every split, whatever it is for and however small; "train" is whole, whatever `data.fraction` trained."""
    images, labels = on_device(prepared, device)
    return {part: Split(images, labels, rows, device, prepared) for part, rows in usable_rows(prepared).items()}


def on_device(prepared: Prepared, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns all images and labels of a prepared dataset, on a device where they fit."""
    # copy-on-write: torch wants writable memory, the cache stays as it is and is paged in as it is used
    images, labels = (
        torch.from_numpy(np.load(prepared.folder / name, mmap_mode="c")) for name in ("images.npy", "labels.npy")
    )
    if images.nbytes + labels.nbytes < GPU_SHARE * _free_bytes(device):
        images, labels = images.to(device), labels.to(device)
    return images, labels


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return 0  # the CPU reads the cache where it is


def epoch_batches(rows: Rows, epoch: int, config: TrainConfig) -> list[Rows]:
    """Returns every row once, in an order of (seed, epoch), none alone in a batch: batch normalisation needs two.

    Nor are there fewer rows than ranks in one.
    """
    order = np.random.default_rng([config.seed, epoch]).permutation(rows)
    cuts = list(range(config.batch_size, len(order), config.batch_size))
    if cuts and len(order) - cuts[-1] < max(2, distributed.count()) and config.batch_size > 1:
        cuts.pop()
    return list(np.split(order, cuts))
