"""The network of the classic tutorial, in its own setting.

François Chollet, "Deep Learning with Python", second edition, 2021, section 9.2: 3x3 convolutions of which three have
stride 2 (64, 128, 256 channels), and the same back with transposed convolutions; no skips, no normalisation. 200 px,
batch 64, RMSprop at its default rate, fp32, no augmentation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZE, BATCH = 200, 64
CHANNELS = (64, 128, 256)


class TutorialNetwork(nn.Sequential):
    """Logits [N, num_classes, H, W] of images [N, 3, H, W] in 0..1, for H and W that 8 divides."""

    def __init__(self, num_classes: int) -> None:
        layers: list[nn.Module] = []
        before = 3
        for channels in CHANNELS:
            layers += [nn.Conv2d(before, channels, 3, stride=2, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
            before = channels
        for channels in reversed(CHANNELS):
            layers += [nn.ConvTranspose2d(before, channels, 3, padding=1), nn.ReLU()]
            layers += [nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1), nn.ReLU()]
            before = channels
        super().__init__(*layers, nn.Conv2d(before, num_classes, 3, padding=1))
        for layer in self:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):  # Keras's default
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits [N, num_classes, H, W]."""
        logits: Tensor = super().forward(image)
        return logits


def tutorial_optimiser(network: nn.Module) -> torch.optim.Optimizer:
    """Returns RMSprop as Keras has it by default: rate .001, rho .9, epsilon 1e-7."""
    return torch.optim.RMSprop(network.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)
