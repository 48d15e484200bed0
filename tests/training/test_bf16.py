"""Layers that train otherwise in bf16 on a CPU: what they compute, and that nothing else changes."""

import copy

import pytest
import torch
from torch import nn

from petseg.config import ModelConfig
from petseg.training import inference
from petseg.training.bf16 import speed_up
from petseg.training.device import choose_hardware

BF16, FP32 = choose_hardware("bf16", "cpu"), choose_hardware("fp32", "cpu")


class Strided(nn.Conv2d):
    """Pads by itself, as timm's convolutions of TensorFlow's networks do."""

    def forward(self, images):
        return super().forward(nn.functional.pad(images, (0, 1, 0, 1)))


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 5, padding=2, groups=8), Strided(8, 8, 3, 2, groups=8)]
    return nn.Sequential(*layers, nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 2, 1))


def gradients(model, images):
    with BF16.context():
        out = model(images)
    out.float().square().mean().backward()
    return out, [parameter.grad for parameter in model.parameters()]


def test_gradients_are_those_of_float32_and_a_copy_learns_by_its_own_weights():
    plain, images = network(), torch.rand(4, 3, 20, 20)
    plain(images).square().mean().backward()
    wanted = [parameter.grad for parameter in plain.parameters()]
    model = network()
    assert speed_up(model, BF16) == 2, "groups of two channels are not depthwise"
    seen, convolve = [], model[1]._conv_forward
    model[1]._conv_forward = lambda images, *rest: seen.append(images.dtype) or convolve(images, *rest)
    out, found = gradients(model, images)
    assert out.dtype == torch.bfloat16
    assert seen == [torch.float32]
    del model[1]._conv_forward
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02 * float(theirs.abs().max()))
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert not gradients(other, images)[0].any()


def test_evaluation_and_other_hardware_are_left_alone():
    images = torch.rand(1, 3, 20, 20)
    outs = []
    for model in (network(), network()):
        if outs:
            speed_up(model, BF16)
        with BF16.context(), torch.no_grad():
            outs.append(model.eval()(images))
    assert torch.equal(*outs)
    assert speed_up(network(), FP32) == 0


def test_every_network_that_is_built_has_it(monkeypatch):
    monkeypatch.setattr(inference, "build_model", lambda *given: network())
    for hardware, widened in ((BF16, True), (FP32, False)):
        module = inference.build_network(ModelConfig(), 2, hardware).module
        assert ["forward" in vars(layer) for layer in module] == [False, widened, widened, False, False]


def both_ways(layer, images, gradient):
    """Returns what torch computes with a layer, then what the layer computes sped up: output, gradients."""
    results = []
    for faster in (False, True):
        model, given = copy.deepcopy(layer), images.clone().requires_grad_()
        assert speed_up(model, BF16 if faster else FP32) == faster
        with BF16.context():
            out = model(given.mul(1))  # a layer in place takes no leaf
        assert isinstance(out.grad_fn, torch.autograd.function.BackwardCFunction) == faster, "of petseg, not of torch"
        out.backward(gradient)
        results.append([out.detach(), given.grad, *(parameter.grad for parameter in model.parameters())])
    return results


@pytest.mark.parametrize("layer", [nn.ReLU(inplace=True), nn.ReLU6(inplace=True)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_relu_is_the_same(layer, layout):
    numbers = torch.cat([torch.linspace(-9, 9, 1000), torch.tensor([0.0, -0.0, 6.0, torch.inf, -torch.inf, 1e-40])])
    mixed = numbers.bfloat16()[torch.randperm(1006)].view(1, 2, 1, 503).repeat(2, 1, 3, 1)
    gradient = torch.randn(mixed.shape).bfloat16()
    plain, faster = both_ways(layer, mixed.contiguous(memory_format=layout), gradient)
    for wanted, found in zip(plain, faster, strict=True):
        assert torch.equal(wanted, found)
    assert faster[0].max() == (6 if isinstance(layer, nn.ReLU6) else torch.inf)


def test_a_relu_changes_its_input_as_torch_s_does():
    model = nn.Sequential(nn.Sigmoid(), nn.ReLU(inplace=True))
    assert speed_up(model, BF16) == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(torch.randn(4, 4, dtype=torch.bfloat16, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("window", [2, (3, 1)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_transposed_convolution_has_torch_s_gradients(layout, window, bias):
    layer = nn.ConvTranspose2d(8, 5, window, window, bias=bias)
    images = torch.randn(3, 8, 6, 7).bfloat16().contiguous(memory_format=layout)
    high, wide = layer.kernel_size
    wider = torch.randn(3, 9, 6 * high, 7 * wide).bfloat16().contiguous(memory_format=layout)
    plain, faster = both_ways(layer, images, wider[:, 2:7])  # a part, as behind a concatenation
    assert torch.equal(plain[0], faster[0])
    for wanted, found in zip(plain[1:], faster[1:], strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.01 * float(wanted.abs().max()))


@pytest.mark.parametrize("frozen", ["images", "weight", "bias"])
def test_a_transposed_convolution_computes_the_gradients_that_are_wanted(frozen):
    layer, images = nn.ConvTranspose2d(4, 3, 2, 2), torch.rand(1, 4, 3, 3).bfloat16().requires_grad_()
    leaves = {"images": images, "weight": layer.weight, "bias": layer.bias}
    leaves[frozen].requires_grad_(False)
    assert speed_up(layer, BF16) == 1
    with BF16.context():
        layer(images).sum().backward()
    assert {name for name, leaf in leaves.items() if leaf.grad is None} == {frozen}


def test_other_layers_and_other_images_are_left_to_torch():
    other = nn.ReLU(inplace=True)
    other.forward = nn.Identity().forward
    layers = [
        other,
        nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 3, 2),
        nn.ConvTranspose2d(4, 4, 2, 2, groups=2),
        nn.LeakyReLU(inplace=True),
    ]
    assert speed_up(nn.Sequential(*layers), BF16) == 0
    upsampling = nn.ConvTranspose2d(4, 4, 2, 2)
    assert speed_up(upsampling, BF16) == 1
    images = torch.rand(1, 4, 3, 3)
    assert upsampling(images).dtype == torch.float32
    with BF16.context():
        assert upsampling(images.bfloat16(), output_size=(7, 7)).shape[2:] == (7, 7)
