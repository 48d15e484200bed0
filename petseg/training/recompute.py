"""Activation checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv 1604.06174).

Of a block only its input is kept for the backward pass, which computes the block's inside again: less memory for about
a third more time. `torch.utils.checkpoint` does it; here it is decided which modules of any network are blocks, and
statistics of batch normalisation are kept from being counted twice.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

LARGEST = 8  # layers with parameters in a block: a stage of U-Net or SegNet, a block of a ResNet or a transformer


def recompute_blocks(model: nn.Module) -> int:
    """Makes the blocks of a model compute their inside again in the backward pass; returns how many there are."""
    blocks = [block for child in model.children() for block in _blocks(child)]
    for block in blocks:
        block.forward = partial(_forward, block, block.forward)
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the outermost modules of two to `LARGEST` layers with parameters of their own."""
    layers = sum(1 for inner in module.modules() if next(inner.parameters(recurse=False), None) is not None)
    if 2 <= layers <= LARGEST and not isinstance(module, nn.ModuleList | nn.ModuleDict):
        yield module
    elif layers > 1:
        for child in module.children():
            yield from _blocks(child)


def _forward(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs, **options)
    contexts = partial(_contexts, block)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **options)


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    return nullcontext(), _uncounted(block)


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """Leaves the running statistics of batch normalisation as they are."""
    kept = []
    for module in block.modules():
        if isinstance(module, _BatchNorm) and (batches := module.num_batches_tracked) is not None:
            kept.append((module, module.momentum, batches, batches.clone()))
            module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum, batches, before in kept:
            module.momentum = momentum
            batches.copy_(before)
