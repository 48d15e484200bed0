"""Distillation: the loss, what the teacher is, and that a student comes to agree with it."""

import math

import pytest
import torch

from petseg.config import TrainConfig
from petseg.data.dataset import classes_from
from petseg.errors import PetsegError
from petseg.storage import read_json, write_json
from petseg.training.batches import load_splits
from petseg.training.checkpoint import BEST, load_weights
from petseg.training.distillation import distillation_loss, lesson
from petseg.training.inference import build_network
from petseg.training.loop import Objective
from petseg.training.start import load_teacher
from tests.conftest import CPU, tiny, train_on_cpu


def test_the_loss_is_the_divergence_from_the_teacher():
    own, taught = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    taught[0, 0, 0, 0] = math.log(3)  # 3/4 against 1/4; the other pixel agrees
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation_loss(own, taught).item() == pytest.approx(divergence / 2)
    assert distillation_loss(taught + 5, taught).item() == pytest.approx(0, abs=1e-7)
    labels = torch.zeros(1, 1, 2, dtype=torch.int64)
    plain = Objective(TrainConfig())(own, labels)
    both = Objective(TrainConfig(teacher_weight=0.25), taught=taught)(own, labels)
    assert both[0] == plain[0], "the loss that is shown stays that of the labels"
    assert both[1].item() == pytest.approx(0.75 * plain[1].item() + 0.25 * divergence / 2)


def test_a_student_comes_to_agree_with_its_teacher(prepared, tmp_path):
    train_on_cpu(tiny("train.epochs=6"), prepared, tmp_path / "teacher")
    student = tiny("train.epochs=12", f"train.teacher='{tmp_path / 'teacher'}'", "train.teacher_weight=1.0", "seed=1")
    train_on_cpu(student, prepared, tmp_path / "student")
    alone = tiny("train.epochs=12", "seed=1")
    train_on_cpu(alone, prepared, tmp_path / "alone")
    teacher = load_teacher(str(tmp_path / "teacher"), prepared.dataset.classes, CPU, 32)
    split = load_splits(prepared, student, CPU.device)["val"]
    images, _ = split.batch(split.rows)
    distances = {}
    for name in ("student", "alone"):
        network = build_network(student.model, 3, CPU)
        load_weights(network.module, tmp_path / name / BEST)
        network.module.eval()
        distances[name] = distillation_loss(lesson(network, images), lesson(teacher, images)).item()
    assert distances["student"] < distances["alone"]
    # a finished run needs its teacher no longer
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    assert len(train_on_cpu(student, prepared, tmp_path / "student", resume=True)) == 12
    (tmp_path / "elsewhere").rename(tmp_path / "teacher")
    with pytest.raises(PetsegError, match=r"knows pet, background, border; wanted leaf, soil: train one of these"):
        load_teacher(str(tmp_path / "teacher"), classes_from(["leaf", "soil"]), CPU, 32)


def test_a_teacher_normalises_images_as_its_run_wrote_down(prepared, tmp_path):
    run = tmp_path / "teacher"
    train_on_cpu(tiny("train.epochs=1"), prepared, run)
    own = read_json(run / "input.json") | {"mean": [0.25, 0.5, 0.75]}
    write_json(run / "input.json", own)
    assert load_teacher(str(run), prepared.dataset.classes, CPU, 32).input.mean == (0.25, 0.5, 0.75)
