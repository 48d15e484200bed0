"""Depthwise convolutions trained in float32: what they compute, and that nothing else changes."""

import copy

import torch
from torch import nn

from petseg.config import ModelConfig
from petseg.training import inference
from petseg.training.depthwise import widen_depthwise
from petseg.training.device import choose_hardware

BF16 = choose_hardware("bf16", "cpu")


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
    assert widen_depthwise(model, BF16) == 2, "groups of two channels are not depthwise"
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
            widen_depthwise(model, BF16)
        with BF16.context(), torch.no_grad():
            outs.append(model.eval()(images))
    assert torch.equal(*outs)
    assert widen_depthwise(network(), choose_hardware("fp32", "cpu")) == 0


def test_every_network_that_is_built_has_it(monkeypatch):
    monkeypatch.setattr(inference, "build_model", lambda *given: network())
    for hardware, widened in ((BF16, True), (choose_hardware("fp32", "cpu"), False)):
        module = inference.build_network(ModelConfig(), 2, hardware).module
        assert ["forward" in vars(layer) for layer in module] == [False, widened, widened, False, False]
