"""Every model and ablation learns, takes any size, and is the network that its paper describes.

Axis letters: N batch, C classes, D features, H and W pixels.
"""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from petseg.config import ModelConfig, Recipe
from petseg.errors import PetsegError
from petseg.evaluation.cost import count_macs, on_meta
from petseg.models import (
    MODELS,
    Builder,
    Input,
    build_model,
    model_input,
    pretrain,
    run_config,
    title_of,
    to_unit_range,
)
from petseg.models.baselines import BASELINES, MeanMask
from petseg.models.segnet import max_unpool
from tests.conftest import refused

CLASSES = 3

# every name and ablation, narrow enough for a processor; the papers' own widths are built on the meta device below
VARIANTS = {
    **{name: ModelConfig(name=name, base_channels=4) for name in MODELS},
    "unet without skips": ModelConfig(name="unet", base_channels=4, skips=False),
    "unet bilinear": ModelConfig(name="unet", base_channels=4, skips=False, upsampling="bilinear"),
    "unet indices": ModelConfig(name="unet", base_channels=4, skips=False, upsampling="indices"),
    "unet without batch norm": ModelConfig(name="unet", base_channels=4, batch_norm=False),
    "unet added skips": ModelConfig(name="unet", base_channels=4, merge="add", channels=[4, 7, 9, 12, 20]),
    "segnet bilinear": ModelConfig(name="segnet", base_channels=4, upsampling="bilinear"),
    "segnet with skips": ModelConfig(name="segnet", base_channels=4, skips=True, last_pooling=False, depth=3),
    # three stages: He's weights expect full maps, unpooled ones are three quarters zero, so without batch normalisation
    # each stage shrinks the signal (at five the first logits deviate by .005): 200 steps may not suffice
    "segnet without batch norm": ModelConfig(name="segnet", base_channels=4, depth=3, batch_norm=False),
}
CONVS = [({"depth": 7}, [2, 2, 3, 3, 3, 3, 3]), ({"convs": 2}, [2] * 5), ({"convs": (1, 2, 3), "depth": 3}, [1, 2, 3])]
LABELS = np.uint8([[[0, 0, 1], [2, 255, 1]], [[0, 1, 1], [2, 255, 0]], [[0, 0, 1], [0, 255, 1]]])


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def config(request):
    return request.param


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def built(config, seed=0):
    torch.manual_seed(seed)
    return build_model(config, CLASSES)


def small(name, **options):
    return built(ModelConfig(name=name, base_channels=4, **options)).eval()


def paper(name, num_classes=CLASSES):
    with torch.device("meta"):
        return build_model(ModelConfig(name=name), num_classes)


def noise(*shape, seed=0):
    return Input().normalise(torch.rand(*shape, generator=torch.Generator().manual_seed(seed)))


def rings(count, size=32):
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = torch.zeros(count, size, size, dtype=torch.int64)
    for index in range(count):
        distance = torch.hypot(row - 9.0 - 4 * index, column - 20.0 + 3 * index)
        labels[index] = (distance < 9).long() + (distance < 5).long()
    colours = F.one_hot(labels, CLASSES).permute(0, 3, 1, 2).float()
    noisy = 0.6 * colours + 0.4 * torch.rand(colours.shape, generator=torch.Generator().manual_seed(1))
    return Input().normalise(noisy), labels


def train(model, images, labels, steps, enough=lambda losses: False):
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if len(losses) % 20 == 0 and enough(losses):
            break
    return losses


def convolutions(modules):
    return [module for module in modules.modules() if isinstance(module, nn.Conv2d)]


def test_initial_loss(config):
    # He's weights give logits of variance about 1, which costs about (1 - 1/C) / 2 = .33 nats over ln C; without batch
    # normalisation the skips add up (seeds ran up to 3.3), hence the wide side. A head ten times too large gives 7.
    labels = torch.randint(0, CLASSES, (4, 32, 32), generator=torch.Generator().manual_seed(2))
    losses = [F.cross_entropy(built(config, seed)(noise(4, 3, 32, 32)), labels).item() for seed in range(5)]
    assert math.log(CLASSES) - 0.05 < np.median(losses) < math.log(CLASSES) + 0.6


def test_overfits_one_batch(config):
    # processors round differently: with seed 0 and 150 steps SegNet without batch normalisation passed on one, and was
    # at .32 of the first loss on another; after all 200 steps with this seed it is at .11, and all others below .04
    images, labels = rings(2)
    model = built(config, seed=1)

    def learnt(losses):
        with torch.no_grad():
            wrong = (model(images).argmax(dim=1) != labels).float().mean()
        # less than half of what plain background gets wrong
        return losses[-1] < 0.3 * losses[0] and wrong < 0.5 * (labels != 0).float().mean()

    assert learnt(train(model, images, labels, 200, enough=learnt))


def test_every_parameter_gets_a_gradient(config):
    model = built(config)
    images, labels = rings(4)
    F.cross_entropy(model(images), labels).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in gradients.values()), gradients


def test_images_do_not_mix(config):
    model = built(config)
    images = noise(3, 3, 32, 32).requires_grad_()

    def reached():
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
    first, again, other = (train(built(config, seed), images, labels, steps=3) for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (45, 16), (32, 32), (33, 50)], ids=str)
def test_any_size_and_layout(config, size):
    model, images = built(config).eval(), noise(2, 3, *size)
    changed = images.clone()
    changed[..., -1, -1] += 3.0
    with torch.no_grad():
        logits, others = model(images), model(changed)
        model.to(memory_format=torch.channels_last)
        interleaved = model(images.contiguous(memory_format=torch.channels_last))
    assert logits.shape == (2, CLASSES, *size)
    assert logits.isfinite().all()
    assert (others != logits)[..., -1, -1].any(), "the last row and column are seen"
    torch.testing.assert_close(interleaved, logits, rtol=1e-4, atol=1e-5)


def test_unet_paper_and_options():
    # figure 1: 23 convolutional layers, of which 18 are 3x3, 4 are 2x2 up-convolutions and one is 1x1
    assert paper("unet_paper", 21)(torch.empty(2, 3, 97, 130, device="meta")).shape == (2, 21, 97, 130)
    model = paper("unet_paper")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(31.0e6, abs=0.05e6)
    three = [conv for conv in convolutions(model) if conv.kernel_size == (3, 3)]
    widths = [conv.out_channels for conv in three]
    assert widths[:10] == [64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024]
    assert widths[10:] == [512, 512, 256, 256, 128, 128, 64, 64]
    ups = [module for module in model.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert [(up.in_channels, up.out_channels) for up in ups] == [(1024, 512), (512, 256), (256, 128), (128, 64)]
    assert {up.kernel_size for up in ups} == {(2, 2)}
    assert model.head.kernel_size == (1, 1)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model.dropout.p == 0.5
    for skips, widths in ((True, [64, 32, 16, 8]), (False, [32, 16, 8, 4])):
        assert [convolutions(stage)[0].in_channels for stage in small("unet", skips=skips).decoder] == widths
    assert [len(convolutions(stage)) for stage in small("unet", convs=3).encoder] == [3] * 5


def test_the_tutorials_network_is_the_books():
    # listing 9.2 of the book: pairs of 64, 128 and 256 channels, the first of each pair with a stride of 2; mirrored
    model = paper("tutorial")
    halved = [(conv.out_channels, conv.stride[0]) for conv in convolutions(model.encoder)]
    assert halved == [(64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)]
    ups = [module for module in model.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert [(up.out_channels, up.stride[0]) for up in ups] == [(256, 1), (256, 2), (128, 1), (128, 2), (64, 1), (64, 2)]
    assert {conv.kernel_size for conv in [*convolutions(model), *ups]} == {(3, 3)}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_880_643, "as Keras counts it"
    # values in 0..1 go in, as its rescaling layer leaves them
    image = torch.rand(1, 3, 16, 16)
    assert torch.equal(model_input(ModelConfig(name="tutorial")).normalise(image), image)


def same_logits(name, bottleneck, **options):
    model = small(name, **options)
    model.dropout.register_forward_hook(lambda module, inputs, output: torch.full_like(output, bottleneck))
    with torch.no_grad():
        return torch.equal(model(noise(1, 3, 32, 32, seed=1)), model(noise(1, 3, 32, 32, seed=2)))


def test_what_reaches_the_decoder_beside_the_deepest_map():
    """Skips carry values. Indices carry places alone: with nothing to place, nothing."""
    assert not same_logits("unet", 0.0)
    assert same_logits("unet", 0.0, skips=False)
    assert same_logits("segnet", 0.0)
    for name, options in (("segnet", {}), ("unet", {"skips": False})):
        assert not same_logits(name, 1.0, upsampling="indices", **options)
        assert same_logits(name, 1.0, upsampling="bilinear", **options)
    # the last decoder stage gets the first encoder level as it left it, then what comes from below
    model, seen = small("unet"), {}
    model.encoder[0].register_forward_hook(lambda module, inputs, output: seen.update(level=output.clone()))
    model.decoder[-1].register_forward_pre_hook(lambda module, inputs: seen.update(merged=inputs[0].clone()))
    with torch.no_grad():
        model(noise(2, 3, 33, 50))
    assert seen["merged"].shape == (2, 8, 33, 50)
    assert torch.equal(seen["merged"][:, :4], seen["level"])
    assert not torch.equal(seen["merged"][:, 4:], seen["level"])


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


@pytest.fixture(scope="module")
def vgg16():
    """Returns VGG16-BN's thirteen layers with drawn weights, as torchvision builds and names them."""
    torch.manual_seed(3)
    layers, before = [], 3
    for width in [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        nn.init.normal_(layers[-3].bias, std=0.3)
        for tensor in (layers[-2].running_mean, layers[-2].bias):
            nn.init.normal_(tensor, std=0.1)
        nn.init.uniform_(layers[-2].running_var, 0.5, 1.5)
        before = width
    model = nn.Module()
    model.features, model.classifier = nn.Sequential(*layers), nn.Linear(8, 2)
    return model.eval()


def test_segnet_starts_from_vgg16s_weights_and_normalisation(vgg16, tmp_path):
    torch.save(vgg16.state_dict(), tmp_path / "vgg16_bn.pth")
    config = ModelConfig(name="segnet_paper", encoder_weights=str(tmp_path / "vgg16_bn.pth"))
    model = built(config).eval()
    image, fresh = noise(1, 3, 64, 64), model.state_dict()["encoder.0.0.weight"].clone()
    pretrain(config, model)
    assert not torch.equal(model.state_dict()["encoder.0.0.weight"], fresh)
    with torch.no_grad():
        ours = image
        for stage in model.encoder:
            ours = F.max_pool2d(stage(ours), 2, 2)
        torch.testing.assert_close(ours, vgg16.features(image), rtol=1e-3, atol=1e-4)
    assert model_input(config) == Input((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32)
    assert model_input(ModelConfig(name="segnet_paper")) == Input(multiple=32)
    shallow = ModelConfig(name="segnet_paper", depth=4, encoder_weights=str(tmp_path / "vgg16_bn.pth"))
    four = built(shallow)
    pretrain(shallow, four)
    assert torch.equal(four.encoder[3][6].weight, vgg16.features[30].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("features.40.bias"), r"lacks 'features\.40\.bias'; wanted torchvision's vgg16_bn"),
        (lambda tensors: tensors.update({"features.3.weight": torch.zeros(9)}), r"features\.3 and features\.4 are of"),
        (lambda tensors: tensors.pop("features.41.running_mean"), r"12 batch normalisations `features\.N`"),
    ],
)
def test_other_weights_than_vgg16s_are_refused(change, message, vgg16, tmp_path):
    tensors = vgg16.state_dict()
    change(tensors)
    torch.save(tensors, tmp_path / "weights.pth")
    config = ModelConfig(name="segnet_paper", encoder_weights=str(tmp_path / "weights.pth"))
    refused(message, pretrain, config, built(config))


@pytest.mark.parametrize(("given", "counts"), CONVS)
def test_segnet_convs(given, counts):
    model = small("segnet", **given)
    assert [len(convolutions(stage)) for stage in model.encoder] == counts
    mirrored = [len(convolutions(stage)) for stage in model.decoder]
    mirrored[-1] += 1  # the head is the last convolution of the first stage's mirror
    assert mirrored == counts[::-1]
    with torch.no_grad():
        assert model(noise(1, 3, 19, 16)).shape == (1, CLASSES, 19, 16)


def both_ways(x, indices, size):
    yield max_unpool(x, indices, size)
    with deterministic():
        yield max_unpool(x, indices, size)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels_last"])
def test_max_unpool_places_each_maximum_back(size, layout):
    by_hand = torch.tensor([[[[1.0, 9, 2], [4, 5, 8], [7, 0, -1]]]])
    pooled, indices = F.max_pool2d(by_hand, 2, ceil_mode=True, return_indices=True)
    for result in both_ways(10 * pooled, indices, (3, 3)):
        assert result[0, 0].tolist() == [[0, 90, 0], [0, 0, 80], [70, 0, -10]]
    image = noise(2, 5, *size).contiguous(memory_format=layout)
    pooled, indices = F.max_pool2d(image, 2, ceil_mode=True, return_indices=True)
    for result in both_ways(pooled, indices, size):
        assert result.shape == image.shape
        stands = result != 0
        assert torch.equal(result[stands], image[stands])
        assert stands.sum() == pooled.numel()
        assert torch.equal(F.max_pool2d(result.abs(), 2, ceil_mode=True), pooled.abs())


@pytest.mark.parametrize("size", [(32, 32), (33, 50)], ids=str)
def test_deterministic_path_is_bit_identical(size):
    images = noise(2, 3, *size)
    labels = torch.randint(0, CLASSES, (2, *size), generator=torch.Generator().manual_seed(3))

    def logits_and_gradients():
        model = built(VARIANTS["segnet"])
        logits = model(images)
        F.cross_entropy(logits, labels).backward()
        return [logits.detach(), *(parameter.grad for parameter in model.parameters())]

    native = logits_and_gradients()
    with deterministic():
        assert all(torch.equal(first, second) for first, second in zip(logits_and_gradients(), native, strict=True))


def test_segnet_basic_has_the_paper_s_parameters_and_context():
    with torch.device("meta"):
        model = build_model(ModelConfig(name="segnet_basic"), 11)
    # arXiv 1511.00561, Table 1: 1.425 M; with 64 channels, 7x7, no bias, a 1x1 classifier of CamVid's 11 classes
    convolutions = 3 * 64 * 49 + 7 * 64 * 64 * 49
    own = sum(parameter.numel() for parameter in model.parameters())
    assert own == convolutions + 8 * 2 * 64 + 64 * 11 + 11 == pytest.approx(1.425e6, rel=0.01)
    assert not any(isinstance(module, torch.nn.ReLU) for module in model.decoder.modules())
    # section 3: a value of the deepest map sees 106 x 106 pixels of the image
    model, image = small("segnet_basic").double(), torch.zeros(1, 3, 160, 160, dtype=torch.float64, requires_grad=True)
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.constant_(norm.bias, 1.0)
    x = image + 1e-6 * torch.rand_like(image)
    for stage in model.encoder:
        x = F.avg_pool2d(stage(x), 2)
    x[0, :, 5, 5].sum().backward()
    seen = image.grad.abs().sum(dim=(0, 1)) > 0
    assert max(int(seen.any(dim=side).sum()) for side in (0, 1)) == 106


def test_the_bridging_arms_cost_what_segnet_costs():
    def cost(**options):
        config = ModelConfig(name="segnet", depth=5, **options)
        return sum(p.numel() for p in on_meta(config, CLASSES).parameters()), count_macs(config, CLASSES, 96)

    for options in ({"last_pooling": False}, {"upsampling": "bilinear"}, {"skips": True, "merge": "add"}):
        assert cost(**options) == cost(), options
    assert cost(skips=True)[1] > cost()[1]


@pytest.mark.parametrize("name", ["unet", "segnet"])
def test_dropout_drops_in_training_alone_and_biases_stand_where_no_batch_norm_cancels_them(name):
    model = small(name, dropout=0.5)
    dropped = []
    model.dropout.register_forward_hook(lambda module, inputs, output: dropped.append(output[inputs[0] > 0] == 0))
    with torch.no_grad():
        model.train()(noise(4, 3, 64, 64))
        model.eval()(noise(4, 3, 64, 64))
    assert 0.3 < dropped[0].float().mean() < 0.7
    assert not dropped[1].any()
    for batch_norm in (True, False):
        model = small(name, batch_norm=batch_norm)
        threes = convolutions(model.encoder) + convolutions(model.decoder)
        assert {conv.bias is None for conv in threes} == {batch_norm}
        assert model.head.bias is not None


WRONG_OPTIONS = [
    ("unett", {}, r"^model 'unett' is unknown; choose one of: unet, "),
    ("unet", {"chanels": 3}, r"^option of model 'unet' 'chanels' is unknown; choose one of: channels, "),
    ("unet", {"last_pooling": False}, r"^model\.last_pooling was given for 'unet', .* \[overrides\.segnet\.model\]$"),
    ("unet_paper", {"last_pooling": True}, r"^model\.last_pooling was given for 'unet_paper', .* belongs to 'segnet'"),
    ("segnet", {"channels": [4, 8]}, r"channels has 2 numbers for depth 5; wanted 5$"),
    ("segnet", {"upsampling": "transposed"}, r"'transposed' is unknown; choose one of: indices, bilinear$"),
    ("segnet", {"convs": (2, 2, 3)}, r"convs has 3 numbers for depth 5; give one for each stage$"),
    ("segnet", {"convs": "two"}, r"convs is 'two'; input should be a valid integer$"),
    ("segnet", {"convs": 9}, r"convs is 9; input should be less than or equal to 8$"),
    ("unet", {"convs": (2, 2, 3, 3)}, r"convs is \(2, 2, 3, 3\); input should be a valid integer$"),
    ("unet", {"convs": True}, r"convs is True; input should be a valid integer$"),
    ("unet", {"convs": 0}, r"convs is 0; input should be greater than or equal to 1$"),
    ("unet", {"base_channels": 257}, r"base_channels is 257; input should be less than or equal to 256$"),
    ("segnet", {"depth": 8}, r"depth is 8; input should be less than or equal to 7$"),
    ("unet", {"depth": 0}, r"depth is 0; input should be greater than or equal to 1$"),
    ("segnet", {"encoder_weights": "x.pth"}, r"with base_channels 16, .*VGG16-BN has 64, .*: take segnet_paper$"),
    (
        "segnet",
        {"encoder_weights": "x", "base_channels": 64, "convs": 2},
        r"convs \[2, 2, 2, 2, 2\].*take segnet_paper$",
    ),
    ("unet", {"dropout": 1}, r"dropout is 1; input should be less than 1$"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG_OPTIONS)
def test_wrong_options(name, options, message):
    for call in (lambda config: build_model(config, CLASSES), model_input):
        said = refused(message, lambda call=call: call(ModelConfig(name=name, **options)))
        assert repr(name) in said, "it names the model"
    with torch.device("meta"):  # the ends of each range
        build_model(ModelConfig(name="unet", base_channels=256, depth=1, convs=1, dropout=0), CLASSES)
        build_model(ModelConfig(name="segnet", base_channels=1, depth=7, convs=8, dropout=0.99), CLASSES)


def test_multiples_and_a_network_from_elsewhere(monkeypatch):
    assert [model_input(ModelConfig(name=name)).multiple for name in MODELS] == [16, 32, 16, 32, 16, 8]
    assert model_input(ModelConfig(name="segnet", depth=3)) == Input(multiple=8)
    monkeypatch.setitem(MODELS, "mine", Builder("My network", lambda num_classes: nn.Conv2d(3, num_classes, 1)))
    assert build_model(ModelConfig(name="mine"), 5)(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 8, 8)
    assert model_input(ModelConfig(name="mine")) == Input(multiple=1)
    with pytest.raises(PetsegError, match=r"^model\.depth was given for 'mine', which has no such option"):
        build_model(ModelConfig(name="mine", depth=3), 5)
    assert [title_of(name) for name in ("mine", "unet", "gone")] == ["My network", "U-Net", "gone"]


def test_a_name_may_bring_options():
    recipe = Recipe(models=("segnet", "segnet@depth=4@convs=2"), overrides={"segnet": {"train": {"epochs": 7}}})
    config = run_config(recipe, "segnet@depth=4@convs=2")
    assert (config.model, config.train.epochs) == (ModelConfig(name="segnet", depth=4, convs=2), 7)
    assert run_config(recipe, "segnet").model == ModelConfig(name="segnet")
    refused(r"^model\.last_pooling was given for 'unet'", run_config, recipe, "unet@last_pooling=false")
    refused(r"^option of model 'segnet' 'dept' is unknown", run_config, recipe, "segnet@dept=4")
    assert len({builder.title for builder in MODELS.values()}) == len(MODELS)


def test_to_unit_range_and_normalise_by_channel():
    assert Input().normalise(torch.tensor([0.0, 0.5, 0.75, 1.0])).tolist() == [-2.0, 0.0, 1.0, 2.0]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.25)
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = (images.numpy() - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]
    for layout in (torch.contiguous_format, torch.channels_last):
        given = images.contiguous(memory_format=layout)
        torch.testing.assert_close(Input(mean, std).normalise(given), torch.from_numpy(expected))
    grey = torch.full((1, 3, 1, 1), 0.5)
    assert Input((0.5, 0.5, 0.25)).normalise(grey).flatten().tolist() == [0.0, 0.0, 1.0], "one channel's own mean"
    assert Input(std=(0.5, 0.5, 0.25)).normalise(grey + 0.5).flatten().tolist() == [1.0, 1.0, 2.0]
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3)
    unit = to_unit_range(images)
    assert (unit.shape, unit.dtype) == ((2, 3, 4, 5), torch.float32)
    torch.testing.assert_close(unit[1, 2, 3, 4] * 255, images[1, 3, 4, 2].float())
    assert (to_unit_range(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)) == 1).all()
    assert images[0, 0, 1, 0] == 3, "the caller's image is left alone"


def test_mean_mask_by_hand():
    logits = MeanMask(iter(LABELS), CLASSES)(torch.zeros(4, 3, 2, 3))
    assert (logits.shape, logits[0].argmax(dim=0)[0].tolist()) == ((4, CLASSES, 2, 3), [0, 0, 1])
    assert logits[3].argmax(dim=0)[1].tolist()[::2] == [2, 1]
    # one seen more than counted: three 0s give (3 + 1) of 6, nothing but 255 gives each class the same
    torch.testing.assert_close(logits[0, :, 0, 0].exp(), torch.tensor([4.0, 1, 1]) / 6)
    torch.testing.assert_close(logits[0, :, 1, 0].exp(), torch.tensor([2.0, 1, 3]) / 6)
    torch.testing.assert_close(logits[0, :, 1, 1].exp(), torch.full((3,), 1 / 3))
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(4, 2, 3))
    assert {everywhere for _, everywhere in BASELINES.values()} == {True, False}
    assert not BASELINES.keys() & MODELS.keys()
    # everywhere it is the most frequent class
    labels = np.where(LABELS == 0, np.uint8(2), np.where(LABELS == 2, np.uint8(0), LABELS))
    assert np.bincount(labels.ravel())[:CLASSES].tolist() == [2, 6, 7]
    logits = MeanMask(labels, CLASSES, everywhere=True)(torch.zeros(1, 3, 2, 3))
    assert logits.argmax(dim=1).unique().tolist() == [2]
    torch.testing.assert_close(logits[0, :, 1, 2].exp(), torch.tensor([3.0, 7, 8]) / 18)
    mostly_ignored = np.full((5, 2, 2), 255, np.uint8)
    mostly_ignored[0] = 1
    logits = MeanMask(mostly_ignored, 2, everywhere=True)(torch.zeros(1, 3, 2, 2))
    torch.testing.assert_close(logits[0, :, 0, 0].exp(), torch.tensor([1.0, 5]) / 6)
