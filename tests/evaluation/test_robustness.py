"""Worse pictures and other views: the same change every time, moved truths, scores that follow from counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from petseg.data.oxford_pets import IGNORE, open_trimap
from petseg.data.synthetic import draw_pet
from petseg.errors import PetsegError
from petseg.evaluation.corruptions import Change, changes
from petseg.evaluation.robustness import EVERY, evaluate_robustness
from petseg.metrics import mean_iou
from petseg.models import build_model
from petseg.storage import read_json, write_json
from petseg.training.loop import _save, choose_hardware, load_splits

IMAGE = draw_pet("beagle", 1, size=96)[0][:64, :64]
CPU = choose_hardware("fp32", "cpu")


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.name)
def test_a_change_is_the_same_every_time_and_grows(change: Change) -> None:
    once, again = (change.image(IMAGE, "beagle_1", (48, 64)) for _ in range(2))
    assert once.shape == IMAGE.shape
    assert once.dtype == np.uint8
    assert (once == again).all()
    moved = [
        np.abs(Change(change.kind, strength).image(IMAGE, "beagle_1", (48, 64)).astype(int) - IMAGE).mean()
        for strength in (1, 2, 3)
    ]
    assert moved[0] > 0.5
    assert moved[change.strength - 1] > 0.8 * moved[max(0, change.strength - 2)]


def test_noise_and_turns_hang_on_the_name() -> None:
    noise = Change("noise", 2)
    assert (noise.image(IMAGE, "a", (64, 64)) != noise.image(IMAGE, "b", (64, 64))).any()
    turn = Change("rotated", 3)
    names = [f"beagle_{number}" for number in range(20)]
    sides = {turn.image(IMAGE, name, (64, 64)).tobytes() for name in names}
    assert len(sides) == 2, "to the left and to the right"
    for side in sides:
        found = np.frombuffer(side, np.uint8).reshape(IMAGE.shape)[1:-1, 1:-1].astype(int)
        assert min(np.abs(found - np.rot90(IMAGE, times)[1:-1, 1:-1]).max() for times in (1, 3)) <= 1


@pytest.mark.parametrize("size", [(48, 96), (96, 48), (64, 64)])
@pytest.mark.parametrize("kind", ["small", "rotated"])
@pytest.mark.parametrize("strength", [1, 2, 3])
def test_picture_and_truth_move_alike(kind: str, strength: int, size: tuple[int, int]) -> None:
    """A bright block in a picture that was squeezed lands where its label lands."""
    height, width = size
    labels = np.zeros(size, np.uint8)
    labels[height // 4 : height // 2, width // 3 : 2 * width // 3] = 1
    side = 64
    rows, columns = np.arange(side) * height // side, np.arange(side) * width // side
    image = np.repeat(255 * labels[rows][:, columns][..., None], 3, axis=2).astype(np.uint8)
    change = Change(kind, strength)
    worse = change.image(image, "beagle_1", size)[..., 0]
    truth = change.truth(labels, "beagle_1", side)
    assert truth.shape == size
    seen_truth = truth[rows][:, columns]
    counted = seen_truth != IGNORE
    agreement = ((worse > 128) == (seen_truth == 1))[counted].mean()
    assert agreement > 0.95
    assert (truth == 1).any()
    if kind == "small":
        assert (truth == IGNORE).mean() == pytest.approx(1 - change.amount**2, abs=0.05)


def test_what_only_changes_light_leaves_the_truth() -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for kind in ("blur", "noise", "jpeg", "dark"):
        assert Change(kind, 3).truth(labels, "a", 64) is labels


def test_an_unknown_change_names_the_known_ones() -> None:
    with pytest.raises(PetsegError, match=r"change 'blurr' is unknown; choose one of: blur, "):
        Change("blurr", 1)


@pytest.fixture
def run(tmp_path: Path, tiny_recipe: Any) -> Path:
    """A run folder of a network that learnt nothing."""
    config = tiny_recipe.for_model("unet")
    torch.manual_seed(0)
    place = tmp_path / "run"
    write_json(place / "config.json", config.model_dump(mode="json"))
    _save(place / "best.safetensors", build_model(config.model, 3).state_dict(), 1)
    return place


def test_a_run_is_scored_once_on_every_change(run: Path, tiny_recipe: Any, prepared: Any) -> None:
    pictures = load_splits(prepared, tiny_recipe.for_model("unet"), CPU.device)["test"]
    scores = evaluate_robustness(run, prepared, CPU, pictures=pictures)
    stored = read_json(run / "evaluations" / "robustness.images.json")["changes"]
    names = sorted(prepared.pets[row].name for row in pictures.rows)[::EVERY]
    assert list(stored) == [change.name for change in changes()]
    pets = {pet.name: pet for pet in prepared.pets}
    for name, rows in stored.items():
        counts = np.array([row[1] for row in rows]).reshape(-1, 3, 3)
        assert [row[0] for row in rows] == names
        assert scores["changes"][name]["miou"] == pytest.approx(float(mean_iou(counts.sum(axis=0))))
        if name.startswith("dark"):
            for pet, matrix in zip(names, counts, strict=True):
                pixels = np.bincount(open_trimap(pets[pet]).ravel(), minlength=4)[1:]
                assert matrix.sum(axis=1).tolist() == pixels.tolist(), "at its own size"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.json")}
    assert evaluate_robustness(run, prepared, CPU, pictures=pictures) == scores
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.json")} == before
    (run / "evaluations" / "robustness.json").unlink()
    again = evaluate_robustness(run, prepared, CPU, pictures=pictures)
    assert again == scores


def test_some_kinds_alone_are_not_taken_for_all(run: Path, tiny_recipe: Any, prepared: Any) -> None:
    pictures = load_splits(prepared, tiny_recipe.for_model("unet"), CPU.device)["test"]
    some = evaluate_robustness(run, prepared, CPU, pictures=pictures, kinds=["jpeg"])
    assert list(some["changes"]) == [Change("jpeg", strength).name for strength in (1, 2, 3)]
    every = evaluate_robustness(run, prepared, CPU, pictures=pictures)
    assert list(every["changes"]) == [change.name for change in changes()]
    assert {name: every["changes"][name] for name in some["changes"]} == some["changes"]
    assert evaluate_robustness(run, prepared, CPU, pictures=pictures, kinds=["jpeg"]) == every
