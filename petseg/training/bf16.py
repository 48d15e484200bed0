"""What torch trains slowly in bf16 on a CPU, computed otherwise: the same layers, weights and accuracy.

Measured with torch 2.14 on two cores with AMX: docs/log.md. Evaluation, other hardware and compiled networks stay as
they are. Each part can go when torch has a fast kernel for it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from petseg.training.device import Hardware

SIX = 0x40C0  # the bits of 6.0: among positive floats, the order of the bits is that of the numbers


def quicken(model: nn.Module, hardware: Hardware) -> int:
    """Makes layers of a model train faster, if the hardware is a CPU in bf16; returns how many there are."""
    if not hardware.autocast or hardware.device.type != "cpu":
        return 0
    found = [(module, forward) for module in model.modules() if (forward := _quick_forward(module))]
    for module, forward in found:
        module.forward = partial(_while_training, module, module.forward, forward)
    return len(found)


def _quick_forward(module: nn.Module) -> Callable[..., Tensor] | None:
    """Returns the forward pass that replaces a layer's; None: it stays as it is."""
    if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
        return _depthwise
    if type(module) in (nn.ReLU, nn.ReLU6) and module.inplace:
        return _relu
    if type(module) is nn.ConvTranspose2d and module.kernel_size == module.stride:
        plain = (module.groups, *module.padding, *module.output_padding, *module.dilation) == (1, 0, 0, 0, 0, 1, 1)
        return _transposed if plain else None
    return None


def _while_training(
    module: nn.Module, forward: Callable[..., Tensor], quick: Callable[..., Tensor], *given: Any, **named: Any
) -> Tensor:
    training = module.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return quick(module, forward, *given) if training and len(given) == 1 and not named else forward(*given, **named)


def _depthwise(module: nn.Conv2d, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Computes in float32.

    oneDNN has fast kernels in bf16 for the forward pass, but not for all gradients: with a stride, and of 5x5 weights,
    it takes a plain loop. With EfficientNet-Lite0 at 160 px these were 40 % of a step.
    """
    with torch.autocast(images.device.type, enabled=False):
        out = forward(images.float())
    return out.to(torch.get_autocast_dtype(images.device.type))


def _relu(module: nn.ReLU | nn.ReLU6, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    if images.dtype != torch.bfloat16 or not images.requires_grad:
        return forward(images)
    out: Tensor = _ReLU.apply(images, isinstance(module, nn.ReLU6))
    return out


class _ReLU(torch.autograd.Function):
    """Compares bf16 as 16-bit integers, in place: torch takes four times as long to compare it as floats.

    A NaN whose sign bit is set becomes 0, until the next evaluation sees it.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, six: bool) -> Tensor:
        images.view(torch.int16).clamp_(0, SIX if six else None)
        ctx.mark_dirty(images)
        ctx.save_for_backward(images)
        ctx.six = six
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        if ctx.six:
            return torch.ops.aten.hardtanh_backward(gradient, out, 0.0, 6.0), None
        bits = torch.ops.aten.threshold_backward(gradient.view(torch.int16), out.view(torch.int16), 0)
        return bits.view(torch.bfloat16), None


def _transposed(module: nn.ConvTranspose2d, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    if images.dtype != torch.bfloat16:
        return forward(images)
    out: Tensor = _Transposed.apply(images, module.weight, module.bias)
    return out


class _Transposed(torch.autograd.Function):
    """A transposed convolution whose windows do not overlap; its gradients are products of matrices.

    A row is a pixel of the input, its columns the pixels of its window in the output. oneDNN takes three times as long
    for the gradients.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv_transpose2d(images, weight, bias, stride=weight.shape[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        images, weight = ctx.saved_tensors
        (inputs, outputs, *window), (height, width) = weight.shape, images.shape[2:]
        windows = gradient.permute(0, 2, 3, 1).unflatten(2, (width, window[1])).unflatten(1, (height, window[0]))
        rows = windows.transpose(2, 3).reshape(-1, window[0] * window[1] * outputs)
        pixels = images.permute(0, 2, 3, 1).reshape(-1, inputs)
        matrix = weight.to(rows.dtype).permute(0, 2, 3, 1).reshape(inputs, -1)
        of_images = (rows @ matrix.t()).view(*images.shape[:1], height, width, inputs).permute(0, 3, 1, 2)
        of_weight = (pixels.t() @ rows).view(inputs, *window, outputs).permute(0, 3, 1, 2).to(weight.dtype)
        if not ctx.needs_input_grad[2]:
            return of_images, of_weight, None
        sums = rows.new_ones(1, len(rows)) @ rows
        return of_images, of_weight, sums.view(-1, outputs).sum(dim=0, dtype=weight.dtype)
