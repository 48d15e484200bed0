"""The setting of the classic tutorial, whose network is `petseg.models.tutorial`.

François Chollet, "Deep Learning with Python", second edition, 2021, section 9.2: 200 px, batch 64, RMSprop at its
default rate, fp32, no augmentation.
"""

from __future__ import annotations

import torch
from torch import nn

SIZE, BATCH = 200, 64


def tutorial_optimiser(network: nn.Module) -> torch.optim.Optimizer:
    """Returns RMSprop as Keras has it by default: rate .001, rho .9, epsilon 1e-7."""
    return torch.optim.RMSprop(network.parameters(), lr=1e-3, alpha=0.9, eps=1e-7)
