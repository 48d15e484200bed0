"""Every model and ablation learns, takes any size, and is the network that its paper describes.

Axis letters: N batch, C classes, D features, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from petseg.config import ModelConfig
from petseg.errors import PetsegError
from petseg.models import MODELS, TITLES, SegNet, UNet, build_model, normalise, to_unit_range
from petseg.models.baselines import BASELINES, MeanMask
from petseg.models.segnet import max_unpool

CLASSES = 3

# every name and ablation, narrow enough for a processor; the papers' own widths are built on the meta device below
VARIANTS = {
    "unet": ModelConfig(name="unet", base_channels=4),
    "unet without skips": ModelConfig(name="unet", base_channels=4, skips=False),
    "unet bilinear": ModelConfig(name="unet", base_channels=4, skips=False, upsampling="bilinear"),
    "unet indices": ModelConfig(name="unet", base_channels=4, skips=False, upsampling="indices"),
    "unet without batch norm": ModelConfig(name="unet", base_channels=4, batch_norm=False),
    "segnet": ModelConfig(name="segnet", base_channels=4),
    "segnet bilinear": ModelConfig(name="segnet", base_channels=4, upsampling="bilinear"),
    # three stages: He's weights expect full maps, unpooled ones are three quarters zero, so without batch normalisation
    # each stage shrinks the signal (at five the first logits deviate by .005): 200 steps may not suffice
    "segnet without batch norm": ModelConfig(name="segnet", base_channels=4, depth=3, batch_norm=False),
    "unet_paper": ModelConfig(name="unet_paper", base_channels=4),
    "segnet_paper": ModelConfig(name="segnet_paper", base_channels=4),
}
SIZES = [(16, 16), (17, 31), (45, 16), (33, 50)]


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return request.param


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def made(config: ModelConfig, seed: int = 0) -> UNet | SegNet:
    torch.manual_seed(seed)
    return build_model(config, CLASSES)


def paper(name: str, num_classes: int = CLASSES) -> UNet | SegNet:
    """Returns a preset as it stands, with shapes and no values."""
    with torch.device("meta"):
        return build_model(ModelConfig(name=name), num_classes)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return normalise(torch.rand(*shape, generator=torch.Generator().manual_seed(seed)))


def rings(count: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Returns images and labels of a disc in a ring, each class in its own colour under noise."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = torch.zeros(count, size, size, dtype=torch.int64)
    for index in range(count):
        distance = torch.hypot(row - 9.0 - 4 * index, column - 20.0 + 3 * index)
        labels[index] = (distance < 9).long() + (distance < 5).long()
    colours = F.one_hot(labels, CLASSES).permute(0, 3, 1, 2).float()
    return normalise(
        0.6 * colours + 0.4 * torch.rand(colours.shape, generator=torch.Generator().manual_seed(1))
    ), labels


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> list[float]:
    """Returns the loss before each step."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def convolutions(modules: nn.Module) -> list[nn.Conv2d]:
    return [module for module in modules.modules() if isinstance(module, nn.Conv2d)]


# Five learning tests


def test_initial_loss(config):
    # He's weights give logits of variance about 1, which costs about (1 - 1/C) / 2 = .33 nats over ln C; without batch
    # normalisation the skips add up (seeds ran up to 3.3), hence the wide side. A head ten times too large gives 7.
    labels = torch.randint(0, CLASSES, (4, 32, 32), generator=torch.Generator().manual_seed(2))
    losses = [F.cross_entropy(made(config, seed)(noise(4, 3, 32, 32)), labels).item() for seed in range(5)]
    assert math.log(CLASSES) - 0.05 < np.median(losses) < math.log(CLASSES) + 0.6


def test_overfits_one_batch(config):
    # processors round differently: with seed 0 and 150 steps SegNet without batch normalisation passed on one, and was
    # at .32 of the first loss on another; with these it is at .11, and all others below .04
    images, labels = rings(2)
    model = made(config, seed=1)
    losses = train(model, images, labels, steps=200)
    with torch.no_grad():
        wrong = (model(images).argmax(dim=1) != labels).float().mean()
    assert losses[-1] < 0.3 * losses[0]
    assert wrong < 0.5 * (labels != 0).float().mean(), "less than half of what plain background gets wrong"


def test_every_parameter_gets_a_gradient(config):
    model = made(config)
    images, labels = rings(4)
    F.cross_entropy(model(images), labels).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert without == []


def test_images_do_not_mix(config):
    model = made(config)
    images = noise(3, 3, 32, 32).requires_grad_()

    def reached() -> list[bool]:
        (gradient,) = torch.autograd.grad(model(images)[1].square().sum(), images)
        return gradient.flatten(1).any(dim=1).tolist()

    model.eval()
    assert reached() == [False, True, False]
    with torch.no_grad():
        torch.testing.assert_close(model(images)[1:2], model(images[1:2]), rtol=1e-4, atol=1e-5)
    model.train()
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        assert reached() == [True, True, True]  # the check bites: a batch's statistics do mix


def test_same_seed_same_loss(config):
    images, labels = rings(2)
    first, again, other = (train(made(config, seed), images, labels, steps=3) for seed in (5, 5, 6))
    assert first == again
    assert first != other


# Sizes and layouts


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size(config, size):
    model = made(config).eval()
    images = noise(2, 3, *size)
    with torch.no_grad():
        logits = model(images)
        changed = images.clone()
        changed[..., -1, -1] += 3.0
        moved = (model(changed) - logits).abs()
    assert logits.shape == (2, CLASSES, *size)
    assert logits.isfinite().all()
    assert moved[..., -1, -1].max() > 0, "the last row and column are seen"


@pytest.mark.parametrize("size", [(32, 32), (33, 50)], ids=str)
def test_channels_last_equals_planes(config, size):
    model = made(config).eval()
    images = noise(2, 3, *size)
    with torch.no_grad():
        planes = model(images)
        model.to(memory_format=torch.channels_last)
        interleaved = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(planes, interleaved, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_classes", [2, 3, 21])
def test_presets_keep_the_size(name, num_classes):
    logits = paper(name, num_classes)(torch.empty(2, 3, 97, 130, device="meta"))
    assert logits.shape == (2, num_classes, 97, 130)


def test_each_model_has_a_title():
    assert TITLES.keys() == MODELS.keys()
    assert len(set(TITLES.values())) == len(MODELS)


# U-Net


def test_unet_paper_has_31_million_parameters():
    assert sum(p.numel() for p in paper("unet_paper").parameters()) == pytest.approx(31.0e6, abs=0.05e6)


def test_unet_paper_layers():
    # figure 1: 23 convolutional layers, of which 18 are 3x3, 4 are 2x2 up-convolutions and one is 1x1
    model = paper("unet_paper")
    three = [conv for conv in convolutions(model) if conv.kernel_size == (3, 3)]
    assert [conv.out_channels for conv in three] == [
        *(64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024),
        *(512, 512, 256, 256, 128, 128, 64, 64),
    ]
    ups = [module for module in model.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert [(up.in_channels, up.out_channels, up.kernel_size) for up in ups] == [
        (1024, 512, (2, 2)),
        (512, 256, (2, 2)),
        (256, 128, (2, 2)),
        (128, 64, (2, 2)),
    ]
    assert model.head.kernel_size == (1, 1)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model.dropout.p == 0.5


@pytest.mark.parametrize(("skips", "widths"), [(True, [64, 32, 16, 8]), (False, [32, 16, 8, 4])])
def test_skips_widen_the_decoder(skips, widths):
    model = made(ModelConfig(name="unet", base_channels=4, skips=skips))
    assert [convolutions(stage)[0].in_channels for stage in model.decoder] == widths


@pytest.mark.parametrize("skips", [True, False])
def test_only_skips_pass_an_emptied_bottleneck(skips):
    model = made(ModelConfig(name="unet", base_channels=4, skips=skips)).eval()
    model.dropout.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    with torch.no_grad():
        first, second = model(noise(1, 3, 32, 32, seed=1)), model(noise(1, 3, 32, 32, seed=2))
    assert torch.equal(first, second) is not skips


def test_skip_hands_over_the_first_level():
    """The last decoder stage gets the first encoder level as it left it, then what comes from below."""
    model = made(ModelConfig(name="unet", base_channels=4)).eval()
    seen: dict[str, Tensor] = {}
    model.encoder[0].register_forward_hook(lambda module, inputs, output: seen.update(level=output.clone()))
    model.decoder[-1].register_forward_pre_hook(lambda module, inputs: seen.update(merged=inputs[0].clone()))
    with torch.no_grad():
        model(noise(2, 3, 33, 50))
    assert seen["merged"].shape == (2, 8, 33, 50)
    assert torch.equal(seen["merged"][:, :4], seen["level"])
    assert not torch.equal(seen["merged"][:, 4:], seen["level"])


def test_unet_takes_equal_convs_of_all_stages():
    model = made(ModelConfig(name="unet", base_channels=4, convs=(3, 3, 3, 3)))
    assert [len(convolutions(stage)) for stage in model.encoder] == [3] * 5


# SegNet


def test_segnet_paper_is_vgg16_and_its_mirror():
    model = paper("segnet_paper")
    encoder = convolutions(model.encoder)
    vgg16 = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    assert [conv.out_channels for conv in encoder] == vgg16
    assert [conv.in_channels for conv in encoder] == [3, *vgg16[:-1]]
    decoder = [*convolutions(model.decoder), model.head]
    assert [conv.in_channels for conv in decoder] == vgg16[::-1]
    assert [conv.out_channels for conv in decoder] == [*vgg16[-2::-1], CLASSES]
    assert {conv.kernel_size for conv in encoder + decoder} == {(3, 3)}
    # VGG16's 14,714,688 parameters of convolutions, less its 4,224 biases
    assert sum(conv.weight.numel() for conv in encoder) == 14_710_464


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ({"depth": 3}, [2, 2, 3]),
        ({"depth": 7}, [2, 2, 3, 3, 3, 3, 3]),
        ({"convs": 2}, [2] * 5),
        ({"convs": (1, 2, 3), "depth": 3}, [1, 2, 3]),
    ],
    ids=str,
)
def test_segnet_convs(given, counts):
    model = made(ModelConfig(name="segnet", base_channels=4, **given))
    assert [len(convolutions(stage)) for stage in model.encoder] == counts
    mirrored = [len(convolutions(stage)) for stage in model.decoder]
    mirrored[-1] += 1  # the head is the last convolution of the first stage's mirror
    assert mirrored == counts[::-1]
    with torch.no_grad():
        assert model.eval()(noise(1, 3, 19, 16)).shape == (1, CLASSES, 19, 16)


def both_ways(x: Tensor, indices: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Yields what `max_unpool` makes natively, then what its deterministic path makes."""
    yield max_unpool(x, indices, size)
    torch.use_deterministic_algorithms(True)
    try:
        yield max_unpool(x, indices, size)
    finally:
        torch.use_deterministic_algorithms(False)


def test_max_unpool_by_hand():
    image = torch.tensor([[1.0, 9, 2, 3], [4, 5, 8, 1], [7, 0, 1, 1], [2, 3, 1, 6]])[None, None]
    pooled, indices = F.max_pool2d(image, 2, return_indices=True)
    expected = torch.tensor([[0.0, 90, 0, 0], [0, 0, 80, 0], [70, 0, 0, 0], [0, 0, 0, 60]])[None, None]
    for result in both_ways(10 * pooled, indices, (4, 4)):
        assert torch.equal(result, expected)


def test_max_unpool_by_hand_odd():
    image = torch.tensor([[1.0, 9, 2], [4, 5, 8], [7, 0, -1]])[None, None]
    pooled, indices = F.max_pool2d(image, 2, ceil_mode=True, return_indices=True)
    expected = torch.tensor([[0.0, 9, 0], [0, 0, 8], [7, 0, -1]])[None, None]
    for result in both_ways(pooled, indices, (3, 3)):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels_last"])
def test_max_unpool_places_each_maximum_back(size, layout):
    image = noise(2, 5, *size).contiguous(memory_format=layout)
    pooled, indices = F.max_pool2d(image, 2, ceil_mode=True, return_indices=True)
    for result in both_ways(pooled, indices, size):
        assert result.shape == image.shape
        stands = result != 0
        assert torch.equal(result[stands], image[stands])
        assert stands.sum() == pooled.numel()
        assert torch.equal(F.max_pool2d(result.abs(), 2, ceil_mode=True), pooled.abs())


@pytest.mark.parametrize("size", [(32, 32), (33, 50)], ids=str)
def test_deterministic_path_is_bit_identical(size, deterministic):
    """Logits and every gradient of SegNet are the same to the bit, with and without deterministic algorithms."""
    images = noise(2, 3, *size)
    labels = torch.randint(0, CLASSES, (2, *size), generator=torch.Generator().manual_seed(3))

    def logits_and_gradients() -> list[Tensor]:
        model = made(VARIANTS["segnet"])
        logits = model(images)
        F.cross_entropy(logits, labels).backward()
        return [logits.detach(), *(parameter.grad for parameter in model.parameters())]

    scattered = logits_and_gradients()
    torch.use_deterministic_algorithms(False)
    native = logits_and_gradients()
    assert all(torch.equal(first, second) for first, second in zip(scattered, native, strict=True))


@pytest.mark.parametrize("name", ["segnet", "unet"])
@pytest.mark.parametrize(("upsampling", "depends"), [("indices", True), ("bilinear", False)])
def test_only_indices_pass_a_levelled_bottleneck(name, upsampling, depends):
    """With every bottleneck value 1, the decoder can know the image by the places of its maxima alone."""
    skips = False if name == "unet" else None
    model = made(ModelConfig(name=name, base_channels=4, skips=skips, upsampling=upsampling)).eval()
    model.dropout.register_forward_hook(lambda module, inputs, output: torch.ones_like(output))
    with torch.no_grad():
        first, second = model(noise(1, 3, 32, 32, seed=1)), model(noise(1, 3, 32, 32, seed=2))
    assert torch.equal(first, second) is not depends


def test_no_feature_map_crosses():
    """With an empty bottleneck nothing is left to place: the indices carry positions, no values."""
    model = made(VARIANTS["segnet"]).eval()
    model.dropout.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    with torch.no_grad():
        first, second = model(noise(1, 3, 32, 32, seed=1)), model(noise(1, 3, 32, 32, seed=2))
    assert torch.equal(first, second)


# Options


@pytest.mark.parametrize("name", ["unet", "segnet"])
def test_dropout_drops_channels_in_training_alone(name):
    model = made(ModelConfig(name=name, base_channels=4, dropout=0.5))
    dropped: list[Tensor] = []
    model.dropout.register_forward_hook(lambda module, inputs, output: dropped.append(output[inputs[0] > 0] == 0))
    with torch.no_grad():
        model(noise(4, 3, 64, 64))
        model.eval()(noise(4, 3, 64, 64))
    assert 0.3 < dropped[0].float().mean() < 0.7
    assert not dropped[1].any()


@pytest.mark.parametrize("name", ["unet", "segnet"])
def test_biases_stand_where_no_batch_norm_cancels_them(name):
    for batch_norm in (True, False):
        model = made(ModelConfig(name=name, base_channels=4, batch_norm=batch_norm))
        threes = convolutions(model.encoder) + convolutions(model.decoder)
        assert {conv.bias is None for conv in threes} == {batch_norm}
        assert model.head.bias is not None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ModelConfig(name="segnet", skips=False),
            r"^model\.skips was given for \'segnet\'.* \[overrides\.unet\.model\]$",
        ),
        (
            ModelConfig(name="segnet_paper", skips=True),
            r"^model\.skips was given for 'segnet_paper', .* it belongs to 'unet'",
        ),
        (
            ModelConfig(name="segnet", upsampling="transposed"),
            r"^model\.upsampling is 'transposed' for 'segnet'; choose one of: indices, bilinear$",
        ),
        (
            ModelConfig(name="segnet", convs=(2, 2, 3)),
            r"^model\.convs has 3 numbers for depth 5; give one for each stage$",
        ),
        (
            ModelConfig(name="unet", convs=(2, 2, 3, 3)),
            r"^model\.convs is \[2, 2, 3, 3\]; a U-Net takes one number for all its stages$",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, ModelConfig) else "",
)
def test_build_model_errors(config, message):
    with pytest.raises(PetsegError, match=message):
        build_model(config, CLASSES)


# What goes in


def test_normalise():
    assert normalise(torch.tensor([0.0, 0.5, 0.75, 1.0])).tolist() == [-2.0, 0.0, 1.0, 2.0]


def test_to_unit_range():
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3)
    unit = to_unit_range(images)
    assert unit.shape == (2, 3, 4, 5)
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit[1, 2, 3, 4] * 255, images[1, 3, 4, 2].float())
    assert to_unit_range(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)).tolist() == [[[[1.0]], [[1.0]], [[1.0]]]]
    assert images[0, 0, 1, 0] == 3, "the caller's picture is left alone"


# Baselines


LABELS = np.uint8([[[0, 0, 1], [2, 255, 1]], [[0, 1, 1], [2, 255, 0]], [[0, 0, 1], [0, 255, 1]]])


def test_mean_mask_by_hand():
    logits = MeanMask(LABELS, CLASSES)(torch.zeros(4, 3, 2, 3))
    assert logits.shape == (4, CLASSES, 2, 3)
    assert logits[0].argmax(dim=0)[0].tolist() == [0, 0, 1]
    assert logits[3].argmax(dim=0)[1].tolist()[::2] == [2, 1]
    # one seen more than counted: three 0s give (3 + 1) of 6, nothing but 255 gives each class the same
    torch.testing.assert_close(logits[0, :, 0, 0].exp(), torch.tensor([4.0, 1, 1]) / 6)
    torch.testing.assert_close(logits[0, :, 1, 0].exp(), torch.tensor([2.0, 1, 3]) / 6)
    torch.testing.assert_close(logits[0, :, 1, 1].exp(), torch.full((3,), 1 / 3))
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(4, 2, 3))


def test_mean_mask_everywhere_is_the_most_frequent_class():
    labels = np.where(LABELS == 0, np.uint8(2), np.where(LABELS == 2, np.uint8(0), LABELS))
    assert np.bincount(labels.ravel())[:CLASSES].tolist() == [2, 6, 7]
    logits = MeanMask(labels, CLASSES, everywhere=True)(torch.zeros(1, 3, 2, 3))
    assert logits.argmax(dim=1).unique().tolist() == [2]
    torch.testing.assert_close(logits[0, :, 1, 2].exp(), torch.tensor([3.0, 7, 8]) / 18)


def test_mean_mask_ignores_255():
    mostly_ignored = np.full((5, 2, 2), 255, np.uint8)
    mostly_ignored[0] = 1
    logits = MeanMask(mostly_ignored, 2, everywhere=True)(torch.zeros(1, 3, 2, 2))
    torch.testing.assert_close(logits[0, :, 0, 0].exp(), torch.tensor([1.0, 5]) / 6)


def test_baselines_are_named_apart():
    assert {everywhere for _, everywhere in BASELINES.values()} == {True, False}
    assert not BASELINES.keys() & MODELS.keys()
