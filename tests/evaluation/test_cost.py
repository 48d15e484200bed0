"""Costs: parameters and multiply-accumulates counted by hand, memory of small programs, turns of the clock."""

import pytest
import torch
from torch import nn

from petseg.config import ModelConfig
from petseg.evaluation.cost import LiveBytes, count_cost, count_macs, measure_latencies
from petseg.models import MODELS, Builder
from tests.conftest import CPU, refused

# each row: pixels of the output, channels in, channels out, taps a pixel. U-Net of 4 base channels and depth 2 on
# 16 x 16: levels of 16, 8 and 4 pixels a side, 4, 8 and 16 channels
ENCODER = [(256, 3, 4, 9), (256, 4, 4, 9), (64, 4, 8, 9), (64, 8, 8, 9)]
UNET_3X3 = [*ENCODER, (16, 8, 16, 9), (16, 16, 16, 9), (64, 16, 8, 9), (64, 8, 8, 9), (256, 8, 4, 9), (256, 4, 4, 9)]
# a 2x2 up-convolution of stride 2 makes each output pixel from one input pixel: one tap
UNET_UPS = [(64, 16, 8, 1), (256, 8, 4, 1)]
UNET_HEAD = [(256, 4, 3, 1)]

# SegNet of 4 base channels, depth 2 and 2 convolutions a stage on 16 x 16; the last is the head
SEGNET_3X3 = [*ENCODER, (64, 8, 8, 9), (64, 8, 4, 9), (256, 4, 4, 9)]
SEGNET_HEAD = [(256, 4, 3, 9)]


def macs(layers):
    return sum(pixels * before * after * taps for pixels, before, after, taps in layers)


def weights(layers, scales=1):
    return sum((before * taps + scales) * after for _, before, after, taps in layers)


def small(name, **options):
    return ModelConfig(name=name, base_channels=4, depth=2, **options)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_unet_by_hand(batch_norm):
    cost = count_cost(small("unet", batch_norm=batch_norm), 3, 16)
    assert cost.macs == macs(UNET_3X3 + UNET_UPS + UNET_HEAD) == 415_744
    # batch normalisation has a scale and a shift a channel and takes the bias's place; up-convolutions and head keep it
    ups = [(pixels, before, after, 4) for pixels, before, after, _ in UNET_UPS]
    assert cost.parameters == weights(UNET_3X3, 2 if batch_norm else 1) + weights(ups + UNET_HEAD)
    saved = [(64, 8, 8, 9), (256, 4, 4, 9)]  # without skips the decoder's first convolutions read half as many channels
    assert cost.macs - count_macs(small("unet", skips=False), 3, 16) == macs(saved)


@pytest.mark.parametrize("upsampling", ["indices", "bilinear"])
def test_segnet_by_hand(upsampling):
    cost = count_cost(small("segnet", convs=2, upsampling=upsampling), 3, 16)
    assert cost.macs == macs(SEGNET_3X3 + SEGNET_HEAD)
    assert cost.parameters == weights(SEGNET_3X3, 2) + weights(SEGNET_HEAD)


SKIPS = 4 * (256 * 4 + 64 * 8)  # bytes of both levels' maps; of indices: for 4 floats of 32 bits, 2 bits
BYTES = [
    ("unet", {}, SKIPS),
    ("unet", {"skips": False}, 0),
    ("unet", {"skips": False, "upsampling": "bilinear"}, 0),
    ("unet", {"skips": False, "upsampling": "indices"}, SKIPS / 64),
    ("segnet", {"convs": 2}, SKIPS / 64),
    ("segnet", {"convs": 2, "upsampling": "bilinear"}, 0),
]


@pytest.mark.parametrize(("name", "options", "skip_bytes"), BYTES)
def test_skip_bytes(name, options, skip_bytes):
    assert count_cost(small(name, **options), 3, 16).skip_bytes == skip_bytes


def test_any_module_and_the_smallest_and_odd_sizes_are_counted(monkeypatch):
    monkeypatch.setitem(MODELS, "flat", Builder("Flat", lambda num_classes: nn.Conv2d(3, num_classes, 3, padding=1)))
    cost = count_cost(ModelConfig(name="flat"), 5, 16)
    assert (cost.parameters, cost.macs, cost.skip_bytes) == (5 * 28, 256 * 3 * 5 * 9, None)
    assert cost.activation_bytes == 4 * 256 * 5
    # one pixel a channel at the bottom: batch normalisation refuses a single image there
    cost = count_cost(ModelConfig(name="unet"), 3, 16)
    assert cost.training_activation_bytes_per_image > cost.activation_bytes > 0
    even, odd = (count_macs(ModelConfig(name="segnet"), 3, size) for size in (64, 65))
    assert even < odd < 1.3 * even


@pytest.mark.parametrize("name", MODELS)
def test_four_times_the_pixels(name):
    one, four = (count_cost(ModelConfig(name=name), 3, size) for size in (64, 128))
    assert (four.parameters, four.macs) == (one.parameters, 4 * one.macs)
    # all but batch normalisation's own numbers, a few a channel
    assert four.activation_bytes == pytest.approx(4 * one.activation_bytes, rel=1e-3)
    per_image = [cost.training_activation_bytes_per_image for cost in (one, four)]
    assert per_image[1] == pytest.approx(4 * per_image[0], rel=0.02)
    assert per_image[0] > 2 * one.activation_bytes, "training holds more"


def test_live_bytes_by_hand_of_outputs_views_and_a_chain():
    with LiveBytes() as memory:
        a, b = torch.ones(1000), torch.ones(1000)
        x = a + b
        assert (memory.live, memory.peak) == (12_000, 12_000)
        del a, b
        x = x * 2  # the old x lives until the new one stands
        assert (memory.live, memory.peak) == (4000, 12_000)
        y = torch.cat([x, x, x])
        del x
        assert (memory.live, memory.peak) == (12_000, 16_000)
    del y
    assert (memory.live, memory.peak) == (0, 16_000)
    with LiveBytes() as memory:
        values, indices = torch.arange(100.0).sort()
        assert (memory.live, memory.peak) == (400 + 800, 400 + 400 + 800), "what was sorted is gone"
        del values
        assert memory.live == 800
        del indices
        assert memory.live == 0
    weight = torch.ones(500)
    with LiveBytes() as memory:
        weight.view(5, 100).mul_(2)
        assert memory.peak == 0
        x = torch.ones(10, 10, dtype=torch.float64)
        rows = [x.view(100), x[2:5], x.t(), x.expand(3, 10, 10)]
        x.add_(1).relu_()
        assert (memory.live, memory.peak) == (800, 800)
        del x
        assert memory.live == 800, "a view keeps its storage alive"
        del rows
        assert memory.live == 0
    # at each step of a plain chain input and output live: the peak is the widest pair
    with torch.device("meta"):
        chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 32, 1), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 1, 1))
        image = torch.empty(1, 3, 10, 10)
    with torch.no_grad(), LiveBytes() as memory:
        chain(image)
    assert (memory.live, memory.peak) == (0, 4 * 100 * (32 + 16))


class Roll(nn.Module):
    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls, self.weight = name, calls, nn.Parameter(torch.ones(1))

    def forward(self, image):
        self.calls.append((self.name, self.training, (image * self.weight).requires_grad))
        return image


def test_models_take_turns_keep_no_gradient_and_have_latencies_of_their_own():
    calls = []
    measured = measure_latencies({name: Roll(name, calls) for name in "ab"}, 16, CPU, repeats=3)
    one, other = ("a", False, False), ("b", False, False)
    assert calls == [one] * 5 + [other] * 5 + [one, one, other, other] * 3  # the first of a turn does not count
    assert {name: latency.repeats for name, latency in measured.items()} == {"a": 3, "b": 3}
    models = {"heavy": nn.Conv2d(3, 48, 7, padding=3), "light": nn.Conv2d(3, 1, 1)}
    measured = measure_latencies(models, 96, CPU, repeats=9)
    assert all(0 < latency.p50 <= latency.p95 for latency in measured.values())
    # 7,000 times the work; a busy machine hits both alike
    assert measured["heavy"].p50 > 3 * measured["light"].p50


def test_other_work_while_latencies_are_measured_is_recorded(monkeypatch):
    monkeypatch.setattr("petseg.threads._busy_seconds", iter([100.0, *[1e6] * 9]).__next__)
    measured = measure_latencies({"one": nn.Conv2d(3, 1, 1)}, 16, CPU, repeats=3)
    assert measured["one"].others > 1000


def test_a_network_that_reads_values_when_it_is_built():
    pytest.importorskip("segmentation_models_pytorch", reason="the extra `models`")
    assert count_cost(ModelConfig(name="smp:Segformer/mit_b0"), 3, 32).parameters == 3_714_915  # rates from a linspace


def test_a_network_that_cannot_be_trained_is_refused_in_one_line(monkeypatch):
    class Two(nn.Conv2d):
        def forward(self, image):
            logits = super().forward(image)
            return (logits, logits) if self.training else logits

    monkeypatch.setitem(MODELS, "two", Builder("Two", lambda num_classes: Two(3, num_classes, 1)))
    refused(r"^model 'two': its cost cannot be counted .*\(TypeError: .*", count_cost, ModelConfig(name="two"), 3, 8)
