"""Training starts from a shipped model or an exported file: the network computes what the file does."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from petseg.config import ModelConfig
from petseg.data.dataset import classes_from
from petseg.errors import PetsegError
from petseg.export.onnx import export_model
from petseg.export.openvino import drawn_images
from petseg.models import to_unit_range
from petseg.models.builder import Input
from petseg.predict.segmenter import Segmenter
from petseg.shipped import WEIGHTS, shipped_models
from petseg.training import start
from petseg.training.inference import build_network
from petseg.training.loop import train
from petseg.training.runs import read_config
from petseg.training.start import load_initial, load_teacher, model_of, read_model
from tests.cli.test_commands import one_line_error, petseg, succeeds
from tests.conftest import CPU, prepare_for, tiny, train_on_cpu
from tests.export.test_onnx import CLASSES

SEEN = to_unit_range(torch.from_numpy(drawn_images(96)[:8]))
OTHERS = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)


def probabilities(network, images):
    with torch.no_grad():
        return network.logits(to_unit_range(torch.from_numpy(images))).softmax(dim=1).numpy()


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_is_computed_by_the_network_that_it_was(name):
    if model_of(name).name.startswith("timm:"):
        pytest.importorskip("timm", reason="NO MODELS: pip install 'petseg[models]'")
    network = build_network(model_of(name), len(read_model(name).classes), CPU)
    load_initial(network, name, [SEEN])
    segmenter = Segmenter(name)
    assert np.abs(probabilities(network, OTHERS) - segmenter.probabilities(OTHERS)).max() < 2e-3
    # in training batch normalisation goes by the images at hand: here those that it was filled with
    network.module.train()
    for module in network.module.modules():
        module.training &= not isinstance(module, torch.nn.Dropout)
    with torch.no_grad():
        trained = network.logits(SEEN).softmax(dim=1).numpy()
    images = (SEEN * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    assert np.abs(trained - segmenter.probabilities(images)).max() < 2e-2


@pytest.mark.parametrize(
    "model",
    [ModelConfig(name="unet", depth=2, base_channels=8), ModelConfig(name="segnet_paper", depth=2, base_channels=8)],
)
def test_a_file_gives_back_the_network_that_was_exported(model, tmp_path):
    torch.manual_seed(0)
    first = build_network(model, 3, CPU)
    for name, value in first.module.state_dict().items():
        if value.ndim == 1:  # biases, and all of batch normalisation
            torch.nn.init.uniform_(value, 0.5 if name.endswith("_var") else -0.5, 1.5)
    first.module.eval()
    file = tmp_path / "model.onnx"
    export_model(first, {"classes": CLASSES, "size": 64, "config": {"model": model.model_dump()}}, file, fp16=False)
    assert model_of(str(file)) == model
    second = build_network(model, 3, CPU)
    load_initial(second, str(file), [SEEN])
    assert np.abs(probabilities(first, OTHERS) - probabilities(second, OTHERS)).max() < 2e-3
    five = build_network(model, 5, CPU)
    head = [name for name, value in five.module.state_dict().items() if 5 in value.shape]
    drawn = {name: five.module.state_dict()[name].clone() for name in head}
    load_initial(five, str(file), [SEEN])
    assert head
    assert all(torch.equal(five.module.state_dict()[name], value) for name, value in drawn.items())


def test_statistics_are_those_of_all_batches():
    whole, parts = (build_network(model_of("unet_small"), 4, CPU) for _ in range(2))
    load_initial(whole, "unet_small", [SEEN])
    load_initial(parts, "unet_small", SEEN.split([5, 2, 1]))
    for one, other in zip(whole.module.state_dict().values(), parts.module.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_weights_for_images_of_another_normalisation_are_refused():
    network = build_network(model_of("unet_small"), 4, CPU)
    other = replace(network, input=Input((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    file = replace(read_model("unet_small"), input=network.input)
    start._load_file(network, file, [SEEN])
    with pytest.raises(PetsegError, match="its images have mean and deviation"):
        start._load_file(other, file, [SEEN])


def test_the_command_trains_the_network_that_the_weights_are_of(pets_folder, tmp_path):
    common = ("--data", pets_folder, "--set", "size=32", "--set", "ramp=[]", "--set", "epochs=1", "--threads", "1")
    succeeds("train", "base", "--init", "unet_small", *common, "--out", tmp_path / "first", "--set", "dropout=0.1")
    config = read_config(tmp_path / "first").model  # not the recipe's width; but the user's dropout
    assert (config.name, config.options["base_channels"], config.options["dropout"]) == ("unet", 16, 0.1)
    again = ("train", "base", "--set", f"train.init={tmp_path / 'first'}", *common, "--out", tmp_path / "second")
    succeeds(*again)
    shutil.rmtree(tmp_path / "first")  # what goes on needs it no longer
    succeeds(*again, "--set", "epochs=2", "--resume")
    compared = ("compare", "--models", "unet,segnet", "--set", "train.init=unet_small", *common)
    refused = petseg(*compared, "--out", tmp_path / "compared")
    assert "unet_small: " in one_line_error(refused)
    assert not (tmp_path / "compared" / "runs").exists(), "before anything is trained"


def test_training_goes_on_from_a_shipped_model(pets_folder, tmp_path):
    config = tiny(
        "train.init=unet_small", "model.base_channels=16", "model.depth=4", "task=trimap_species", "train.epochs=1"
    )
    prepared = prepare_for(config, pets_folder)
    train_on_cpu(config, prepared, tmp_path / "run")
    taught = tiny("train.teacher=unet_small", "task=trimap_species", "train.epochs=1")
    train(taught, prepared, tmp_path / "taught")
    teacher = load_teacher("unet_small", prepared.dataset.classes, CPU, 32)
    assert not teacher.module.training
    assert np.abs(probabilities(teacher, OTHERS) - Segmenter("unet_small").probabilities(OTHERS)).max() < 2e-3
    with pytest.raises(PetsegError, match="knows cat, dog, background, border; wanted leaf"):
        load_teacher("unet_small", classes_from(["leaf", "soil"]), CPU, 32)


def test_what_holds_no_such_weights_is_refused(tmp_path):
    network = build_network(ModelConfig(name="unet", base_channels=8), 4, CPU)
    for source, told in (
        ("nowhere", "no such weights; wanted the folder of a trained run, .* segnet_small"),
        (str(tmp_path / "none.onnx"), "cannot be read"),
        ("unet_small", r"unet_small: weights of another network; train the network of these weights \(leave --"),
        ("segnet_small", r"holds no decoder.* of this network; train the network .*, or give the folder of its run"),
    ):
        with pytest.raises(PetsegError, match=told):
            load_initial(network, source, [SEEN])
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes((WEIGHTS / "unet_small.onnx").read_bytes()[:50_000])
    foreign = tmp_path / "foreign.onnx"
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), foreign)
    for path in (damaged, foreign):
        with pytest.raises(PetsegError, match="not a model that `petseg export` wrote"):
            load_initial(network, str(path), [SEEN])
