"""The blocks that U-Net, SegNet and their ablations share, so that they differ in their ideas alone."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def stage_channels(base_channels: int, stages: int, *, growth_cap: int) -> list[int]:
    """Returns the channels of each stage: doubling from `base_channels`, at most `growth_cap` times it.

    >>> stage_channels(64, 5, growth_cap=8)
    [64, 128, 256, 512, 512]
    """
    return [base_channels * min(2**stage, growth_cap) for stage in range(stages)]


def conv_stage(widths: Sequence[int], *, batch_norm: bool) -> nn.Sequential:
    """Returns 3x3 convolutions through `widths` channels, each with optional batch normalisation and a ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):  # batch normalisation would cancel a bias
        layers.append(nn.Conv2d(before, after, kernel_size=3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def initialise(model: nn.Module) -> None:
    """Draws convolution weights for ReLU, as both papers do (He et al. 2015, arXiv 1502.01852); biases are zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
