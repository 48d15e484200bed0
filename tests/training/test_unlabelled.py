"""Images without labels: which they are, what the teacher says of them, and that nobody reads labels they have."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from petseg.config import TrainConfig, UnlabelledConfig
from petseg.errors import PetsegError
from petseg.models.builder import Input
from petseg.training.batches import load_splits
from petseg.training.inference import Network
from petseg.training.loop import Execution, Objective, train
from petseg.training.losses import cross_entropy
from petseg.training.unlabelled import Teacher, load_unlabelled
from tests.conftest import CPU, interrupted_at, prepare_for, refused, tiny, train_on_cpu

REST = ("train.ema=0.9", "train.unlabelled.source=rest", "data.fraction=0.5", "train.unlabelled.confidence=0.4")


def teacher_of(split, module=None, **settings):
    config = TrainConfig(ema=0.9, unlabelled=UnlabelledConfig(source="rest", **settings))
    return Teacher(Network(module or nn.Identity(), Input((0, 0, 0), (1, 1, 1)), CPU), split, config)


def test_the_rest_are_the_training_images_left_out_and_their_labels_are_never_read(prepared, tmp_path):
    config = tiny(*REST)
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
    alone = train_on_cpu(tiny(*REST, "train.unlabelled.weight=0"), prepared, tmp_path / "weight 0")
    assert alone[-1].val_loss != first[-1].val_loss


def test_the_teacher_labels_what_it_is_sure_of(prepared):
    split = load_splits(prepared, tiny(), CPU.device)["train"]

    class Fixed(nn.Module):
        def forward(self, images):
            assert not self.training
            logits = torch.zeros(len(images), 3, *images.shape[2:])
            logits[:, 1, 0], logits[:, 2, 1] = 5.0, 0.5
            return logits

    images, labels = teacher_of(split, Fixed(), confidence=0.9).batch(split.rows[:4], 16)
    assert (images.shape, labels.shape, labels.dtype) == ((4, 3, 16, 16), (4, 16, 16), torch.uint8)
    assert (labels[:, 0] == 1).all()
    assert (labels[:, 1:] == 255).all()
    teacher = teacher_of(split, ratio=1.5, weight=2.0, ramp_up=0.5)
    batches = teacher.batches(3, [4, 4, 2])
    assert [len(rows) for rows in batches] == [6, 6, 3]
    assert all(map(np.array_equal, batches, teacher.batches(3, [4, 4, 2])))
    taken = np.concatenate(teacher.batches(1, [len(split.rows)] * 2))
    counts = np.unique(taken, return_counts=True)[1]
    assert len(counts) == len(split.rows)
    assert set(counts) == {3}
    assert [teacher.weight(step, 8) for step in (0, 1, 3, 7)] == [0.5, 1.0, 2.0, 2.0]


def test_the_objective_adds_their_mean_over_all_pixels():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 4, 4, generator=generator)
    labels = torch.randint(0, 2, (3, 4, 4), generator=generator)
    labels[2, 1:] = 255  # a quarter of one image of two is sure
    loss, objective = Objective(TrainConfig(), labelled=1, weight=0.5)(logits, labels)
    assert loss == cross_entropy(logits[:1], labels[:1])
    sums = torch.nn.functional.cross_entropy(logits[1:], labels[1:], ignore_index=255, reduction="sum")
    torch.testing.assert_close(objective, loss + 0.5 * sums / labels[1:].numel())
    labels[1:] = 255
    assert Objective(TrainConfig(), labelled=1, weight=0.5)(logits, labels)[1] == loss


def test_a_folder_of_images_and_a_resumed_run(prepared, tmp_path, caplog):
    rng = np.random.default_rng(0)
    (tmp_path / "new" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.png", "deep/c.png"):
        Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)).save(tmp_path / "new" / name)
    (tmp_path / "new" / "d.png").write_bytes(b"no image")
    config = tiny("train.ema=0.9", f"train.unlabelled.source='{tmp_path / 'new'}'", "train.epochs=3")
    whole = train_on_cpu(config, prepared, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_on_cpu(config, prepared, tmp_path / "resumed", on_step=interrupted_at(4))
    resumed = train_on_cpu(config, prepared, tmp_path / "resumed", resume=True)
    assert [row.val_loss for row in resumed] == [row.val_loss for row in whole]
    assert "1 left out (first: d.png: image cannot be decoded" in caplog.text


def test_what_cannot_be_used_is_refused(prepared, tmp_path):
    split = load_splits(prepared, tiny(), CPU.device)["train"]
    (tmp_path / "empty").mkdir()
    for source, match in (
        ("rest", r"^train\.unlabelled\.source is 'rest', but data\.fraction 1 leaves no training image out; lower it"),
        (str(tmp_path / "gone"), r"^unlabelled images .*gone: not a folder; name one with images$"),
        (str(tmp_path / "empty"), r"^unlabelled images .*empty: no images in this folder; wanted \.jpg"),
    ):
        refused(match, load_unlabelled, tiny("train.ema=0.9", f"train.unlabelled.source='{source}'"), split)
    with pytest.raises(PetsegError, match=r"train\.unlabelled needs an average of the weights; set train\.ema"):
        tiny("train.unlabelled.source=rest")


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_padding_has_no_label_of_the_teacher_and_crops_are_drawn(fit, pets_folder):
    config = tiny(f"fit={fit}", "data.size=96")  # larger than the images: both fits fill up

    class Sure(nn.Module):
        def forward(self, images):
            return torch.tensor([5.0, 0, 0]).view(1, 3, 1, 1).expand(len(images), 3, *images.shape[2:])

    split = load_splits(prepare_for(config, pets_folder), config, CPU.device)["train"]
    _, labels = teacher_of(split, Sure(), confidence=0.9).batch(split.rows, 96, torch.Generator())
    for label, row in zip(labels, split.rows, strict=True):
        height, width = split.prepared.contents[row]
        assert (label[:height, :width] == 0).float().mean() > 0.999, "but for what is just as grey"
        assert (label[height:] == 255).all()
        assert (label[:, width:] == 255).all()
