"""Evaluation at each image's own size: against scikit-learn, batch size, order, and what is kept in the run folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch import nn

from petseg.config import RunConfig, load_recipe
from petseg.data.cache import Prepared, prepare
from petseg.data.oxford_pets import get_task, open_trimap
from petseg.data.synthetic import make_pets
from petseg.errors import PetsegError
from petseg.evaluation import evaluate as evaluation_module
from petseg.evaluation.evaluate import evaluate, evaluate_run, summarise, upsample, write_evaluation
from petseg.training import loop as train_module
from petseg.training.loop import Pictures, choose_hardware, load_splits, train
from tests.conftest import TINY

CPU = choose_hardware("fp32", "cpu")


def config(*settings: str) -> RunConfig:
    return load_recipe("default", [*TINY, *settings]).for_model("unet")


class Constant(nn.Module):
    """Logits that say one class everywhere."""

    def __init__(self, label: int, num_classes: int) -> None:
        super().__init__()
        self.logits = torch.zeros(num_classes, 1, 1)
        self.logits[label] = 3.0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(image), -1, *image.shape[-2:])


class Brightness(nn.Module):
    """Logits that depend on the picture, so that order and place matter."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.stack([image[:, 0], image[:, 1], -image[:, 2]], dim=1)


@pytest.mark.parametrize(
    "settings", [(), ("data.task=species",), ("data.task=pet", "data.border=background")], ids=" ".join
)
def test_scores_equal_scikit_learn_on_all_pixels_at_own_size(settings: tuple[str, ...], prepared: Prepared) -> None:
    given = config(*settings)
    task = get_task(given.data.task, given.data.border)
    pictures = load_splits(prepared, given, CPU.device)["test"]
    num_classes = len(task.classes)
    model = Brightness() if num_classes == 3 else Constant(1, 2)
    scores = evaluate(model, prepared, pictures, given, CPU, split="test").scores
    truths, predictions = [], []
    for row in pictures.rows:
        truth = task.table()[prepared.pets[row].species][open_trimap(prepared.pets[row])]
        image = train_module.normalise(train_module.to_unit_range(pictures.images[row : row + 1]))
        predicted = upsample(model(image)[0], truth.shape).argmax(dim=0).numpy()
        truths.append(truth[truth != 255])
        predictions.append(predicted[truth != 255])
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    labels = range(num_classes)
    assert list(scores["iou"].values()) == pytest.approx(jaccard_score(truth, prediction, labels=labels, average=None))
    assert scores["miou"] == pytest.approx(jaccard_score(truth, prediction, labels=labels, average="macro"))
    assert scores["mean_dice"] == pytest.approx(f1_score(truth, prediction, labels=labels, average="macro"))
    assert scores["pixel_accuracy"] == pytest.approx(accuracy_score(truth, prediction))


def test_scores_do_not_depend_on_batch_size_or_order(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    given = config()
    pictures = load_splits(prepared, given, CPU.device)["test"]
    wanted = evaluate(Brightness(), prepared, pictures, given, CPU, split="test")
    monkeypatch.setattr(train_module, "EVALUATION_BATCH", 5)
    turned = Pictures(pictures.images, pictures.labels, pictures.rows[::-1].copy(), pictures.device, pictures.task)
    got = evaluate(Brightness(), prepared, turned, given, CPU, split="test")
    assert got.scores["cross_entropy"] == pytest.approx(wanted.scores["cross_entropy"], rel=1e-6)
    assert got.scores["miou"] == wanted.scores["miou"]
    assert got.names == wanted.names[::-1]
    assert (got.confusions == wanted.confusions[::-1]).all()


def test_the_seed_protocol_adds_the_loss_at_200_px(prepared: Prepared) -> None:
    given = config("protocol=seed")
    pictures = load_splits(prepared, given, CPU.device)["val"]
    scores = evaluate(Constant(1, 3), prepared, pictures, given, CPU, split="val").scores
    # a constant's loss is linear in the share of background, which 200 px holds a little differently than 32 px
    assert scores["cross_entropy_200"] == pytest.approx(scores["cross_entropy"], abs=0.05)
    assert scores["cross_entropy_200"] != scores["cross_entropy"]
    assert "cross_entropy_200" not in evaluate(Constant(1, 3), prepared, pictures, config(), CPU, split="val").scores


def test_absent_classes_are_none_and_left_out_of_the_mean() -> None:
    confusions = np.zeros((2, 3, 3), np.int64)
    confusions[:, 0, 0], confusions[:, 0, 1], confusions[:, 1, 1] = 6, 2, 8
    scores = summarise(confusions, np.array([[1.0, 0.5, np.nan]] * 2), ["a", "b"], get_task("trimap"))
    assert scores["iou"] == {"pet": 0.75, "background": 0.8, "border": None}
    assert scores["miou"] == pytest.approx(0.775)
    assert scores["mean_boundary_f"] == 0.75
    assert scores["breed_miou"] == {"a": pytest.approx(0.775), "b": pytest.approx(0.775)}


def test_a_run_is_scored_once_and_then_read_back_the_same(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(), prepared, tmp_path / "run", hardware=CPU)
    first = evaluate_run(tmp_path / "run", prepared, CPU, split="test")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(evaluation_module, "evaluate", refuse)
    again = evaluate_run(tmp_path / "run", prepared, CPU, split="test")
    assert again.scores == first.scores
    assert again.names == first.names
    assert (again.confusions == first.confusions).all()
    np.testing.assert_allclose(again.boundaries, first.boundaries, atol=5e-5)
    with pytest.raises(AssertionError, match="scored again"):
        evaluate_run(tmp_path / "run", prepared, CPU, split="val")


def test_scores_of_other_pictures_are_not_read_back(prepared: Prepared, tmp_path: Path) -> None:
    train(config(), prepared, tmp_path / "run", hardware=CPU)
    first = evaluate_run(tmp_path / "run", prepared, CPU, split="val")
    other = prepare(make_pets(tmp_path / "others", per_breed=6, breeds=4, size=48, seed=5), 32)
    again = evaluate_run(tmp_path / "run", other, CPU, split="val")
    assert again.scores["data"] == other.key != first.scores["data"]
    assert again.names != first.names


def test_a_split_that_the_protocol_lacks_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    train(config("protocol=seed"), prepared, tmp_path / "run", hardware=CPU)
    with pytest.raises(PetsegError, match="split of protocol seed 'test' is unknown; choose one of: train, val"):
        evaluate_run(tmp_path / "run", prepared, CPU, split="test")


def test_a_folder_that_is_no_run_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(PetsegError, match="no such file; is this the folder of a finished run"):
        evaluate_run(tmp_path, prepared, CPU, split="val")


def test_per_image_counts_add_up_to_the_pixels(prepared: Prepared, tmp_path: Path) -> None:
    pictures = load_splits(prepared, config(), CPU.device)["val"]
    found = evaluate(Brightness(), prepared, pictures, config(), CPU, split="val")
    pixels = [open_trimap(prepared.pets[row]).size for row in pictures.rows]
    assert found.confusions.sum(axis=(1, 2)).tolist() == pixels
    write_evaluation(found, tmp_path / "val.json")
    assert {path.name for path in tmp_path.iterdir()} == {"val.json", "val.images.json"}
