"""Validation: loss and scores at the training size, after each epoch."""

from dataclasses import dataclass

import numpy as np
import torch

from petseg.metrics import confusion_matrix, mean_iou, pixel_accuracy
from petseg.training.batches import Split
from petseg.training.inference import Network, predict_logits, right_image_class, scored_labels, scored_logits
from petseg.training.losses import CrossEntropySum


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
