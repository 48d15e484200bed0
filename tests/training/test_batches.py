"""Batches: every image once an epoch, the same for all models; smaller sides; classes that scores take together."""

import numpy as np
import pytest
import torch

from petseg.config import TrainConfig
from petseg.data.dataset import Merge, classes_from
from petseg.evaluation.evaluate import evaluate_run
from petseg.training.batches import epoch_batches, load_splits
from petseg.training.inference import ImageClass, Seen, scored_labels, scored_logits
from tests.conftest import CPU, prepare_for, tiny, train_on_cpu

PET = Merge(classes_from(["pet", "background", "border"]), (0, 0, 1, 2))  # of cat, dog, background, border


@pytest.mark.parametrize("count", [7, 8, 9, 16, 17])
def test_an_epoch_shows_every_image_once_and_no_batch_is_single(count):
    config = TrainConfig(batch_size=8, seed=3)
    first, again, second = (epoch_batches(np.arange(count), epoch, config) for epoch in (1, 1, 2))
    order = np.concatenate(first).tolist()
    assert sorted(order) == list(range(count))
    assert min(map(len, first)) > 1
    assert order == np.concatenate(again).tolist()
    assert order != np.concatenate(second).tolist()


def test_all_models_see_the_same_images_in_the_same_order_and_the_protocol_chooses_the_splits(prepared, pets_folder):
    def order(config):
        return np.concatenate(epoch_batches(load_splits(prepared, config, CPU.device)["train"].rows, 1, config.train))

    assert order(tiny(model="unet")).tolist() == order(tiny(model="segnet")).tolist()
    config = tiny("protocol=seed")
    seed = load_splits(prepare_for(config, pets_folder), config, CPU.device)
    assert set(seed) == {"train", "val"}
    assert not set(seed["train"].rows) & set(seed["val"].rows)


def test_a_batch_can_be_reduced_and_keeps_its_labels_values(prepared):
    split = load_splits(prepared, tiny(), CPU.device)["train"]
    images, labels = split.batch(split.rows[:5])
    small_images, small_labels = split.batch(split.rows[:5], 16)
    assert (small_images.shape, small_labels.shape) == ((5, 3, 16, 16), (5, 16, 16))
    assert small_labels.dtype == torch.uint8
    # 32 to 16 px: antialiased means stay, and a label is one of its 2x2 block
    assert torch.allclose(small_images.mean(dim=(2, 3)), images.mean(dim=(2, 3)), atol=0.01)
    blocks = labels.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)
    assert (blocks == small_labels[..., None]).any(dim=-1).all()


def test_merged_classes_are_scored_together_and_an_image_s_class_is_the_member_it_shows_most_of():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 4, 6, 6, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 255], dtype=torch.uint8)[torch.randint(0, 5, (4, 6, 6), generator=generator)]
    probabilities = logits.softmax(dim=1)
    expected = torch.stack([probabilities[:, 0] + probabilities[:, 1], probabilities[:, 2], probabilities[:, 3]], dim=1)
    assert torch.allclose(scored_logits(logits, PET).softmax(dim=1), expected, atol=1e-6)
    truth = scored_labels(labels, PET)
    for before, after in ((0, 0), (1, 0), (2, 1), (3, 2), (255, 255)):
        assert (truth[labels == before] == after).all()
    assert scored_logits(logits, None) is logits
    assert scored_labels(labels, None) is labels
    # all cats; half of the images look like dogs, one shows neither and does not count
    labels = torch.zeros(5, 6, 6, dtype=torch.uint8)
    labels[4] = 2
    logits = torch.zeros(5, 4, 6, 6)
    logits[:2, 0] = logits[2:, 1] = 1.0
    for merge, wanted in ((PET, [True, True, False, False]), (None, [])):
        whole, bands = ImageClass(merge), ImageClass(merge)
        whole.add(Seen(np.arange(5), labels, logits))
        for part in (slice(2), slice(2, 6)):
            bands.add(Seen(np.arange(5), labels[:, part], logits[:, :, part], whole=False))
        assert whole.right() == bands.right() == wanted


@pytest.mark.parametrize("task", ["trimap", "trimap_species"])
def test_both_trimap_tasks_give_the_same_kind_of_scores(task, pets_folder, tmp_path):
    config = tiny(f"task={task}", "train.epochs=1")
    prepared = prepare_for(config, pets_folder)
    (row,) = train_on_cpu(config, prepared, tmp_path / "run")
    evaluation = evaluate_run(tmp_path / "run", CPU, load_splits(prepared, config, CPU.device), "val")
    scores = evaluation.scores
    assert list(scores.iou) == ["pet", "background", "border"]
    assert evaluation.images.confusions.shape[1:] == (3, 3)
    assert scores.cross_entropy == pytest.approx(row.val_loss, rel=1e-5)
    assert scores.image_class_accuracy == row.val_image_class
    assert scores.image_class_images == (len(evaluation.images.ids) if task == "trimap_species" else None)
