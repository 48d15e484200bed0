"""AdamW and its rate."""

import math

import torch
from torch import nn

from petseg.config import TrainConfig


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Returns AdamW (arXiv 1711.05101), weight decay on convolution weights only, one fused kernel a step."""
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, fused=True)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Returns the rate of a step (from 0): linear warm-up, then a cosine to zero at the end.

    >>> learning_rate(99, 100, TrainConfig(learning_rate=1.0)) < 1e-3
    True
    """
    warmup = config.warmup * steps
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))
