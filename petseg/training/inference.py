"""Logits of a split, batch by batch, their scores at the training size, and classes that scores take together."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from petseg.config import ModelConfig
from petseg.data.dataset import IGNORE, Merge
from petseg.metrics import confusion_matrix, mean_iou, pixel_accuracy
from petseg.models import build_model, model_input
from petseg.models.builder import Input
from petseg.training.batches import Rows, Split
from petseg.training.device import Hardware
from petseg.training.losses import CrossEntropySum

EVALUATION_BATCH = 32  # images a batch where no gradient is kept; scores do not depend on it


@dataclass(frozen=True)
class Network:
    """A model on a device, with what it wants of its input."""

    module: nn.Module
    input: Input
    hardware: Hardware

    def logits(self, images: Tensor) -> Tensor:
        """Returns logits [N, C, H, W] of images float32 [N, 3, H, W] in 0..1, in the hardware's precision."""
        with self.hardware.context():
            logits: Tensor = self.module(self.input.normalise(images).contiguous(memory_format=torch.channels_last))
        return logits


def build_network(config: ModelConfig, num_classes: int, hardware: Hardware) -> Network:
    """Returns a new network on its device, in channels_last, weights drawn from torch's global generator."""
    module = build_model(config, num_classes).to(hardware.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Network(module, model_input(config), hardware)


def predict_logits(network: Network, split: Split, rows: Rows) -> Iterator[tuple[Rows, Tensor, Tensor]]:
    """Yields (rows, labels uint8 [n, H, W], logits float32 [n, C, H, W]) batch by batch, no gradient, no dropout."""
    network.module.eval()
    with torch.inference_mode():
        for batch in np.split(rows, range(EVALUATION_BATCH, len(rows), EVALUATION_BATCH)):
            images, labels = split.batch(batch)
            yield batch, labels, network.logits(images).float()


def scored_logits(logits: Tensor, merge: Merge | None) -> Tensor:
    """Returns logits [N, C, H, W] of the scored classes."""
    if merge is None:
        return logits
    parts = [  # a merged class's probability is the sum of its members', so its logit is the logarithm of their sum
        logits[:, list(ids)].logsumexp(dim=1, keepdim=True) if len(ids) > 1 else logits[:, ids[0] : ids[0] + 1]
        for ids in merge.members()
    ]
    return torch.cat(parts, dim=1)


def scored_labels(labels: Tensor, merge: Merge | None) -> Tensor:
    """Returns labels uint8 [N, H, W] of the scored classes; 255 stays."""
    if merge is None:
        return labels
    table = torch.full((256,), IGNORE, dtype=torch.uint8, device=labels.device)
    table[: len(merge.of)] = torch.tensor(merge.of, dtype=torch.uint8, device=labels.device)
    return table[labels.long()]


def right_image_class(logits: Tensor, labels: Tensor, merge: Merge | None) -> list[bool]:
    """Returns, for each image that shows a merged class, whether the right member is predicted; none without merging.

    Logits [N, C, H, W] and labels uint8 [N, H, W] are of the trained classes; a member has the largest sum over pixels.
    """
    members = next((ids for ids in merge.members() if len(ids) > 1), ()) if merge else ()
    if not members:
        return []
    predicted = logits.softmax(dim=1)[:, list(members)].sum(dim=(2, 3)).argmax(dim=1)
    pixels = torch.stack([(labels == member).flatten(1).sum(dim=1) for member in members], dim=1)
    right: list[bool] = (predicted == pixels.argmax(dim=1))[pixels.any(dim=1)].tolist()
    return right


@dataclass(frozen=True)
class Validation:
    """Scores over all pixels of a split at the training size, of the scored classes."""

    val_loss: float  # cross-entropy in nats
    val_miou: float
    val_accuracy: float
    val_image_class: float | None  # share of images whose class (cat or dog) is right, where classes are merged


def validate(network: Network, split: Split) -> Validation:
    """Returns loss and scores of a network on a split."""
    merge = split.dataset.merge
    num_classes = len(split.dataset.scored_classes)
    loss = CrossEntropySum()
    confusion = np.zeros((num_classes, num_classes), np.int64)
    right: list[bool] = []
    for _, labels, logits in predict_logits(network, split, split.rows):
        right += right_image_class(logits, labels, merge)
        logits, labels = scored_logits(logits, merge), scored_labels(labels, merge)
        loss.add(logits, labels)
        prediction = logits.argmax(dim=1).to(torch.uint8)
        confusion += confusion_matrix(labels.cpu().numpy(), prediction.cpu().numpy(), num_classes)
    return Validation(
        val_loss=loss.mean(),
        val_miou=float(mean_iou(confusion)),
        val_accuracy=float(pixel_accuracy(confusion)),
        val_image_class=float(np.mean(right)) if right else None,
    )
