"""Faster training in bf16 on a CPU: layers whose torch kernels are slow are computed another way.

Measured with torch 2.14.1 on two cores of an Intel Xeon with AMX: docs/log.md, 2026-11-28 and 2026-11-29. Evaluation
and other hardware stay as they are, and each part can go when torch has a fast kernel for it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from petseg.training.device import Hardware

Forward = Callable[..., Tensor]


def speed_up(model: nn.Module, hardware: Hardware) -> int:
    """Makes layers of a model train faster, if the hardware is a CPU in bf16; returns how many there are."""
    if not hardware.autocast or hardware.device.type != "cpu":
        return 0
    changed = [(module, forward) for module in model.modules() if (forward := _faster(module))]
    for module, forward in changed:
        module.forward = partial(_forward, module, module.forward, forward)
    return len(changed)


def _faster(module: nn.Module) -> Callable[[Any, Forward, Tensor], Tensor] | None:
    """Returns what computes a layer in training, from it, its own forward pass and the images; None: nothing else."""
    if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
        return _depthwise
    if "forward" in vars(module):  # somebody else's
        return None
    if type(module) in (nn.ReLU, nn.ReLU6) and module.inplace:
        return _relu
    if type(module) is nn.ConvTranspose2d and module.kernel_size == module.stride:
        plain = (module.groups, *module.padding, *module.output_padding, *module.dilation) == (1, 0, 0, 0, 0, 1, 1)
        return _transposed if plain else None
    return None


def _forward(
    module: nn.Module, own: Forward, faster: Callable[[Any, Forward, Tensor], Tensor], *given: Any, **named: Any
) -> Tensor:
    """Computes a layer, otherwise than it does itself if gradients are wanted and it is given images alone."""
    if module.training and torch.is_grad_enabled() and len(given) == 1 and not named:
        return faster(module, own, *given)
    return own(*given, **named)


def _depthwise(module: nn.Conv2d, own: Forward, images: Tensor) -> Tensor:
    """Computes in float32.

    oneDNN has fast kernels in bf16 for the forward pass, but not for all gradients: with a stride, and of 5x5 weights,
    it takes a plain loop. With EfficientNet-Lite0 at 160 px these were 40 % of a step.
    """
    with torch.autocast(images.device.type, enabled=False):
        out = own(images.float())
    return out.to(torch.get_autocast_dtype(images.device.type))


def _relu(module: nn.ReLU | nn.ReLU6, own: Forward, images: Tensor) -> Tensor:
    if images.dtype != torch.bfloat16 or not images.requires_grad or torch.compiler.is_compiling():
        return own(images)
    apply: Forward = _ReLU.apply
    return apply(images, isinstance(module, nn.ReLU6))


class _ReLU(torch.autograd.Function):
    """ReLU or ReLU6 in place, on the bits of bf16 as 16-bit integers, which have the order of the numbers above zero.

    NaN becomes 0, or 6 in ReLU6: a loss may stay finite until the next validation, which computes with torch's ReLU.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, six: bool) -> Tensor:
        bits_of_6 = 0x40C0
        images.view(torch.int16).clamp_(0, bits_of_6 if six else None)
        ctx.mark_dirty(images)
        ctx.save_for_backward(images)
        ctx.six = six
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        if ctx.six:  # for which torch has no kernel of integers
            return torch.ops.aten.hardtanh_backward(gradient, out, 0.0, 6.0), None
        bits = torch.ops.aten.threshold_backward(gradient.view(torch.int16), out.view(torch.int16), 0)
        return bits.view(torch.bfloat16), None


def _transposed(module: nn.ConvTranspose2d, own: Forward, images: Tensor) -> Tensor:
    if images.dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return own(images)
    apply: Forward = _Transposed.apply
    return apply(images, module.weight, module.bias)


class _Transposed(torch.autograd.Function):
    """A transposed convolution whose windows do not overlap, with gradients by products of matrices.

    A row is a pixel of the input, its columns the pixels of its window in the output.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv_transpose2d(images, weight, bias, stride=weight.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        (inputs, outputs, *window), (height, width) = weight.shape, images.shape[2:]
        windows = gradient.permute(0, 2, 3, 1).unflatten(2, (width, window[1])).unflatten(1, (height, window[0]))
        rows = windows.transpose(2, 3).reshape(-1, window[0] * window[1] * outputs)
        of_images = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            matrix = weight.to(rows.dtype).permute(0, 2, 3, 1).reshape(inputs, -1)
            of_images = (rows @ matrix.t()).view(*images.shape[:1], height, width, inputs).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            pixels = images.permute(0, 2, 3, 1).reshape(-1, inputs)
            of_weight = (pixels.t() @ rows).view(inputs, *window, outputs).permute(0, 3, 1, 2).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            sums = rows.new_ones(1, len(rows)) @ rows
            of_bias = sums.view(-1, outputs).sum(dim=0, dtype=weight.dtype)
        return of_images, of_weight, of_bias
