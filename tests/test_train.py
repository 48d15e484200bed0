"""Training: schedule, resume, determinism, checkpoints, what stops a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from petseg.config import Recipe, RunConfig, TrainConfig, load_recipe
from petseg.data.cache import Prepared, prepare
from petseg.data.oxford_pets import get_task
from petseg.data.synthetic import make_pets
from petseg.errors import PetsegError
from petseg.models import build_model
from petseg.runs import read_metrics
from petseg.train import (
    Progress,
    best_epoch,
    choose_hardware,
    epoch_batches,
    learning_rate,
    load_splits,
    load_weights,
    make_optimiser,
    task_labels,
    train,
    validate,
)
from tests.conftest import TINY

CPU = choose_hardware("fp32", "cpu")


def tiny(model: str, *settings: str) -> RunConfig:
    return load_recipe("default", [*TINY, *settings]).for_model(model)


class KilledError(Exception):
    pass


def killed_after(steps: int):
    def stop(progress: Progress) -> None:
        if progress.step == steps:
            raise KilledError

    return stop


@pytest.mark.parametrize("model", ["unet", "segnet"])
@pytest.mark.parametrize("settings", [(), ("train.ema=0.9", "model.dropout=0.2")], ids=["plain", "ema and dropout"])
def test_a_resumed_run_equals_the_undisturbed_one_to_the_bit(
    model: str, settings: tuple[str, ...], prepared: Prepared, tmp_path: Path
) -> None:
    config = tiny(model, "train.epochs=3", "train.deterministic=true", *settings)
    whole = train(config, prepared, tmp_path / "whole", hardware=CPU)
    steps = len(epoch_batches(load_splits(prepared, config, CPU.device)["train"].rows, 1, config.train))
    assert steps > 1
    with pytest.raises(KilledError):
        train(config, prepared, tmp_path / "cut", hardware=CPU, on_progress=killed_after(2 * steps - 1))
    assert [row["epoch"] for row in read_metrics(tmp_path / "cut")] == [1]
    resumed = train(config, prepared, tmp_path / "cut", hardware=CPU, resume=True)

    def losses(rows: list[dict[str, float]]) -> list[tuple[float, float, float]]:
        return [(row["train_loss"], row["val_loss"], row["val_miou"]) for row in rows]

    assert losses(resumed) == losses(whole)
    for name in ("best", "last", "resume"):
        one, other = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "cut"))
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            assert torch.equal(tensor, other[key]), f"{name}: {key}"


def test_same_seed_same_losses_and_another_seed_others(prepared: Prepared, tmp_path: Path) -> None:
    runs = {
        name: train(tiny("unet", f"train.seed={seed}"), prepared, tmp_path / name, hardware=CPU)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    }
    first = {name: [row["train_loss"] for row in rows] for name, rows in runs.items()}
    assert first["a"] == first["b"]
    assert first["a"] != first["c"]


def test_training_lowers_the_loss_below_what_class_shares_give(prepared: Prepared, tmp_path: Path) -> None:
    history = train(
        tiny("unet", "train.epochs=25", "train.learning_rate=0.01"), prepared, tmp_path / "run", hardware=CPU
    )
    shares = np.bincount(prepared.trimaps.ravel(), minlength=4)[1:] / prepared.trimaps.size
    entropy = -float((shares * np.log(shares)).sum())
    assert history[-1]["val_loss"] < entropy
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_a_finished_run_resumes_to_itself_without_a_step(prepared: Prepared, tmp_path: Path) -> None:
    config = tiny("unet")
    history = train(config, prepared, tmp_path / "run", hardware=CPU)
    before = (tmp_path / "run" / "last.safetensors").stat().st_mtime_ns
    again = train(config, prepared, tmp_path / "run", hardware=CPU, resume=True, on_progress=killed_after(1))
    assert again == history
    assert (tmp_path / "run" / "last.safetensors").stat().st_mtime_ns == before


def test_best_weights_are_those_of_the_best_epoch(prepared: Prepared, tmp_path: Path) -> None:
    config = tiny("unet", "train.epochs=4")
    history = train(config, prepared, tmp_path / "run", hardware=CPU)
    model = build_model(config.model, 3)
    epoch = load_weights(model, tmp_path / "run" / "best.safetensors")
    assert epoch == best_epoch(history)
    scores = validate(model, load_splits(prepared, config, CPU.device)["val"], 3, CPU)
    assert scores["val_miou"] == pytest.approx(history[epoch - 1]["val_miou"], abs=1e-6)
    assert scores["val_miou"] == pytest.approx(max(row["val_miou"] for row in history), abs=1e-6)


def test_an_existing_folder_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(PetsegError, match=r"exists; go on with --resume, or choose another"):
        train(tiny("unet"), prepared, tmp_path / "run", hardware=CPU)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_resuming_with_another_config_is_refused_by_field(prepared: Prepared, tmp_path: Path) -> None:
    train(tiny("unet"), prepared, tmp_path / "run", hardware=CPU)
    with pytest.raises(PetsegError, match=r"train\.learning_rate is 0\.003 there, 0\.1 now"):
        train(tiny("unet", "train.learning_rate=0.1"), prepared, tmp_path / "run", hardware=CPU, resume=True)


def test_resuming_on_other_pictures_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    train(tiny("unet"), prepared, tmp_path / "run", hardware=CPU)
    other = prepare(make_pets(tmp_path / "others", per_breed=6, breeds=4, size=48, seed=5), 32)
    with pytest.raises(PetsegError, match="holds work on other pictures"):
        train(tiny("unet", "train.epochs=2"), other, tmp_path / "run", hardware=CPU, resume=True)


def test_pictures_of_another_size_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(PetsegError, match=r"prepared at 32 px, data\.size is 64"):
        train(tiny("unet", "data.size=64"), prepared, tmp_path / "run", hardware=CPU)
    assert not (tmp_path / "run").exists()


def test_a_kill_between_the_best_weights_and_the_epoch_keeps_the_old_best(prepared: Prepared, tmp_path: Path) -> None:
    config = tiny("unet", "train.epochs=3", "train.deterministic=true")
    whole = train(config, prepared, tmp_path / "whole", hardware=CPU)
    steps = len(epoch_batches(load_splits(prepared, config, CPU.device)["train"].rows, 1, config.train))
    with pytest.raises(KilledError):
        train(config, prepared, tmp_path / "cut", hardware=CPU, on_progress=killed_after(2 * steps - 1))
    # as a kill leaves it: a best of an epoch that was never kept, the older best set aside
    (tmp_path / "cut" / "best.safetensors").replace(tmp_path / "cut" / "best.previous.safetensors")
    weights = load_file(tmp_path / "cut" / "last.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "cut" / "best.safetensors", {"epoch": "2"}
    )
    assert train(config, prepared, tmp_path / "cut", hardware=CPU, resume=True)[-1]["val_loss"] == whole[-1]["val_loss"]
    one, other = (load_file(tmp_path / run / "best.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert not (tmp_path / "cut" / "best.previous.safetensors").exists()


def test_weights_ruined_by_an_epoch_s_last_step_are_not_kept(prepared: Prepared, tmp_path: Path) -> None:
    """The losses before each step were fine; only validation sees it."""
    rows = load_splits(prepared, tiny("unet"), CPU.device)["train"].rows
    config = tiny(
        "unet", f"train.batch_size={len(rows)}", "train.learning_rate=1e30", "train.warmup=0", "model.batch_norm=false"
    )
    with pytest.raises(PetsegError, match=r"the validation loss is not a number after epoch 1"):
        train(config, prepared, tmp_path / "run", hardware=CPU)
    assert not (tmp_path / "run" / "resume.safetensors").exists()


def test_a_loss_that_is_not_a_number_stops_and_names_the_step(prepared: Prepared, tmp_path: Path) -> None:
    config = tiny(
        "unet", "train.learning_rate=1e18", "train.warmup=0", "train.gradient_clip=0", "model.batch_norm=false"
    )
    with pytest.raises(PetsegError, match=r"the loss is not a number at step [2-9] \(epoch 1\)"):
        train(config, prepared, tmp_path / "run", hardware=CPU)
    assert not (tmp_path / "run" / "last.safetensors").exists()


@pytest.mark.parametrize(("damage", "message"), [(b"", "damaged"), (b"\x08\0\0\0\0\0\0\0{}      ", "damaged")])
def test_a_damaged_checkpoint_is_said(damage: bytes, message: str, prepared: Prepared, tmp_path: Path) -> None:
    config = tiny("unet")
    train(config, prepared, tmp_path / "run", hardware=CPU)
    (tmp_path / "run" / "resume.safetensors").write_bytes(damage)
    with pytest.raises(PetsegError, match=message):
        train(config, prepared, tmp_path / "run", hardware=CPU, resume=True)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in build_model(tiny("segnet").model, 3).state_dict().items()}
    save_file(weights, tmp_path / "best.safetensors", metadata={"epoch": "1"})
    with pytest.raises(PetsegError, match="weights of another model"):
        load_weights(build_model(tiny("unet").model, 3), tmp_path / "best.safetensors")
    with pytest.raises(PetsegError, match="no such weights"):
        load_weights(build_model(tiny("unet").model, 3), tmp_path / "none.safetensors")


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    config = TrainConfig(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert max(rates) == rates[10]


@pytest.mark.parametrize("count", [7, 8, 9, 16, 17])
def test_an_epoch_shows_every_picture_once_and_no_batch_is_single(count: int) -> None:
    config = TrainConfig(batch_size=8, seed=3)
    batches = epoch_batches(np.arange(count), 1, config)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert min(map(len, batches)) > 1
    assert np.concatenate(batches).tolist() == np.concatenate(epoch_batches(np.arange(count), 1, config)).tolist()
    assert np.concatenate(batches).tolist() != np.concatenate(epoch_batches(np.arange(count), 2, config)).tolist()


def test_both_models_see_the_same_pictures_in_the_same_order(prepared: Prepared) -> None:
    orders = []
    for model in ("unet", "segnet"):
        config = tiny(model)
        rows = load_splits(prepared, config, CPU.device)["train"].rows
        orders.append(np.concatenate(epoch_batches(rows, 1, config.train)).tolist())
    assert orders[0] == orders[1]


def test_labels_follow_the_task(prepared: Prepared) -> None:
    labels = task_labels(prepared, get_task("species"))
    for pet, trimap, label in zip(prepared.pets, prepared.trimaps, labels, strict=True):
        assert set(np.unique(label[trimap == 1])) == {pet.species}
        assert set(np.unique(label[trimap == 2])) == {0}
        assert set(np.unique(label[trimap == 3])) <= {255}


def test_norms_and_biases_do_not_decay() -> None:
    model = build_model(tiny("unet").model, 3)
    groups = make_optimiser(model, TrainConfig(weight_decay=0.1)).param_groups
    by_decay = {group["weight_decay"]: group["params"] for group in groups}
    assert {parameter.ndim for parameter in by_decay[0.1]} == {4}
    assert {parameter.ndim for parameter in by_decay[0.0]} == {1}
    assert sum(map(len, by_decay.values())) == len(list(model.parameters()))


@pytest.mark.parametrize(
    "settings",
    [
        ("train.dice_weight=1",),
        ("train.class_weights=median_frequency",),
        ("data.task=species",),
        ("data.task=pet", "data.border=ignore"),
    ],
    ids=" ".join,
)
def test_options_of_loss_and_task_train(settings: tuple[str, ...], prepared: Prepared, tmp_path: Path) -> None:
    history = train(tiny("segnet", *settings, "train.epochs=6"), prepared, tmp_path / "run", hardware=CPU)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_the_seed_protocol_has_no_test_split(prepared: Prepared) -> None:
    splits = load_splits(prepared, tiny("unet", "protocol=seed"), CPU.device)
    assert set(splits) == {"train", "val"}
    assert not set(splits["train"].rows) & set(splits["val"].rows)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(PetsegError, match="device 'tpu9'"):
        choose_hardware("auto", "tpu9")


def test_the_recipe_fixture_is_the_default_made_small(tiny_recipe: Recipe) -> None:
    assert tiny_recipe.for_model("segnet") == tiny("segnet")


def test_tensorboard_missing_is_said(prepared: Prepared, tmp_path: Path) -> None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(PetsegError, match=r"petseg\[tensorboard\]"):
            train(tiny("unet", "train.tensorboard=true"), prepared, tmp_path / "run", hardware=CPU)
    else:
        train(tiny("unet", "train.tensorboard=true"), prepared, tmp_path / "run", hardware=CPU)
        assert list((tmp_path / "run" / "tensorboard").iterdir())
