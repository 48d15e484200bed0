"""Numbers that stay numbers: what a prediction or a score must not depend on, and a golden run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petseg import Segmenter
from petseg.config import load_recipe
from petseg.data.synthetic import draw_pet, make_pets
from petseg.evaluation.evaluate import evaluate
from petseg.models import build_model
from petseg.predict.outputs import plan, predict_jobs
from petseg.predict.photos import Photo
from petseg.shipped import shipped_models
from petseg.training.batches import load_splits
from petseg.training.inference import build_network
from petseg.training.loop import learning_rate
from tests.conftest import CPU, prepare_for, tiny, train_on_cpu

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
BREEDS = ("beagle", "Persian", "pug", "Bombay", "samoyed", "Sphynx", "boxer", "Ragdoll")
PHOTOS = [draw_pet(breed, number, size=96 + 8 * number)[0] for number, breed in enumerate(BREEDS)]


@pytest.mark.parametrize("name", shipped_models())
def test_a_prediction_depends_on_its_photo_alone(name, tmp_path, tried):
    """Not on its neighbours in a batch, their order, the threads, or being in a folder.

    Sums in another order may differ in a float's last digits; no pixel's class may.
    """
    one = Segmenter(name, threads=1)
    alone = [one(photo) for photo in PHOTOS]
    order = [3, 0, 7, 2, 2, 5, 1, 6, 4]
    mixed = one.batch([PHOTOS[place] for place in order])
    ways = {
        "batch": one.batch(PHOTOS),
        "another batch": [mixed[order.index(n)] for n in range(len(PHOTOS))],
        "two threads": Segmenter(name, threads=2).batch(PHOTOS),
    }
    for number, photo in enumerate(PHOTOS):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    for way, found in ways.items():
        for seen, wanted in zip(found, alone, strict=True):
            assert np.abs(seen.probabilities - wanted.probabilities).max() < 1e-5, way
            assert (seen.trimap == wanted.trimap).mean() > 0.9999, way
    jobs, _ = plan([tmp_path], ["mask", "trimap"], tmp_path / "out")
    assert all(outcome.error is None for outcome in predict_jobs(one, jobs, workers=3))
    for job in jobs:
        wanted = alone[int(job.photo.stem)]
        assert (np.asarray(Image.open(job.files["mask"])) == wanted.mask).all()
        assert (np.asarray(Image.open(job.files["trimap"])) == wanted.trimap).all()
    tried(len(PHOTOS) * (len(ways) + 1))


@pytest.mark.parametrize("name", shipped_models())
def test_a_flipped_photo_gives_a_flipped_mask(name, tried):
    one = Segmenter(name, threads=1)
    agreement = [(one(photo[:, ::-1].copy()).mask[:, ::-1] == one(photo).mask).mean() for photo in PHOTOS]
    assert np.mean(agreement) > 0.94, agreement  # they learnt with flips, and no network is symmetrical
    tried(len(PHOTOS))


@pytest.mark.parametrize(("model", "settings"), [("unet", ()), ("segnet", ("model.upsampling=bilinear",))])
def test_a_network_made_symmetrical_is_so(model, settings):
    """The same, exactly: with kernels that are their own mirror images nothing else tells left from right.

    SegNet's indices do: the maximum of a window of zeros, which ReLU makes many of, stands in its upper left.
    """
    torch.manual_seed(0)
    recipe = load_recipe("default", ["model.base_channels=4", "model.depth=3", *settings])
    network = build_model(recipe.for_model(model).model, 3)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.copy_((parameter + parameter.flip(-1)) / 2)
    network.eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        straight, mirrored = network(image), network(image.flip(-1)).flip(-1)
    assert torch.allclose(straight, mirrored, atol=1e-5)


def test_scores_do_not_depend_on_threads(prepared):
    torch.manual_seed(1)
    network = build_network(tiny().model, 3, CPU)
    split = load_splits(prepared, tiny(), CPU.device)["test"]
    one = evaluate(network, split, "test")
    try:
        torch.set_num_threads(2)
        two = evaluate(network, split, "test")
    finally:
        torch.set_num_threads(1)
    assert one.images.ids == two.images.ids
    assert np.abs(one.images.confusions - two.images.confusions).sum() <= 1e-4 * one.images.confusions.sum()
    for score in ("miou", "pixel_accuracy", "cross_entropy"):
        assert getattr(one.scores, score) == pytest.approx(getattr(two.scores, score), abs=1e-5)


def golden_losses(model, folder):
    depth = {"unet": 4, "segnet": 5}[model]  # as in their papers
    config = tiny("train.epochs=5", "train.deterministic=true", f"model.depth={depth}", model=model)
    pets = prepare_for(config, make_pets(folder / "pets", per_breed=12, breeds=6, size=48, seed=2))
    steps = []
    rows = train_on_cpu(config, pets, folder / model, on_step=lambda *step: steps.append(step))
    assert len(steps) == 20
    return [loss for row in rows for loss in (row.train_loss, row.val_loss)]


TOLERANCE = {"unet": 0.03, "segnet": 0.02}
"""Relative. Two threads, which sum in another order, move either model's losses by up to 1.1 %; a learning rate that is
a tenth higher moves them by 9.8 % and 4.4 % (torch 2.13 on a Xeon with AMX, 2026-11-26)."""


@pytest.mark.parametrize("model", ["unet", "segnet"])
def test_a_golden_run_gives_its_stored_losses(model, tmp_path):
    assert golden_losses(model, tmp_path) == pytest.approx(GOLDEN[model], rel=TOLERANCE[model])


@pytest.mark.parametrize("model", ["unet", "segnet"])
def test_the_golden_run_would_tell(model, tmp_path, monkeypatch):
    monkeypatch.setattr("petseg.training.loop.learning_rate", lambda *given: 1.1 * learning_rate(*given))
    assert golden_losses(model, tmp_path) != pytest.approx(GOLDEN[model], rel=TOLERANCE[model])


def test_a_photo_read_twice_is_the_same(tmp_path):
    Image.fromarray(PHOTOS[0]).save(tmp_path / "a.jpg")
    photo = Photo(tmp_path / "a.jpg")
    assert (photo.resized(64) == photo.resized(64)).all()
    assert (np.asarray(photo.whole()) == np.asarray(Photo(tmp_path / "a.jpg").whole())).all()
