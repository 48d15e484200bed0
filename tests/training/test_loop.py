"""Training: schedule, resume, determinism, checkpoints, what stops a run."""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
import sys
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
from petseg.evaluation.evaluate import evaluate_run
from petseg.models import build_model
from petseg.training.loop import (
    Progress,
    best_epoch,
    choose_hardware,
    epoch_batches,
    learning_rate,
    load_splits,
    load_weights,
    make_optimiser,
    right_species,
    scored,
    task_labels,
    train,
    validate,
)
from petseg.training.runs import read_metrics
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
    scores = validate(model, load_splits(prepared, config, CPU.device)["val"], get_task("trimap"), CPU)
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
    for name in ("resume", "resume.previous"):
        (tmp_path / "run" / f"{name}.safetensors").write_bytes(damage)
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


def test_cat_and_dog_are_scored_as_one_pet_and_by_species() -> None:
    task = get_task("trimap_species")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 4, 6, 6, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 255], dtype=torch.uint8)[torch.randint(0, 5, (4, 6, 6), generator=generator)]
    merged, truth = scored(logits, labels, task)
    probabilities = logits.softmax(dim=1)
    expected = torch.stack([probabilities[:, 0] + probabilities[:, 1], probabilities[:, 2], probabilities[:, 3]], dim=1)
    assert torch.allclose(merged.softmax(dim=1), expected, atol=1e-6)
    for before, after in ((0, 0), (1, 0), (2, 1), (3, 2), (255, 255)):
        assert (truth[labels == before] == after).all()
    trimap = get_task("trimap")
    assert scored(logits, labels, trimap) == (logits, labels)
    assert right_species(logits, labels, trimap) == []

    # all cats; half of the pictures look like dogs, one shows no pet and does not count
    labels = torch.zeros(5, 6, 6, dtype=torch.uint8)
    labels[4] = 2
    logits = torch.zeros(5, 4, 6, 6)
    logits[:2, 0] = 1.0
    logits[2:, 1] = 1.0
    assert right_species(logits, labels, task) == [True, True, False, False]


@pytest.mark.parametrize("name", ["trimap", "trimap_species"])
def test_both_trimap_tasks_give_the_same_kind_of_scores(name: str, prepared: Prepared, tmp_path: Path) -> None:
    config = tiny("unet", f"task={name}", "train.epochs=1")
    (row,) = train(config, prepared, tmp_path / "run", hardware=CPU)
    evaluation = evaluate_run(tmp_path / "run", prepared, CPU, split="val")
    assert list(evaluation.scores["iou"]) == ["pet", "background", "border"]
    assert evaluation.confusions.shape[1:] == (3, 3)
    assert evaluation.scores["cross_entropy"] == pytest.approx(row["val_loss"], rel=1e-5)
    if name == "trimap_species":
        assert evaluation.scores["species_accuracy"] == row["val_species"]
        assert evaluation.scores["species_images"] == len(evaluation.names)


def test_a_batch_can_be_reduced_and_keeps_its_labels_values(prepared: Prepared) -> None:
    pictures = load_splits(prepared, tiny("unet"), CPU.device)["train"]
    images, labels = pictures.batch(pictures.rows[:5])
    small_images, small_labels = pictures.batch(pictures.rows[:5], 16)
    assert small_images.shape == (5, 3, 16, 16)
    assert small_labels.shape == (5, 16, 16)
    assert small_labels.dtype == torch.uint8
    assert set(small_labels.unique().tolist()) <= set(labels.unique().tolist())
    # 32 to 16 px: antialiased means stay, and a label is one of its 2x2 block
    assert torch.allclose(small_images.mean(dim=(2, 3)), images.mean(dim=(2, 3)), atol=0.01)
    blocks = labels.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    assert (blocks == small_labels[..., None]).any(dim=-1).all()


def test_a_ramp_trains_small_first_and_validates_at_the_full_size(prepared: Prepared, tmp_path: Path) -> None:
    seen = []
    config = tiny("unet", "train.epochs=3", "train.ramp=[16]")
    model = build_model(config.model, 3)
    assert [config.side(epoch) for epoch in (1, 2, 3)] == [16, 16, 32]
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: (
            seen.append((module.training, inputs[0].shape[-1])) if type(module) is type(model) else None
        )
    )
    try:
        train(config, prepared, tmp_path / "run", hardware=CPU)
    finally:
        handle.remove()
    sides = {training: [side for was, side in seen if was == training] for training in (True, False)}
    assert sorted(set(sides[True])) == [16, 32]
    assert sides[True] == sorted(sides[True])
    assert set(sides[False]) == {32}


def test_a_ramp_above_the_size_is_refused() -> None:
    with pytest.raises(
        PetsegError, match=r"^overrides.unet: train.ramp is \[64\] and data.size 32; a ramp holds smaller sides, rising"
    ):
        tiny("unet", "train.ramp=[64]")


def test_keeping_freed_memory_changes_no_number(pets_folder: Path, tmp_path: Path) -> None:
    """In a process of its own: the setting cannot be taken back."""
    script = (
        "import sys, json, torch; from pathlib import Path; torch.set_num_threads(1)\n"
        "from petseg.config import load_recipe; from petseg.data.cache import prepare\n"
        "from petseg.training.loop import train, choose_hardware, keep_freed_memory\n"
        "kept = keep_freed_memory() if sys.argv[1] == 'keep' else None\n"
        f"config = load_recipe('default', {list(TINY)}).for_model('segnet')\n"
        "cpu, pets = choose_hardware('fp32', 'cpu'), prepare(Path(sys.argv[2]), 32)\n"
        "rows = train(config, pets, Path(sys.argv[3]), hardware=cpu)\n"
        "print(json.dumps([kept, [row['val_loss'] for row in rows]]))\n"
    )
    told = {
        mode: json.loads(
            subprocess.run(
                [sys.executable, "-c", script, mode, str(pets_folder), str(tmp_path / mode)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for mode in ("keep", "plain")
    }
    assert told["keep"][1] == told["plain"][1]
    assert told["keep"][0] is (sys.platform == "linux" and platform.libc_ver()[0] == "glibc")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_run_learns_what_the_plain_one_does(prepared: Prepared, tmp_path: Path) -> None:
    losses = {}
    for compiled in ("false", "true"):
        config = tiny("unet", "train.epochs=1", f"train.compile={compiled}", "train.ema=0.9")
        (row,) = train(config, prepared, tmp_path / compiled, hardware=CPU)
        losses[compiled] = row["train_loss"], row["val_loss"]
        assert all("_orig_mod" not in name for name in load_file(tmp_path / compiled / "best.safetensors"))
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-3)


def test_compiling_without_a_compiler_is_refused(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PetsegError, match=r"train.compile is true, but there is no C\+\+ compiler .*no-such-compiler"):
        train(tiny("unet", "train.compile=true"), prepared, tmp_path / "run", hardware=CPU)
    assert not (tmp_path / "run").exists()


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
