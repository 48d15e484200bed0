"""Corruptions: the same change every time, labels that move with the image, scores that follow from counts."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from petseg.data.dataset import IGNORE, Class
from petseg.data.images import open_ids
from petseg.data.synthetic import draw_pet
from petseg.evaluation.corruptions import KINDS, Corruption, corruptions
from petseg.evaluation.evaluate import evaluate, load_run
from petseg.evaluation.robustness import evaluate_robustness
from petseg.models import build_model
from petseg.storage import write_json
from petseg.training.batches import load_splits
from petseg.training.runs import claim_data
from tests.cli.test_commands import one_line_error, petseg, succeeds
from tests.conftest import CPU, interrupted_at, tiny

IMAGE = draw_pet("beagle", 1, size=96)[0][:64, :64]


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_is_the_same_every_time_and_grows(kind):
    moved = []
    for severity in (1, 2, 3):
        once, again = (Corruption(kind, severity).image(IMAGE, "beagle_1") for _ in range(2))
        assert (once.shape, once.dtype) == (IMAGE.shape, np.uint8)
        assert (once == again).all()
        moved.append(np.abs(once.astype(int) - IMAGE).mean())
    assert moved[0] > 0.5
    assert all(later > 0.8 * earlier for earlier, later in pairwise(moved))


def test_noise_and_turns_follow_from_the_name_and_what_only_changes_light_leaves_the_label():
    noise, turn = Corruption("noise", 2), Corruption("rotated", 3)
    assert (noise.image(IMAGE, "a") != noise.image(IMAGE, "b")).any()
    turned = {turn.image(IMAGE, f"beagle_{number}").tobytes() for number in range(20)}
    assert len(turned) == 2, "to the left and to the right"
    for each in turned:
        inner = np.frombuffer(each, np.uint8).reshape(IMAGE.shape)[1:-1, 1:-1].astype(int)
        assert min(np.abs(inner - np.rot90(IMAGE, times)[1:-1, 1:-1]).max() for times in (1, 3)) <= 1
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for kind in ("blur", "noise", "jpeg", "dark"):
        assert Corruption(kind, 3).truth(labels, "a") is labels


@pytest.mark.parametrize("size", [(48, 96), (96, 48), (64, 64)])
@pytest.mark.parametrize("kind", ["small", "rotated"])
@pytest.mark.parametrize("severity", [1, 2, 3])
def test_image_and_label_move_alike(kind, severity, size):
    height, width = size
    labels = np.zeros(size, np.uint8)
    labels[height // 4 : height // 2, width // 3 : 2 * width // 3] = 1
    image = np.repeat(255 * labels[..., None], 3, axis=2)
    corruption = Corruption(kind, severity)
    corrupted, truth = corruption.image(image, "beagle_1")[..., 0], corruption.truth(labels, "beagle_1")
    assert truth.shape == corrupted.shape == size
    assert (truth == 1).any()
    assert ((corrupted > 128) == (truth == 1))[truth != IGNORE].mean() > 0.95
    if kind == "small":
        assert (truth == IGNORE).mean() == pytest.approx(1 - corruption.amount**2, abs=0.05)


@pytest.fixture
def untrained(tmp_path, prepared):
    def make(prepared=prepared):
        torch.manual_seed(0)
        model = build_model(tiny().model, len(prepared.dataset.classes))
        with torch.no_grad():
            model.head.weight.mul_(20)
            model.head.bias[3:] = -100
            for name, value in model.state_dict().items():
                if "running" in name:  # other statistics than those of the image at hand
                    torch.nn.init.uniform_(value, 0.2, 2)
        write_json(tmp_path / "config.json", tiny().model_dump(mode="json"))
        claim_data(tmp_path, prepared)
        save_file(model.state_dict(), tmp_path / "best.safetensors", {"epoch": "1"})
        return tmp_path

    return make


def test_a_run_is_scored_once_on_every_corruption(untrained, prepared, monkeypatch):
    run = untrained()
    found = evaluate_robustness(run, CPU, prepared)
    assert list(found.ids) == sorted(prepared.dataset.splits["test"])
    truths = [open_ids(prepared.dataset, prepared.dataset.by_id[sample_id]) for sample_id in found.ids]
    own_size = [np.bincount(truth.ravel(), minlength=3).tolist() for truth in truths]
    assert list(found.confusions) == [corruption.name for corruption in corruptions()]
    for name in found.confusions:
        counts = found.counts(name)
        assert counts.shape == (len(found.ids), 3, 3)
        assert counts.sum(axis=2).tolist() == own_size or not name.startswith("dark")
    # nothing changed: the scores of the evaluation, but for rounding between logits and probabilities
    split = load_splits(prepared, tiny(), CPU.device)["test"]
    plain = evaluate(load_run(run, CPU).network, split, "test").images
    rows = [plain.ids.index(name) for name in found.ids]
    moved = np.abs(plain.confusions[rows] - found.counts("unchanged")).sum()
    assert moved < 0.001 * plain.confusions.sum()
    stored = run / "evaluations" / "robustness.json"
    before = stored.stat().st_mtime_ns
    assert evaluate_robustness(run, CPU, prepared) == found
    assert list(evaluate_robustness(run, CPU, prepared, split="val").ids) == sorted(prepared.dataset.splits["val"])
    assert stored.stat().st_mtime_ns == before
    monkeypatch.setattr("petseg.evaluation.robustness.MOST", 10)
    assert len(evaluate_robustness(run, CPU, prepared).ids) == 8


def test_a_stopped_call_goes_on(untrained, prepared):
    whole = evaluate_robustness(run := untrained(), CPU, prepared)
    stored = run / "evaluations" / "robustness.json"
    part = stored.with_suffix(".part.jsonl")
    stored.unlink()
    with pytest.raises(KeyboardInterrupt):
        evaluate_robustness(run, CPU, prepared, interrupted_at(5))
    assert not stored.exists()
    part.write_bytes(part.read_bytes()[:-20])  # killed while it wrote the fifth image
    seen = []
    assert evaluate_robustness(run, CPU, prepared, lambda done, total: seen.append(done)) == whole
    assert seen == list(range(5, len(whole.ids) + 1))
    assert stored.is_file()
    assert not part.exists()


def test_what_other_weights_left_is_not_taken(untrained, prepared):
    run = untrained()
    with pytest.raises(KeyboardInterrupt):
        evaluate_robustness(run, CPU, prepared, interrupted_at(2))
    weights = run / "best.safetensors"
    save_file({name: value * 2 for name, value in load_file(weights).items()}, weights, {"epoch": "1"})
    seen = []
    evaluate_robustness(run, CPU, prepared, lambda done, total: seen.append(done))
    assert seen[0] == 1


def test_an_image_that_was_left_out_is_not_scored(untrained, prepared):
    name, *others = sorted(prepared.dataset.splits["test"])
    gone = replace(prepared.dataset.by_id[name], image=prepared.dataset.by_id[name].image.with_name("gone.jpg"))
    samples = tuple(gone if sample.id == name else sample for sample in prepared.dataset.samples)
    damaged = replace(prepared, dataset=replace(prepared.dataset, samples=samples), left_out={name: "it is gone"})
    assert list(evaluate_robustness(untrained(), CPU, damaged).ids) == others


def test_a_shipped_model_on_corrupted_files(pets_folder, tmp_path):
    result = succeeds("robustness", "unet_small", "--data", pets_folder, "--out", tmp_path / "out.json")
    assert re.search(r"unet_small: test, 24 images, mIoU unchanged \d\d\.\d", result.stdout)
    assert "(onnxruntime, f32)" in result.stdout  # what conftest asks for
    assert "JPEG quality: 50, 25, 10" in result.stdout
    absent = petseg("robustness", "unet_small", "--data", pets_folder, "--split", "holdout")
    assert "has no holdout split; choose one of train, val, test" in one_line_error(absent)
    for place in ("images", "masks"):
        (tmp_path / "my" / place).mkdir(parents=True)
        Image.fromarray(np.eye(20, dtype=np.uint8) * 255).save(tmp_path / "my" / place / "1.png")
    wrong = petseg("robustness", "unet_small", "--data", tmp_path / "my")
    assert "has classes cat, dog, background, border; the labels are of background," in one_line_error(wrong)


def test_a_class_that_no_image_shows_has_no_score(untrained, prepared):
    dataset = replace(prepared.dataset, classes=(*prepared.dataset.classes, Class("tail", "#000000")))
    more = replace(prepared, dataset=dataset)
    run = untrained(more)
    assert evaluate_robustness(run, CPU, more).counts("dark-1")[:, 3].sum() == 0
    split = load_splits(more, tiny(), CPU.device)["test"]
    assert evaluate(load_run(run, CPU).network, split, "test").scores.iou["tail"] is None
