"""Training losses, in float32, of logits [N, C, H, W] and labels int64 [N, H, W], 0..C-1 or 255 (ignored)."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from petseg.data.balance import class_pixels, median_frequency
from petseg.data.dataset import IGNORE, UInt8
from petseg.training import distributed


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Returns the mean over labelled pixels of -log p(label), in nats; best 0, and 0 without a labelled pixel.

    With class weights, float32 [C], the weighted mean (divided by the sum of the weights of the pixels).
    """
    logits = logits.float()
    if logits.is_cuda and torch.are_deterministic_algorithms_enabled():
        # CUDA's kernel for images adds in any order and refuses; the one for rows is deterministic
        logits, labels = logits.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
    loss = F.cross_entropy(logits, labels, weight=class_weights, ignore_index=IGNORE)
    return torch.where((labels != IGNORE).any(), loss, 0.0)


class CrossEntropySum:
    """Cross-entropy summed over pixels, so that batches of any size give the same mean."""

    def __init__(self) -> None:
        self.total, self.pixels = 0.0, 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Adds a batch; labels may be uint8."""
        counted = int((labels != IGNORE).sum())
        if counted:
            self.total += float(cross_entropy(logits, labels.long())) * counted
            self.pixels += counted

    def mean(self) -> float:
        """Returns the mean over labelled pixels, 0 without any."""
        return self.total / max(1, self.pixels)


def dice_loss(logits: Tensor, labels: Tensor, smooth: float = 1.0) -> Tensor:
    """Returns 1 less the soft Dice, mean over classes, over all pixels of the batch (of all ranks); 0..1, best 0.

    Milletari et al., "V-Net", arXiv 1606.04797, section 3, with the plain sum in the denominator. `smooth` pixels are
    added to numerator and denominator, so that a class in neither gives no loss.
    """
    counted = labels != IGNORE
    one_hot = F.one_hot(labels.masked_fill(~counted, 0), logits.shape[1]).permute(0, 3, 1, 2) * counted[:, None]
    probabilities = logits.float().softmax(dim=1) * counted[:, None]
    overlap = distributed.summed((probabilities * one_hot).sum(dim=(0, 2, 3)))
    total = distributed.summed(probabilities.sum(dim=(0, 2, 3)) + one_hot.sum(dim=(0, 2, 3)))
    return 1.0 - ((2.0 * overlap + smooth) / (total + smooth)).mean()


def median_frequency_weights(labels: Iterable[UInt8], num_classes: int) -> Tensor:
    """Returns the weights of `balance.median_frequency`, float32 [C], for labels that are each uint8 [H, W]."""
    weights = median_frequency(np.stack([class_pixels(image, num_classes) for image in labels]))
    return torch.from_numpy(weights.astype(np.float32))
