"""Costs: parameters and multiply-accumulates counted by hand, memory of small programs, turns of the clock."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from petseg.config import ModelConfig
from petseg.evaluation.cost import LiveBytes, count_cost, measure_latencies
from petseg.models import MODELS
from petseg.training.device import Hardware

CPU = Hardware(torch.device("cpu"), autocast=False, reason="a test")

# each row: pixels of the output, channels in, channels out, taps a pixel
Layers = list[tuple[int, int, int, int]]

# U-Net of 4 base channels and depth 2 on 16 x 16: levels of 16, 8 and 4 pixels a side, 4, 8 and 16 channels
UNET_3X3: Layers = [
    *((256, 3, 4, 9), (256, 4, 4, 9)),
    *((64, 4, 8, 9), (64, 8, 8, 9)),
    *((16, 8, 16, 9), (16, 16, 16, 9)),
    *((64, 16, 8, 9), (64, 8, 8, 9)),
    *((256, 8, 4, 9), (256, 4, 4, 9)),
]
# a 2x2 up-convolution of stride 2 makes each output pixel from one input pixel: one tap
UNET_UPS: Layers = [(64, 16, 8, 1), (256, 8, 4, 1)]
UNET_HEAD: Layers = [(256, 4, 3, 1)]

# SegNet of 4 base channels, depth 2 and 2 convolutions a stage on 16 x 16; the last is the head
SEGNET_3X3: Layers = [
    *((256, 3, 4, 9), (256, 4, 4, 9)),
    *((64, 4, 8, 9), (64, 8, 8, 9)),
    *((64, 8, 8, 9), (64, 8, 4, 9)),
    (256, 4, 4, 9),
]
SEGNET_HEAD: Layers = [(256, 4, 3, 9)]


def macs(layers: Layers) -> int:
    return sum(pixels * before * after * taps for pixels, before, after, taps in layers)


def weights(layers: Layers) -> int:
    return sum(before * after * taps for _, before, after, taps in layers)


def channels_out(layers: Layers) -> int:
    return sum(after for _, _, after, _ in layers)


# Parameters and multiply-accumulates


@pytest.mark.parametrize("batch_norm", [True, False])
def test_unet_by_hand(batch_norm):
    cost = count_cost(ModelConfig(name="unet", base_channels=4, depth=2, batch_norm=batch_norm), 3, 16)
    assert cost.macs == macs(UNET_3X3 + UNET_UPS + UNET_HEAD) == 415_744
    # batch normalisation has a scale and a shift a channel and takes the bias's place; up-convolutions and head keep it
    beside = (2 if batch_norm else 1) * channels_out(UNET_3X3) + channels_out(UNET_UPS + UNET_HEAD)
    assert cost.parameters == weights(UNET_3X3 + UNET_HEAD) + 4 * weights(UNET_UPS) + beside


def test_unet_without_skips_by_hand():
    cost = count_cost(ModelConfig(name="unet", base_channels=4, depth=2, skips=False), 3, 16)
    saved = [(64, 8, 8, 9), (256, 4, 4, 9)]  # the decoder's first convolutions read half as many channels
    assert cost.macs == macs(UNET_3X3 + UNET_UPS + UNET_HEAD) - macs(saved)


@pytest.mark.parametrize("upsampling", ["indices", "bilinear"])
def test_segnet_by_hand(upsampling):
    cost = count_cost(ModelConfig(name="segnet", base_channels=4, depth=2, convs=2, upsampling=upsampling), 3, 16)
    assert cost.macs == macs(SEGNET_3X3 + SEGNET_HEAD)
    assert cost.parameters == weights(SEGNET_3X3 + SEGNET_HEAD) + 2 * channels_out(SEGNET_3X3) + 3


SKIPPED = 4 * (256 * 4 + 64 * 8)  # bytes of both levels' maps


@pytest.mark.parametrize(
    ("config", "bytes_kept"),
    [
        (ModelConfig(name="unet"), SKIPPED),
        (ModelConfig(name="unet", skips=False), 0),
        (ModelConfig(name="unet", skips=False, upsampling="bilinear"), 0),
        # a float of 32 bits for each value, an index of 2 for each window of four
        (ModelConfig(name="unet", skips=False, upsampling="indices"), SKIPPED / 64),
        (ModelConfig(name="segnet", convs=2), SKIPPED / 64),
        (ModelConfig(name="segnet", convs=2, upsampling="bilinear"), 0),
    ],
)
def test_what_the_encoder_keeps_for_the_decoder(config, bytes_kept):
    small = config.model_copy(update={"base_channels": 4, "depth": 2})
    assert count_cost(small, 3, 16).skip_bytes == bytes_kept


@pytest.mark.parametrize("name", MODELS)
def test_four_times_the_pixels(name):
    small, large = (count_cost(ModelConfig(name=name), 3, size) for size in (64, 128))
    assert large.parameters == small.parameters
    assert large.macs == 4 * small.macs
    # all but batch normalisation's own numbers, a few a channel
    assert large.activation_bytes == pytest.approx(4 * small.activation_bytes, rel=1e-3)
    per_image = [cost.training_activation_bytes_per_image for cost in (small, large)]
    assert per_image[1] == pytest.approx(4 * per_image[0], rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_training_holds_more(name):
    cost = count_cost(ModelConfig(name=name), 3, 64)
    assert cost.training_activation_bytes_per_image > 2 * cost.activation_bytes


def test_the_smallest_size_is_counted_too():
    """One pixel a channel at the bottom: batch normalisation refuses a single image there."""
    cost = count_cost(ModelConfig(name="unet"), 3, 16)
    assert cost.training_activation_bytes_per_image > cost.activation_bytes > 0


def test_an_odd_size_costs_more_than_the_even_one_below():
    even, odd = (count_cost(ModelConfig(name="segnet"), 3, size) for size in (64, 65))
    assert even.macs < odd.macs < 1.3 * even.macs


# Memory


def test_live_bytes_by_hand():
    with LiveBytes() as memory:
        a = torch.ones(1000)
        b = torch.ones(1000)
        assert memory.live == 8000
        x = a + b
        assert (memory.live, memory.peak) == (12_000, 12_000)
        del a, b
        assert memory.live == 4000
        x = x * 2  # the old x lives until the new one stands
        assert (memory.live, memory.peak) == (4000, 12_000)
        y = torch.cat([x, x, x])
        assert (memory.live, memory.peak) == (16_000, 16_000)
        del x
        assert memory.live == 12_000
    assert y.sum() == 12_000
    del y
    assert (memory.live, memory.peak) == (0, 16_000)


def test_views_and_changes_in_place_take_nothing():
    with LiveBytes() as memory:
        x = torch.ones(10, 10, dtype=torch.float64)
        rows = [x.view(100), x[2:5], x.t(), x.expand(3, 10, 10)]
        x.add_(1).relu_()
        x.view(100).mul_(2)
        assert (memory.live, memory.peak) == (800, 800)
        del x
        assert memory.live == 800, "a view keeps its storage alive"
        del rows
        assert memory.live == 0


def test_what_was_there_before_is_not_counted():
    weight = torch.ones(500)
    with LiveBytes() as memory:
        view = weight.view(5, 100)
        weight.mul_(2)
        assert memory.peak == 0
        product = view * 2
    assert memory.peak == 2000
    assert product.shape == (5, 100)


def test_each_of_several_outputs_is_counted():
    with LiveBytes() as memory:
        values, indices = torch.arange(100.0).sort()
        assert memory.peak == 400 + 400 + 800
        assert memory.live == 400 + 800, "what was sorted is gone"
        del values
        assert memory.live == 800
        del indices
        assert memory.live == 0


def test_memory_of_a_chain_of_convolutions_by_hand():
    """At each step of a plain chain input and output live: the peak is the widest pair."""
    with torch.device("meta"):
        chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 32, 1), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 1, 1))
        image = torch.empty(1, 3, 10, 10)
    with torch.no_grad(), LiveBytes() as memory:
        chain(image)
    assert memory.peak == 4 * 100 * (32 + 16)
    assert memory.live == 0


# Latency


class Roll(nn.Module):
    """Writes its name, and whether it was training, into a list at each call."""

    def __init__(self, name: str, calls: list[tuple[str, bool]]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, image: Tensor) -> Tensor:
        self.calls.append((self.name, self.training))
        return image


def test_models_take_turns():
    calls: list[tuple[str, bool]] = []
    measured = measure_latencies({name: Roll(name, calls) for name in "ab"}, 16, CPU, repeats=3)
    assert calls == [("a", False), ("b", False)] * (5 + 3)
    assert measured.keys() == {"a", "b"}
    assert {latency.repeats for latency in measured.values()} == {3}


def test_latencies_are_of_the_model():
    models = {"heavy": nn.Conv2d(3, 48, 7, padding=3), "light": nn.Conv2d(3, 1, 1)}
    measured = measure_latencies(models, 96, CPU, repeats=9)
    for latency in measured.values():
        assert 0 < latency.p50 <= latency.p95
    # 7,000 times the work; a busy machine hits both alike
    assert measured["heavy"].p50 > 3 * measured["light"].p50


def test_latency_keeps_no_gradient():
    seen: list[bool] = []
    model = nn.Conv2d(3, 1, 1)
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    measure_latencies({"model": model}, 16, CPU, repeats=1)
    assert seen == [False] * 6
