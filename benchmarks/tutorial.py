"""The setting of the classic tutorial, whose network is `petseg.models.tutorial`.

François Chollet, "Deep Learning with Python", second edition, 2021, section 9.2: 200 px, batch 64, RMSprop at its
default rate, fp32, no augmentation.
"""

from __future__ import annotations

import torch
from torch import nn

from petseg.models.tutorial import Tutorial

SIZE, BATCH = 200, 64


def tutorial_network(num_classes: int) -> nn.Module:
    """Returns the tutorial's network with weights as Keras draws them: Glorot's."""
    network = Tutorial(num_classes)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
    return network


def tutorial_optimiser(network: nn.Module) -> torch.optim.Optimizer:
    """Returns RMSprop as Keras has it by default: rate .001, rho .9, epsilon 1e-7."""
    return torch.optim.RMSprop(network.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)
