"""Checkpoints: a resumed run is the undisturbed one, the best weights are of the best epoch, damage is reported."""

import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from petseg.config import ModelConfig
from petseg.errors import PetsegError
from petseg.models import build_model
from petseg.training.batches import epoch_batches, load_splits
from petseg.training.checkpoint import best_epoch, load_weights
from petseg.training.inference import build_network, validate
from petseg.training.runs import read_config, read_metrics
from tests.conftest import CPU, interrupted_at, prepare_for, refused, tiny, train_on_cpu


def cut_in_the_second_epoch(config, prepared, run):
    steps = len(epoch_batches(load_splits(prepared, config, CPU.device)["train"].rows, 1, config.train))
    assert steps > 1
    with pytest.raises(KeyboardInterrupt):
        train_on_cpu(config, prepared, run, on_step=interrupted_at(2 * steps - 1))
    assert [row.epoch for row in read_metrics(run)] == [1]


def without_times(rows):
    return [row.model_copy(update={"seconds": 0, "train_seconds": 0, "other_seconds": 0}) for row in rows]


def same_tensors(one, other):
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("model", ["unet", "segnet"])
@pytest.mark.parametrize("settings", [(), ("train.ema=0.9", "model.dropout=0.2")], ids=["plain", "ema and dropout"])
def test_a_resumed_run_equals_the_undisturbed_one_to_the_bit(model, settings, prepared, tmp_path):
    config = tiny("train.epochs=3", "train.deterministic=true", *settings, model=model)
    whole = train_on_cpu(config, prepared, tmp_path / "whole")
    cut_in_the_second_epoch(config, prepared, tmp_path / "cut")
    resumed = train_on_cpu(config, prepared, tmp_path / "cut", resume=True)
    assert without_times(resumed) == without_times(whole)
    for name in ("best.safetensors", "last.safetensors", "resume.safetensors"):
        assert same_tensors(tmp_path / "whole" / name, tmp_path / "cut" / name), name


@pytest.mark.parametrize("epochs", [1, 2], ids=["cut after the frozen epoch", "cut within the frozen epochs"])
def test_a_resumed_fine_tuning_equals_the_undisturbed_one_to_the_bit(epochs, prepared, tmp_path):
    train_on_cpu(tiny(), prepared, tmp_path / "first")
    tuning = (f"train.init={tmp_path / 'first'}", f"train.frozen_epochs={epochs}", "train.encoder_rate=0.1")
    config = tiny("train.epochs=3", "train.deterministic=true", "train.ema=0.9", *tuning)
    whole = train_on_cpu(config, prepared, tmp_path / "whole")
    cut_in_the_second_epoch(config, prepared, tmp_path / "cut")
    assert without_times(train_on_cpu(config, prepared, tmp_path / "cut", resume=True)) == without_times(whole)
    for name in ("best.safetensors", "last.safetensors", "resume.safetensors"):
        assert same_tensors(tmp_path / "whole" / name, tmp_path / "cut" / name), name


def encoders(run):
    weights = load_file(run / "last.safetensors")
    counted = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    statistics = {name for name in counted if "running" in name or "num_batches" in name}
    return counted, statistics


FINE_TUNING = [  # settings, and what of the encoder has changed after two epochs: weights, statistics
    (("train.frozen_epochs=2",), False, False),
    (("train.frozen_epochs=1",), True, True),
    (("train.encoder_batch_norm=frozen",), True, False),
    (("train.encoder_rate=0",), False, True),
]


@pytest.mark.parametrize(("settings", "weights", "statistics"), FINE_TUNING)
def test_what_fine_tuning_leaves_of_an_encoder_as_it_is(settings, weights, statistics, prepared, tmp_path):
    train_on_cpu(tiny(), prepared, tmp_path / "first")
    before = load_file(tmp_path / "first" / "best.safetensors")
    train_on_cpu(tiny(f"train.init={tmp_path / 'first'}", *settings), prepared, tmp_path / "run")
    after, counted = encoders(tmp_path / "run")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert (bool(changed - counted), bool(changed & counted)) == (weights, statistics)
    head = load_file(tmp_path / "run" / "last.safetensors")["head.weight"]
    assert not torch.equal(head, before["head.weight"]), "the rest trains"
    train_on_cpu(tiny(*settings), prepared, tmp_path / "drawn")
    assert same_tensors(*(tmp_path / place / "last.safetensors" for place in ("drawn", "first"))), "of weights drawn"


def test_a_finished_run_resumes_to_itself_without_a_step(prepared, tmp_path):
    # options given as a tuple are a list in the run's file
    config = tiny().model_copy(update={"model": ModelConfig(name="segnet", base_channels=4, convs=(1,) * 5)})
    history = train_on_cpu(config, prepared, tmp_path / "run")
    before = (tmp_path / "run" / "last.safetensors").stat().st_mtime_ns
    assert train_on_cpu(config, prepared, tmp_path / "run", resume=True, on_step=interrupted_at(1)) == history
    assert (tmp_path / "run" / "last.safetensors").stat().st_mtime_ns == before


def test_best_weights_are_those_of_the_best_epoch(prepared, tmp_path):
    config = tiny("train.epochs=4")
    history = train_on_cpu(config, prepared, tmp_path / "run")
    network = build_network(config.model, 3, CPU)
    epoch = load_weights(network.module, tmp_path / "run" / "best.safetensors")
    assert epoch == best_epoch(history)
    scores = validate(network, load_splits(prepared, config, CPU.device)["val"])
    assert scores.val_miou == pytest.approx(history[epoch - 1].val_miou, abs=1e-6)
    assert scores.val_miou == pytest.approx(max(row.val_miou for row in history), abs=1e-6)
    assert best_epoch([row.model_copy(update={"val_miou": 0.5}) for row in history]) == 1, "the first of equals"


def test_a_kill_between_the_best_weights_and_the_epoch_keeps_the_old_best(prepared, tmp_path):
    config = tiny("train.epochs=3", "train.deterministic=true", "model.depth=4")  # whose last epoch is its best
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    history = train_on_cpu(config, prepared, whole)
    cut_in_the_second_epoch(config, prepared, cut)
    # as a kill leaves it: a best of an epoch that was never kept, the older best set aside
    (cut / "best.safetensors").replace(cut / "best.previous.safetensors")
    weights = {name: tensor + 1 for name, tensor in load_file(cut / "last.safetensors").items()}
    save_file(weights, cut / "best.safetensors", {"epoch": "2"})
    assert train_on_cpu(config, prepared, cut, resume=True)[-1].val_loss == history[-1].val_loss
    assert same_tensors(whole / "best.safetensors", cut / "best.safetensors")
    assert not (cut / "best.previous.safetensors").exists()


def test_a_finished_run_takes_more_epochs_where_it_is_asked_to(prepared, tmp_path):
    first = train_on_cpu(tiny("train.epochs=1"), prepared, tmp_path / "run")
    more = tiny("train.epochs=3")
    with pytest.raises(PetsegError, match=r"train\.epochs is 1 there, 3 now"):  # as in a comparison
        train_on_cpu(more, prepared, tmp_path / "run", resume=True)
    history = train_on_cpu(more, prepared, tmp_path / "run", resume=True, more_epochs=True)
    assert (history[:1], len(history)) == (first, 3)
    assert read_config(tmp_path / "run") == more
    with pytest.raises(PetsegError, match=r"train\.epochs is 3 there, 2 now"):
        train_on_cpu(tiny("train.epochs=2"), prepared, tmp_path / "run", resume=True, more_epochs=True)


def test_training_stops_early_and_a_resumed_run_stays_stopped(prepared, tmp_path):
    config = tiny("train.epochs=30", "train.patience=2", "train.learning_rate=1e-9")
    history = train_on_cpu(config, prepared, tmp_path / "run")
    assert len(history) == best_epoch(history) + 2 < 30
    assert train_on_cpu(config, prepared, tmp_path / "run", resume=True, on_step=interrupted_at(1)) == history


def test_training_starts_from_the_weights_of_another_run(prepared, pets_folder, tmp_path):
    train_on_cpu(tiny(), prepared, tmp_path / "first")
    weights = load_file(tmp_path / "first" / "best.safetensors")
    still = (f"train.init={tmp_path / 'first'}", "train.learning_rate=1e-12", "train.weight_decay=0", "train.epochs=1")
    train_on_cpu(tiny(*still), prepared, tmp_path / "same")
    found = load_file(tmp_path / "same" / "last.safetensors")
    assert all(torch.allclose(found[name], weights[name]) for name in weights if "weight" in name)
    two = tiny(*still, "task=pet")
    train_on_cpu(two, prepare_for(two, pets_folder), tmp_path / "two")
    found = load_file(tmp_path / "two" / "last.safetensors")
    assert {name for name in weights if found[name].shape != weights[name].shape} == {"head.weight", "head.bias"}
    assert all(torch.allclose(found[n], weights[n]) for n in weights if "weight" in n and "head" not in n)
    for place, told in (("segnet", "weights of another network"), ("nowhere", "no such weights")):
        config = tiny(f"train.init={tmp_path / 'first' if place == 'segnet' else place}", model="segnet")
        refused(told, train_on_cpu, config, prepared, tmp_path / place)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_weights_are_as_readable_as_the_files_beside_them(umask, mode, prepared, tmp_path):
    before = os.umask(umask)
    try:
        train_on_cpu(tiny("train.epochs=1"), prepared, tmp_path / "run")
    finally:
        os.umask(before)
    files = ("best.safetensors", "last.safetensors", "resume.safetensors", "config.json")
    assert {stat.S_IMODE((tmp_path / "run" / name).stat().st_mode) for name in files} == {mode}


def test_weights_of_another_model_are_refused(tmp_path):
    model, path = build_model(tiny().model, 3), tmp_path / "best.safetensors"
    refused("no such weights", load_weights, model, path)
    save_file(build_model(tiny(model="segnet").model, 3).state_dict(), path, {"epoch": "1"})
    refused("weights of another model", load_weights, model, path)
