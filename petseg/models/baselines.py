"""What needs no learning: the scores that a network must beat before it may be called one."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from petseg.data.dataset import UInt8


class MeanMask(nn.Module):
    """Logits [N, C, H, W] that do not look at the image: log of how often each class stood there, or `everywhere`."""

    frequency: Tensor

    def __init__(self, labels: Iterable[UInt8], num_classes: int, *, everywhere: bool = False) -> None:
        """Counts the training labels: N of uint8 [H, W], 0..C-1 or 255 (not counted)."""
        super().__init__()
        classes = np.arange(num_classes)[:, None, None]
        counts = sum((image == classes for image in labels), np.zeros(classes.shape))
        if everywhere:
            counts[:] = counts.sum(axis=(1, 2), keepdims=True)
        counts += 1.0  # a class never seen at a pixel is unlikely there, not impossible
        self.register_buffer("frequency", torch.from_numpy(counts / counts.sum(axis=0)).float())

    def forward(self, image: Tensor) -> Tensor:
        """Returns the same logits for each image of a batch [N, 3, H, W] of the size that the labels had."""
        return self.frequency.log().expand(len(image), -1, -1, -1)


# name -> title, and whether frequencies are averaged over the image
BASELINES = {"background": ("Most frequent class", True), "mean_mask": ("Mean mask", False)}
