"""Images without labels: which they are, and that nobody reads labels that they have."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from petseg.config import TrainConfig, UnlabelledConfig
from petseg.data.dataset import Class
from petseg.data.images import open_sample
from petseg.data.unlabelled import open_unlabelled
from petseg.errors import PetsegError
from petseg.training import distributed
from petseg.training.batches import load_splits
from petseg.training.loop import Execution, train
from petseg.training.unlabelled import batches_beside, load_unlabelled
from tests.conftest import CPU, image_bytes, interrupted_at, refused, tiny, train_on_cpu


@pytest.fixture
def teacher(prepared, tmp_path):
    run = tmp_path / "teacher"
    train_on_cpu(tiny(), prepared, run)
    return f"train.teacher='{run}'"


def test_the_rest_are_the_training_images_left_out_and_their_labels_are_never_read(prepared, teacher, tmp_path):
    config = tiny(teacher, "train.unlabelled.source=rest", "data.fraction=0.5")
    splits = load_splits(prepared, config, CPU.device)
    rest = load_unlabelled(config, splits["train"])
    own, others = (set(split.rows.tolist()) for split in (splits["train"], rest))
    assert own | others == set(prepared.rows(prepared.dataset.splits["train"]).tolist())
    assert not own & others
    labels = splits["train"].labels.clone()
    labels[rest.rows] = 2 - labels[rest.rows] % 3
    wrong = {name: replace(split, labels=labels) for name, split in splits.items()}
    first, again = (
        train(config, prepared, tmp_path / name, Execution(CPU, splits=known))
        for name, known in (("as they are", splits), ("wrong", wrong))
    )
    assert [(row.train_loss, row.val_loss) for row in first] == [(row.train_loss, row.val_loss) for row in again]
    # and they do count: without them the model becomes another
    alone = train_on_cpu(tiny(teacher, "data.fraction=0.5"), prepared, tmp_path / "without")
    assert alone[-1].val_loss != first[-1].val_loss


def test_rows_beside_the_batches(prepared):
    split = load_splits(prepared, tiny(), CPU.device)["train"]
    settings = TrainConfig(teacher="run", unlabelled=UnlabelledConfig(source="rest", ratio=1.5))
    batches = batches_beside(split, 3, [4, 4, 2], settings)
    assert [len(rows) for rows in batches] == [6, 6, 3]
    assert all(map(np.array_equal, batches, batches_beside(split, 3, [4, 4, 2], settings)))
    taken = np.concatenate(batches_beside(split, 1, [len(split.rows)] * 2, settings))
    counts = np.unique(taken, return_counts=True)[1]
    assert len(counts) == len(split.rows)
    assert set(counts) == {3}


def test_every_rank_has_a_row_beside_a_small_batch(prepared, monkeypatch):
    split = load_splits(prepared, tiny(), CPU.device)["train"]
    monkeypatch.setattr(distributed, "count", lambda: 2)
    settings = TrainConfig(teacher="run", unlabelled=UnlabelledConfig(source="rest", ratio=0.25))
    assert [len(rows) for rows in batches_beside(split, 1, [8, 12, 2], settings)] == [2, 3, 2]


@pytest.mark.parametrize("size", [(40, 24), (32, 32)], ids=str)
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize(("orientation", "turn"), [(3, "ROTATE_180"), (6, "ROTATE_270")])
def test_images_without_labels_are_upright(kind, size, orientation, turn, tmp_path):
    pixels = Image.linear_gradient("L").resize(size).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif, "quality": 95}
    (tmp_path / "a.jpg").write_bytes(image_bytes(pixels, kind, **options))
    dataset = open_unlabelled(tmp_path, [Class("leaf", "#000000")])
    found = open_sample(dataset, dataset.samples[0])
    wanted = np.asarray(pixels.transpose(Image.Transpose[turn]), int)
    assert found.ids.shape == wanted.shape[:2]
    assert np.abs(np.asarray(found.image, int) - wanted).max() < 10


def test_a_folder_of_images_and_a_resumed_run(prepared, teacher, tmp_path, caplog):
    rng = np.random.default_rng(0)
    (tmp_path / "new" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.png", "deep/c.png"):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).save(tmp_path / "new" / name)
    (tmp_path / "new" / "d.png").write_bytes(b"no image")
    config = tiny(teacher, f"train.unlabelled.source='{tmp_path / 'new'}'", "train.epochs=3")
    whole = train_on_cpu(config, prepared, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_on_cpu(config, prepared, tmp_path / "resumed", on_step=interrupted_at(4))
    resumed = train_on_cpu(config, prepared, tmp_path / "resumed", resume=True)
    assert [row.val_loss for row in resumed] == [row.val_loss for row in whole]
    assert "1 left out (first: d.png: image cannot be decoded" in caplog.text


def test_what_cannot_be_used_is_refused(prepared, teacher, tmp_path):
    split = load_splits(prepared, tiny(), CPU.device)["train"]
    (tmp_path / "empty").mkdir()
    for source, match in (
        ("rest", r"^train\.unlabelled\.source is 'rest', but data\.fraction 1 leaves no training image out; lower it"),
        (str(tmp_path / "gone"), r"^unlabelled images .*gone: not a folder; name one with images$"),
        (str(tmp_path / "empty"), r"^unlabelled images .*empty: no images in this folder; wanted \.jpg"),
    ):
        refused(match, load_unlabelled, tiny(teacher, f"train.unlabelled.source='{source}'"), split)
    with pytest.raises(
        PetsegError, match=r"train\.unlabelled needs a trained run that labels it; name one by train\.teacher"
    ):
        tiny("train.unlabelled.source=rest")
