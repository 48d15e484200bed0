"""Depthwise convolutions of any network, trained in float32 where a CPU computes the rest in bf16.

oneDNN has fast kernels in bf16 for their forward pass, but not for all gradients: with a stride, and of 5x5 weights, it
takes a plain loop. With EfficientNet-Lite0 at 160 px these were 40 % of a step (torch 2.14, AMX, 2026-11-28).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from petseg.training.device import Hardware


def widen_depthwise(model: nn.Module, hardware: Hardware) -> int:
    """Makes depthwise convolutions compute in float32 in training, where that is faster; returns how many there are."""
    if not hardware.autocast or hardware.device.type != "cpu":
        return 0
    found = [one for one in model.modules() if isinstance(one, nn.Conv2d) and one.groups == one.in_channels > 1]
    for module in found:
        module.forward = partial(_forward, module, module.forward)  # type: ignore[method-assign]
    return len(found)


def _forward(module: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    if not (module.training and torch.is_grad_enabled()):
        return forward(images)
    with torch.autocast(images.device.type, enabled=False):
        out = forward(images.float())
    return out.to(torch.get_autocast_dtype(images.device.type))
