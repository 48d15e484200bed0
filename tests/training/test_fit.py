"""Fits pad and crop in training and evaluation: padding counts nowhere, crops are of their image, windows of all."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import nn

from petseg.data.dataset import IGNORE
from petseg.data.geometry import Geometry
from petseg.data.images import open_ids
from petseg.evaluation.evaluate import evaluate, evaluate_run
from petseg.models import to_unit_range
from petseg.models.builder import Input
from petseg.training import inference
from petseg.training.batches import load_splits
from petseg.training.inference import Network, predict_logits, validate
from tests.conftest import CPU, names, prepare_for, refused, tiny, train_on_cpu


def splits_of(folder, *settings):
    config = tiny(*settings)
    return load_splits(prepare_for(config, folder), config, CPU.device)


def convolutions(count, seed=0):
    """A network that sees `count` pixels in each direction, and that padding with zeros at an image's edge misleads."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(count - 1) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *layers, nn.Conv2d(8, 3, 1))
    return Network(module.eval(), Input(), CPU)


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_scores_are_of_own_size_and_of_no_padding(pets_folder, fit):
    split = splits_of(pets_folder, f"fit={fit}", "data.size=72")["test"]
    network = convolutions(1)
    found = evaluate(network, split, "test")
    truths = [open_ids(split.dataset, split.prepared.samples[row]) for row in split.rows]
    assert found.images.confusions.sum(axis=(1, 2)).tolist() == [truth.size for truth in truths]
    seen = [one for row in split.rows for one in predict_logits(network, split, np.array([row]))]
    assert [one.labels.shape[1:] for one in seen] == [split.prepared.contents[row] for row in split.rows]
    assert not any((one.labels == IGNORE).any() for one in seen)
    assert validate(network, split).val_loss == pytest.approx(found.scores.cross_entropy, rel=1e-2)
    if fit == "crop":  # a window of 72 px holds each of these images whole, at its own size
        predictions = [one.logits[0].argmax(dim=0).numpy() for one in seen]
        pixels = [np.concatenate([part.ravel() for part in parts]) for parts in (truths, predictions)]
        assert list(found.scores.iou.values()) == pytest.approx(jaccard_score(*pixels, average=None))


def test_an_image_whose_maps_are_too_large_is_scored_band_by_band_to_the_same_figures(pets_folder, monkeypatch):
    split = splits_of(pets_folder, "fit=crop", "data.size=24", "task=trimap_species")["test"]
    torch.manual_seed(0)
    network = Network(nn.Conv2d(3, 4, 3, padding=1), Input(), CPU)
    whole = evaluate(network, split, "test")
    monkeypatch.setattr(inference, "WHOLE", 0)
    assert not any(seen.whole for seen in predict_logits(network, split, split.rows[:1]))
    bands = evaluate(network, split, "test")
    assert (bands.images.confusions == whole.images.confusions).all()
    for field in ("cross_entropy", "image_class_accuracy", "mean_boundary_f"):
        assert getattr(bands.scores, field) == pytest.approx(getattr(whole.scores, field), rel=1e-5)


def test_windows_of_a_convolutional_network_are_the_whole_image_s_result_in_their_inner_parts():
    """Nearer to a window's edge than the network sees, its padding misleads; blending gives such pixels little weight.

    benchmarks/windows.py measures the same of 6,000 x 4,000 pixels.
    """
    sees, side, size = 3, 32, (75, 120)
    network, geometry = convolutions(sees), Geometry(side, "crop")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with torch.inference_mode():
        network.module[-1].weight.mul_(50)
        whole = network.logits(to_unit_range(torch.from_numpy(image[None]))).softmax(dim=1)[0].numpy()
        joined, unblended = (
            np.concatenate(list(geometry.bands(image, size, network.probabilities, step=step)), axis=1)
            for step in (side // 2, side)
        )
    difference, without = (np.abs(windows - whole).max(axis=0) for windows in (joined, unblended))
    inner = np.ones(size, bool)
    for axis, length in enumerate(size):
        for start in [*range(0, length - side, side // 2), length - side]:
            for edge in (start, start + side):
                if 0 < edge < length:
                    np.moveaxis(inner, axis, 0)[edge - sees : edge + sees] = False
    assert inner.mean() > 0.2
    assert difference[inner].max() < 1e-6
    assert without.max() > 10 * difference.max() > 1e-3


def test_an_epoch_of_crops_covers_each_image_once_and_crops_are_parts_of_it(pets_folder):
    split = splits_of(pets_folder, "fit=crop", "data.size=24")["train"]
    rows, counts = np.unique(split.epoch_rows, return_counts=True)
    assert rows.tolist() == sorted(split.rows.tolist())
    for row, count in zip(rows, counts, strict=True):
        height, width = split.prepared.contents[row]
        assert count == -(-height // 24) * -(-width // 24)
    chosen = split.epoch_rows[::40]
    images, labels = split.batch(chosen, None, torch.Generator().manual_seed(1))
    assert (images.shape[1:], labels.shape[1:]) == ((3, 24, 24), (24, 24))
    for image, label, row in zip((images * 255).round().byte(), labels, chosen, strict=True):
        whole = np.dstack([split.prepared.image(row), split.prepared.label(row)])
        windows = np.lib.stride_tricks.sliding_window_view(whole, (24, 24), (0, 1))
        crop = torch.cat([image, label[None]]).numpy()
        assert (windows == crop).all(axis=(2, 3, 4)).any()
    again, _ = split.batch(chosen, None, torch.Generator().manual_seed(1))
    other, _ = split.batch(chosen, None, torch.Generator().manual_seed(2))
    assert (again == images).all()
    assert (other != images).any()


@pytest.mark.parametrize("settings", [("fit=pad",), ("fit=crop", "data.reduce_to=50", "train.ramp=[16]")], ids=" ".join)
def test_a_run_trains_scores_and_resumes(settings, pets_folder, tmp_path):
    config = tiny(*settings, "train.class_weights=median_frequency")
    prepared = prepare_for(config, pets_folder)
    whole = train_on_cpu(config, prepared, tmp_path / "whole")
    assert whole[-1].train_loss < whole[0].train_loss
    stop = partial(train_on_cpu, config, prepared, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        stop(on_epoch=lambda row: (_ for _ in ()).throw(KeyboardInterrupt))
    rows = stop(resume=True)
    losses = [[(row.train_loss, row.val_loss) for row in history] for history in (whole, rows)]
    assert losses[0] == losses[1]
    splits = load_splits(prepared, config, CPU.device)
    scores = evaluate_run(tmp_path / "run", CPU, splits, "val").scores
    assert scores.cross_entropy_frame == str(prepared.geometry)
    assert scores.images == len(splits["val"].rows)
    assert {"config.json", "best.safetensors"} <= {*names(tmp_path / "run")}
    match = rf"images are prepared at {prepared.geometry}, the recipe wants 32 px; prepare them so"
    refused(match, load_splits, prepared, tiny(), CPU.device)
