"""Distillation: the loss, and a run that another one taught."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from petseg.config import load_recipe
from petseg.data.cache import prepare
from petseg.distil import distillation_loss
from petseg.errors import PetsegError
from petseg.train import load_weights, train
from tests.conftest import TINY


def test_loss_is_the_divergence_of_pixels():
    logits, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = F.kl_div(logits.log_softmax(1), teacher.softmax(1), reduction="none").sum(1).mean()
    assert distillation_loss(logits, teacher) == pytest.approx(float(expected), rel=1e-5)
    assert distillation_loss(teacher, teacher) == pytest.approx(0, abs=1e-6)
    assert distillation_loss(teacher + 5, teacher) == pytest.approx(0, abs=1e-6)


def test_temperature_keeps_the_size_of_the_gradient():
    logits, teacher = 0.01 * torch.randn(2, 3, 4, 4), 0.01 * torch.randn(2, 3, 4, 4)
    cold, warm = distillation_loss(logits, teacher), distillation_loss(logits, teacher, 4.0)
    assert float(warm) == pytest.approx(float(cold), rel=0.05)


def test_gradient():
    logits = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    distillation_loss(logits, torch.randn(1, 3, 2, 2)).backward()
    assert logits.grad is not None
    assert logits.grad.sum(dim=1).abs().max() < 1e-6


@pytest.fixture
def teacher(prepared, tmp_path):
    train(load_recipe("default", TINY).for_model("unet"), prepared, tmp_path / "teacher")
    return tmp_path / "teacher"


def test_a_run_learns_from_another(teacher, prepared, tmp_path):
    wanted = (*TINY, f"train.teacher={teacher}", "train.teacher_weight=1.0", "train.epochs=1")
    plain = train(load_recipe("default", (*TINY, "train.epochs=1")).for_model("segnet"), prepared, tmp_path / "plain")
    taught = train(load_recipe("default", wanted).for_model("segnet"), prepared, tmp_path / "taught")
    assert taught[0]["train_loss"] != plain[0]["train_loss"]
    assert taught[0]["val_loss"] > 0


def test_weight_zero_is_training_without(teacher, prepared, tmp_path):
    wanted = (*TINY, "train.epochs=1")
    rows = []
    for name, more in (("without", ()), ("with", (f"train.teacher={teacher}", "train.teacher_weight=0.0"))):
        rows.append(train(load_recipe("default", (*wanted, *more)).for_model("segnet"), prepared, tmp_path / name)[0])
    assert rows[0]["val_loss"] == rows[1]["val_loss"]


def test_a_teacher_of_other_classes(teacher, pets_folder, tmp_path):
    config = load_recipe("default", (*TINY, "task=species", f"train.teacher={teacher}")).for_model("unet")
    with pytest.raises(PetsegError, match="its classes are pet, background, border, this run's background, cat, dog"):
        train(config, prepare(pets_folder, 32), tmp_path / "run")


def test_no_teacher_there(prepared, tmp_path):
    config = load_recipe("default", (*TINY, f"train.teacher={tmp_path / 'none'}")).for_model("unet")
    with pytest.raises(PetsegError, match="no such file"):
        train(config, prepared, tmp_path / "run")


def test_the_teacher_stays_as_it_is(teacher, prepared, tmp_path):
    from petseg.config import ModelConfig
    from petseg.models import build_model

    before = build_model(ModelConfig(base_channels=4), 3)
    load_weights(before, teacher / "best.safetensors")
    config = load_recipe("default", (*TINY, f"train.teacher={teacher}")).for_model("unet")
    train(config, prepared, tmp_path / "run")
    after = build_model(ModelConfig(base_channels=4), 3)
    load_weights(after, teacher / "best.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
