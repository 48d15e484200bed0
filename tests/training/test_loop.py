"""The training loop: determinism, what is refused, what stops a run, options."""

import math
import re
import shutil
from dataclasses import asdict
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from petseg.config import ModelConfig, RunConfig, TrainConfig, load_recipe
from petseg.data.cache import prepare
from petseg.data.sources import open_dataset
from petseg.data.synthetic import make_pets
from petseg.errors import DivergedError, PetsegError
from petseg.evaluation.evaluate import load_run
from petseg.experiments.compare import Plan, compare
from petseg.models import Input, build_model
from petseg.schema import InputInfo, write_record
from petseg.storage import read_json
from petseg.training import distributed
from petseg.training.batches import load_splits
from petseg.training.inference import build_network, new_network
from petseg.training.loop import epoch_seed, learning_rate, make_optimiser
from tests.conftest import CPU, TINY, interrupted_at, prepare_for, refused, tiny, train_on_cpu


def test_same_seed_same_losses_and_another_seed_others(prepared, tmp_path):
    first, again, other = (
        [row.train_loss for row in train_on_cpu(tiny(f"train.seed={seed}"), prepared, tmp_path / place)]
        for seed, place in ((0, "first"), (0, "again"), (1, "other"))
    )
    assert first == again
    assert first != other


def test_the_caller_s_random_numbers_go_on_as_if_nothing_had_been_trained(prepared, tmp_path):
    def then(trains):
        torch.manual_seed(7)
        trains()
        return torch.rand(3).tolist()

    def stopped():
        with pytest.raises(KeyboardInterrupt):
            train_on_cpu(tiny(), prepared, tmp_path / "stopped", on_step=interrupted_at(2))

    untouched = then(lambda: None)
    assert then(lambda: train_on_cpu(tiny("model.dropout=0.5"), prepared, tmp_path / "run")) == untouched
    assert then(stopped) == untouched


def test_training_lowers_the_loss_below_what_class_shares_give(prepared, tmp_path):
    config = tiny("train.epochs=25", "train.learning_rate=0.01")
    history = train_on_cpu(config, prepared, tmp_path / "run")
    shares = np.bincount(prepared.labels.ravel(), minlength=3)[:3] / prepared.labels.size
    assert history[-1].val_loss < -float((shares * np.log(shares)).sum())
    assert history[-1].train_loss < history[0].train_loss


OWN = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, num_classes, 1)
    def forward(self, image):
        return self.head(self.encoder(image).relu())
class Half(Net):
    def forward(self, image):
        return super().forward(image)[..., ::2, ::2]
class Pair(Net):
    def forward(self, image):
        return super().forward(image), 1
class Bad(Net):
    def forward(self, image):
        return self.head(image)
class Wide(Net):
    def __init__(self, num_classes, width):
        super().__init__(num_classes)
class Two(Net):
    def forward(self, image):
        logits = super().forward(image)
        return (logits, logits) if self.training else logits
class Frozen(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.requires_grad_(False)
class Empty(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.channels = [0] * num_classes
    def forward(self, image):
        return image[:, self.channels]
class Constant(Net):
    def forward(self, image):
        with torch.no_grad():
            return super().forward(image)
class Replaced(Net):
    def forward(self, image):
        logits = super().forward(image).sigmoid()
        return logits.mul_(2) if self.training else logits
class Lazy(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.head = nn.LazyConv2d(num_classes, 1)
def Words(num_classes):
    return "a network"
number = 3
"""
STILL = ("Frozen", "Empty", "Constant")
OWN_REFUSED = [
    ("Half", r"gives \[2, 3, 16, 16\] for images \[2, 3, 32, 32\]; wanted logits \[2, 3, 32, 32\]$"),
    ("Pair", r"gives tuple for images \[2, 3, 32, 32\]; wanted logits"),
    ("Bad", r"cannot compute images of 32 px \(RuntimeError: .*; mend the network or take another size$"),
    ("Wide", r"TypeError: .*missing 1 required positional argument: 'width'; it is called with num_classes alone$"),
    ("Two", r"gives tuple for images \[2, 3, 32, 32\] in training mode; wanted logits \[2, 3, 32, 32\]$"),
    *((name, r"cannot be trained \(no parameter gets a gradient\); mend the network$") for name in STILL),
    ("Replaced", r"cannot be trained \(RuntimeError: .*inplace operation.*\); mend the network$"),
    ("Lazy", r"has parameters without a shape, as LazyConv2d; give each layer its input channels$"),
    ("Words", r"gives str; wanted a torch\.nn\.Module$"),
    ("number", r"TypeError: 'int' object is not callable; it is called with num_classes alone$"),
    ("Nothing", r"AttributeError: .*'Nothing'; wanted a class in a Python file$"),
]


@pytest.mark.parametrize(("name", "message"), OWN_REFUSED)
def test_a_network_of_ones_own_that_is_none_is_said_before_training(name, message, prepared, tmp_path):
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    config = RunConfig(model=ModelConfig(name=f"{tmp_path}/mine.py:{name}"), data=tiny().data, train=tiny().train)
    refused(rf"^model '.*mine\.py:{name}': {message}", train_on_cpu, config, prepared, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["Two", "Empty", "Constant", "Lazy"])
def test_a_comparison_refuses_a_network_that_cannot_be_trained(name, prepared, tmp_path):
    (tmp_path / "mine.py").write_text(OWN, encoding="utf-8")
    recipe = load_recipe("default", TINY).model_copy(update={"models": ("unet", f"{tmp_path}/mine.py:{name}")})
    refused(rf"^model '.*mine\.py:{name}': ", compare, Plan(recipe, CPU, "a test"), prepared, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_is_tried_without_a_trace():
    """Weights, statistics and torch's random numbers are those of a network that was not tried."""
    config, found = tiny("model.dropout=0.5"), []
    for build in (lambda: build_network(config.model, 3, CPU), lambda: new_network(config, 3, CPU)):
        torch.manual_seed(7)
        found.append((build().module.state_dict(), torch.get_rng_state()))
    (plain, plain_random), (tried, tried_random) = found
    assert plain.keys() == tried.keys()
    assert all(torch.equal(value, tried[name]) for name, value in plain.items())
    assert torch.equal(plain_random, tried_random)
    network = new_network(config, 3, CPU).module
    assert not any(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_normalisation_is_written_down_and_goes_on_from_there(prepared, tmp_path):
    """A library may give an encoder another normalisation in another version; a run keeps its own."""
    run = tmp_path / "run"
    train_on_cpu(tiny("train.epochs=1"), prepared, run)
    assert read_json(run / "input.json") == {"mean": [0.5] * 3, "std": [0.25] * 3, "multiple": 4}
    before = load_run(run, CPU).network
    other = Input((0.4, 0.5, 0.6), (0.2, 0.2, 0.3), 4)
    write_record(run / "input.json", InputInfo(**asdict(other)))
    network = load_run(run, CPU).network
    assert (before.input, network.input) == (Input(multiple=4), other)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(before.logits(image), network.logits(image))


OPTIONS = [
    ("train.dice_weight=1",),
    ("train.class_weights=median_frequency",),
    ("data.oxford_pets.task=species",),
    ("data.oxford_pets.task=pet", "data.oxford_pets.border=ignore"),
]


@pytest.mark.parametrize("settings", OPTIONS, ids=" ".join)
def test_options_of_loss_and_task_train(settings, pets_folder, tmp_path):
    config = tiny(*settings, "train.epochs=6", model="segnet")
    history = train_on_cpu(config, prepare_for(config, pets_folder), tmp_path / "run")
    assert history[-1].train_loss < history[0].train_loss


def test_a_ramp_trains_small_first_and_validates_at_the_full_size(prepared, tmp_path):
    config = tiny("train.epochs=3", "train.ramp=[16]")
    network = type(build_model(config.model, 3))
    sides = {True: [], False: []}

    def look(module, inputs):
        if type(module) is network:
            sides[module.training].append(inputs[0].shape[-1])

    with torch.nn.modules.module.register_module_forward_pre_hook(look):
        train_on_cpu(config, prepared, tmp_path / "run")
    assert [config.side(epoch) for epoch in (1, 2, 3)] == [16, 16, 32]
    tried, *validated = sides[False]  # a first pass of the smallest image, before the folder is made
    assert (tried, set(sides[True]), set(validated)) == (16, {16, 32}, {32})
    assert sides[True] == sorted(sides[True])


REFUSED = [
    ("train.epochs=1", r"run folder .*exists; resume it \(--resume\), or choose another"),
    ("data.size=64", r"prepared at 32 px, the recipe wants 64 px"),
    ("train.ramp=[64]", r"^overrides.unet: train.ramp is \[64\] and data.size 32; a ramp holds smaller sides"),
    ("train.compile=true", r"train.compile is true, but there is no C\+\+ compiler .*no-such-compiler"),
]


@pytest.mark.parametrize(("setting", "message"), REFUSED)
def test_what_cannot_start_leaves_the_folder_as_it_is(setting, message, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    (tmp_path / "thesis.txt").write_text("mine")
    refused(message, lambda: train_on_cpu(tiny(setting), prepared, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_resuming_with_another_config_or_on_other_images_is_refused(prepared, tmp_path):
    train_on_cpu(tiny("train.epochs=1"), prepared, tmp_path / "run")
    with pytest.raises(PetsegError, match=r"train\.learning_rate is 0\.003 there, 0\.1 now"):
        train_on_cpu(tiny("train.epochs=1", "train.learning_rate=0.1"), prepared, tmp_path / "run", resume=True)
    other = prepare(open_dataset(make_pets(tmp_path / "others", per_breed=6, breeds=4, size=48, seed=5)), 32)
    refused("holds work on other images", train_on_cpu, tiny("train.epochs=1"), other, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        # the losses before each step were fine; only validation sees it
        (("train.batch_size=1000", "train.learning_rate=1e30"), r"the validation loss is not a number after epoch 1"),
        (("train.learning_rate=1e18", "train.gradient_clip=0"), r"the loss is not a number at step [2-9] \(epoch 1\)"),
    ],
)
def test_a_loss_that_is_not_a_number_stops_and_is_not_kept(settings, message, prepared, tmp_path):
    with pytest.raises(DivergedError, match=message):
        train_on_cpu(tiny("train.warmup=0", "model.batch_norm=false", *settings), prepared, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_the_rate_warms_up_and_norms_and_biases_do_not_decay():
    config = TrainConfig(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == max(rates) == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    model = build_model(tiny().model, 3)
    groups = make_optimiser(model, TrainConfig(weight_decay=0.1)).param_groups
    by_decay = {group["weight_decay"]: group["params"] for group in groups}
    assert {parameter.ndim for parameter in by_decay[0.1]} == {4}
    assert {parameter.ndim for parameter in by_decay[0.0]} == {1}
    assert sum(map(len, by_decay.values())) == len(list(model.parameters()))


def test_the_rate_that_is_written_down_is_not_an_encoder_s(prepared, tmp_path):
    train_on_cpu(tiny("train.epochs=1"), prepared, tmp_path / "first")
    config = tiny("train.epochs=1", f"train.init={tmp_path / 'first'}", "train.encoder_rate=0.1")
    (row,) = train_on_cpu(config, prepared, tmp_path / "run")
    steps = math.ceil(len(prepared.dataset.splits["train"]) / config.train.batch_size)
    assert row.learning_rate == pytest.approx(learning_rate(steps - 1, steps, config.train))


def test_ranks_draw_apart_and_the_first_as_one_process_does(monkeypatch):
    assert epoch_seed(3, 2) == 3 * 1_000_003 + 2
    seeds = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        seeds += [epoch_seed(seed, epoch) for seed in (0, 1) for epoch in (1, 2)]
    assert len({*seeds}) == len(seeds)
    assert torch.Generator().manual_seed(epoch_seed(2**40 - 1, 10_000))


def test_a_batch_without_a_labelled_pixel_is_no_divergence_and_a_split_without_one_is_said(pets_folder, tmp_path):
    config = tiny("task=species", "train.batch_size=2", "train.dice_weight=1")
    folder = shutil.copytree(pets_folder, tmp_path / "pets")
    splits = prepare_for(config, folder).dataset.splits

    def with_border_alone(ids):
        for path in (folder / "annotations" / "trimaps" / f"{name}.png" for name in ids):
            Image.fromarray(np.full_like(np.asarray(Image.open(path)), 3)).save(path)
        return prepare_for(config, folder)

    one_of_each = with_border_alone(splits["train"][1:-1])  # a cat and a dog
    history = train_on_cpu(config, one_of_each, tmp_path / "run")
    assert all(math.isfinite(row.train_loss) for row in history)
    assert set(load_splits(with_border_alone(splits["test"]), config, CPU.device)) == {"train", "val"}
    with pytest.raises(PetsegError, match=r"22 training and 0 validation images can be used; .* with labelled pixels"):
        load_splits(with_border_alone(splits["val"]), config, CPU.device)


def test_a_loss_that_explodes_is_said(prepared, tmp_path, caplog):
    config = tiny("model.depth=4", "train.epochs=1", "train.learning_rate=1", "train.warmup=0")
    (row,) = train_on_cpu(config, prepared, tmp_path)
    assert row.val_loss > 1e6
    advice = r"the model learnt nothing; try a lower train\.learning_rate in another folder"
    told = rf"petseg: warning: .*: validation loss [\d.e+]+ is more than twice a guess's, 1\.10: {advice}"
    assert re.fullmatch(told, caplog.messages[-1])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_run_learns_what_the_plain_one_does(prepared, tmp_path):
    losses = {}
    for compiled in ("false", "true"):
        config = tiny("train.epochs=1", f"train.compile={compiled}", "train.ema=0.9", "model.depth=1", "model.convs=1")
        (row,) = train_on_cpu(config, prepared, tmp_path / compiled)
        losses[compiled] = row.train_loss, row.val_loss
        assert all("_orig_mod" not in name for name in load_file(tmp_path / compiled / "best.safetensors"))
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-3)


def test_tensorboard_is_written_or_its_absence_reported(prepared, tmp_path):
    config = tiny("train.epochs=1", "train.tensorboard=true")
    if find_spec("tensorboard") is None:
        refused(r"petseg\[tensorboard\]", train_on_cpu, config, prepared, tmp_path / "run")
    else:
        train_on_cpu(config, prepared, tmp_path / "run")
        assert list((tmp_path / "run" / "tensorboard").iterdir())
