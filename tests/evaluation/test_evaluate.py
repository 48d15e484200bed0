"""Evaluation at each image's own size: against scikit-learn, batch size, order, and what is kept in the run folder."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch import nn

from petseg.data.dataset import classes_from
from petseg.data.images import open_ids
from petseg.evaluation import evaluate as evaluation
from petseg.evaluation.evaluate import ImageScores, evaluate, evaluate_run, load_run, summarise, upsample
from petseg.models import Input
from petseg.schema import write_record
from petseg.training import inference
from petseg.training.batches import load_splits
from petseg.training.inference import Network
from tests.conftest import CPU, prepare_for, refused, tiny, train_on_cpu

REST = {"split": "val", "data": "0", "cross_entropy": 0.5, "cross_entropy_frame": "32 px"}


def pointwise(weight, bias):
    module = nn.Conv2d(3, len(weight), 1)
    module.load_state_dict({"weight": torch.tensor(weight)[:, :, None, None], "bias": torch.tensor(bias)})
    return Network(module, Input(), CPU)


BRIGHTNESS = pointwise([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]], [0.0, 0.0, 0.0])


def constant(num_classes):
    return pointwise([[0.0] * 3] * num_classes, [0.0, 3.0, 0.0][:num_classes])


def test_a_group_without_a_labelled_pixel_has_no_score_and_the_others_have():
    counts = np.array([[[3, 1], [0, 4]], [[0, 0], [0, 0]]])
    scores = summarise(
        ImageScores(("a", "b"), counts, np.full((2, 2), np.nan)), classes_from(["x", "y"]), ["P1", "P2"], **REST
    )
    assert scores.group_miou.keys() == {"P1"}


def splits_for(folder, *settings):
    config = tiny(*settings)
    return load_splits(prepare_for(config, folder), config, CPU.device)


@pytest.mark.parametrize("settings", [(), ("task=species",), ("task=pet", "border=background")], ids=" ".join)
def test_scores_equal_scikit_learn_on_all_pixels_at_own_size(settings, pets_folder):
    split = splits_for(pets_folder, *settings)["test"]
    labels = range(len(split.dataset.classes))
    network = BRIGHTNESS if len(labels) == 3 else constant(2)
    scores = evaluate(network, split, "test").scores
    truths, predictions = [], []
    for row in split.rows:
        truth = open_ids(split.dataset, split.prepared.samples[row])
        image, _ = split.batch(np.array([row]))
        predicted = upsample(network.logits(image)[0], truth.shape).argmax(dim=0).numpy()
        truths.append(truth[truth != 255])
        predictions.append(predicted[truth != 255])
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    assert list(scores.iou.values()) == pytest.approx(jaccard_score(truth, prediction, labels=labels, average=None))
    assert scores.miou == pytest.approx(jaccard_score(truth, prediction, labels=labels, average="macro"))
    assert scores.mean_dice == pytest.approx(f1_score(truth, prediction, labels=labels, average="macro"))
    assert scores.pixel_accuracy == pytest.approx(accuracy_score(truth, prediction))


def test_scores_do_not_depend_on_batch_size_or_order(pets_folder, monkeypatch):
    split = splits_for(pets_folder)["test"]
    wanted = evaluate(BRIGHTNESS, split, "test")
    monkeypatch.setattr(inference, "EVALUATION_BATCH", 5)
    got = evaluate(BRIGHTNESS, replace(split, rows=split.rows[::-1].copy()), "test")
    assert got.scores.cross_entropy == pytest.approx(wanted.scores.cross_entropy, rel=1e-6)
    assert (got.scores.miou, got.images.ids) == (wanted.scores.miou, wanted.images.ids[::-1])
    assert (got.images.confusions == wanted.images.confusions[::-1]).all()
    assert got.scores.cross_entropy_at == {}


def test_the_seed_protocol_adds_the_loss_at_200_px(pets_folder):
    scores = evaluate(constant(3), splits_for(pets_folder, "protocol=seed")["val"], "val").scores
    # a constant's loss is linear in the share of background, which 200 px holds a little differently than 32 px
    assert scores.cross_entropy_at["200"] == pytest.approx(scores.cross_entropy, abs=0.05)
    assert scores.cross_entropy_at["200"] != scores.cross_entropy


def test_absent_classes_are_none_and_left_out_of_the_mean():
    confusions = np.zeros((3, 3, 3), np.int64)
    confusions[:, 0, 0], confusions[:, 0, 1], confusions[:, 1, 1] = 6, 2, 8
    images = ImageScores(("1", "2", "3"), confusions, np.array([[1.0, 0.5, np.nan]] * 3))
    scores = summarise(images, classes_from(["pet", "background", "border"]), ["b", "a", ""], **REST)
    assert scores.iou == {"pet": 0.75, "background": 0.8, "border": None}
    assert (scores.miou, scores.mean_boundary_f) == (pytest.approx(0.775), 0.75)
    assert scores.group_miou == {"a": pytest.approx(0.775), "b": pytest.approx(0.775)}


def test_per_image_counts_add_up_to_the_pixels_and_come_back(pets_folder, tmp_path):
    split = splits_for(pets_folder)["val"]
    found = evaluate(BRIGHTNESS, split, "val")
    pixels = [open_ids(split.dataset, split.prepared.samples[row]).size for row in split.rows]
    assert found.images.confusions.sum(axis=(1, 2)).tolist() == pixels
    evaluation.write_evaluation(found, tmp_path / "val.json")
    assert {path.name for path in tmp_path.iterdir()} == {"val.json", "val.images.json"}
    again = evaluation.read_evaluation(tmp_path / "val.json")
    assert (again.scores, again.images.ids) == (found.scores, found.images.ids)
    assert (again.images.confusions == found.images.confusions).all()
    np.testing.assert_allclose(again.images.boundaries, found.images.boundaries, atol=5e-5)


def test_a_run_is_scored_once_on_the_same_images(prepared, tmp_path, monkeypatch):
    run, splits = tmp_path / "run", load_splits(prepared, tiny(), CPU.device)
    refused("no such file; is this the folder of a finished run", evaluate_run, run, CPU, splits, "val")
    train_on_cpu(tiny(), prepared, run)
    first = evaluate_run(run, CPU, splits, "test")
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", None)  # not called
        assert evaluate_run(run, CPU, splits, "test").scores == first.scores
        with pytest.raises(TypeError, match="not callable"):
            evaluate_run(run, CPU, splits, "val")
    refused("split 'tests' is unknown; choose one of: test, train, val", evaluate_run, run, CPU, splits, "tests")
    less = {"test": replace(splits["test"], rows=splits["test"].rows[1:])}
    assert len(evaluate_run(run, CPU, less, "test").images.ids) == len(first.images.ids) - 1, "scored anew"
    # other images take no scores' place
    others = replace(prepared, folder=prepared.folder.with_name("another-key"))
    before = (run / "evaluations" / "test.json").read_bytes()
    elsewhere = evaluate_run(run, CPU, {"test": replace(splits["test"], prepared=others)}, "test").scores
    assert (elsewhere.split, elsewhere.data) == ("test", others.key)
    assert (run / "evaluations" / "test.json").read_bytes() == before
    assert (run / "evaluations" / "test.Oxford-IIIT_Pet.json").is_file()


def test_the_weights_are_the_best_with_a_test_split_and_the_last_without(prepared, tmp_path):
    """Chosen on validation, figures of the validation split itself would be too good."""
    history = train_on_cpu(tiny("train.epochs=3", "train.learning_rate=0.02"), prepared, tmp_path / "run")
    trained = load_run(tmp_path / "run", CPU)
    best = max(history, key=lambda row: row.val_miou).epoch
    assert (trained.weights, trained.epoch) == ("best.safetensors", best)
    without = trained.data.model_copy(update={"splits": {"train": 20, "val": 2}})
    write_record(tmp_path / "run" / "data.json", without)
    trained = load_run(tmp_path / "run", CPU)
    assert (trained.weights, trained.epoch) == ("last.safetensors", 3)
