"""The losses, held against plain numpy in float64: values, gradients by finite differences, and the extremes."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from petseg.training.losses import cross_entropy, dice_loss, median_frequency_weights

CLASSES = 3
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])


def draw(seed=0, shape=(2, 4, 5)):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], CLASSES, *shape[1:], generator=generator)
    labels = torch.randint(0, CLASSES, shape, generator=generator)
    return logits, labels.masked_fill(torch.rand(shape, generator=generator) < 0.2, 255)


def sure_of(labels, num_classes=CLASSES):
    known = labels.masked_fill(labels == 255, 0)
    return 40.0 * torch.nn.functional.one_hot(known, num_classes).permute(0, 3, 1, 2).float()


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def naive_cross_entropy(logits, labels, weights=(1.0,) * CLASSES):
    logs = log_softmax(logits)
    places = [(index, labels[index, row, column], row, column) for index, row, column in np.argwhere(labels != 255)]
    total = -sum(weights[place[1]] * logs[place] for place in places)
    return total / sum(weights[place[1]] for place in places)


def naive_dice(logits, labels, smooth=1.0):
    probabilities, true = np.exp(log_softmax(logits)), labels[labels != 255]
    scores = []
    for label in range(logits.shape[1]):
        chosen = probabilities[:, label][labels != 255]
        overlap, total = chosen[true == label].sum(), chosen.sum() + (true == label).sum()
        scores.append((2 * overlap + smooth) / (total + smooth))
    return 1 - float(np.mean(scores))


CASES = {
    "cross entropy": (cross_entropy, naive_cross_entropy),
    "weighted": (partial(cross_entropy, class_weights=WEIGHTS), partial(naive_cross_entropy, weights=WEIGHTS.tolist())),
    "dice": (dice_loss, naive_dice),
    "dice smoothed by 7": (partial(dice_loss, smooth=7.0), partial(naive_dice, smooth=7.0)),
}
every_loss = pytest.mark.parametrize(("ours", "naive"), CASES.values(), ids=CASES)


@pytest.mark.parametrize("seed", range(3))
@every_loss
def test_value_and_gradient_agree_with_numpy(ours, naive, seed):
    # not torch's gradcheck: the losses compute in float32 by intent, too coarse to differentiate by steps; the oracle
    # is the naive loss in float64
    logits, labels = draw(seed)
    exact, expected = logits.double().numpy(), np.empty(logits.shape)
    for place in np.ndindex(exact.shape):
        step = np.zeros_like(exact)
        step[place] = 1e-5
        expected[place] = (naive(exact + step, labels.numpy()) - naive(exact - step, labels.numpy())) / 2e-5
    loss = ours(logits.requires_grad_(), labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(naive(exact, labels.numpy()), rel=1e-5)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-6, rtol=1e-4)


@every_loss
def test_ignored_pixels_and_the_order_of_images_do_not_matter_and_float32_is_computed_in(ours, naive):
    logits, labels = draw()
    loss = ours(logits.bfloat16(), labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ours(logits.bfloat16().float(), labels))
    assert ours(logits.flip(0), labels.flip(0)).item() == pytest.approx(ours(logits, labels).item())
    ignored = (labels == 255)[:, None].expand_as(logits)
    loss = ours(logits.requires_grad_(), labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[ignored].abs().max() == 0
    assert gradient[~ignored].abs().max() > 0
    assert ours(torch.where(ignored, logits.flip(1) - 5, logits), labels).item() == pytest.approx(loss.item())


def test_relabelling_does_not_matter():
    logits, labels = draw()
    order = torch.tensor([2, 0, 1])  # new class c is old class order[c]
    table = torch.full((256,), 255)
    table[order] = torch.arange(CLASSES)
    for loss in (cross_entropy, dice_loss):
        assert loss(logits[:, order], table[labels]).item() == pytest.approx(loss(logits, labels).item())
    weighted = cross_entropy(logits[:, order], table[labels], WEIGHTS[order])
    assert weighted.item() == pytest.approx(cross_entropy(logits, labels, WEIGHTS).item())


def test_cross_entropy_by_hand_and_at_its_extremes():
    logits = torch.log(torch.tensor([[0.2, 0.5], [0.8, 0.5]]))[None, :, None]
    assert cross_entropy(logits, torch.tensor([[[0, 1]]])).item() == pytest.approx(-math.log(0.2 * 0.5) / 2)
    weighted = cross_entropy(logits, torch.tensor([[[0, 1]]]), torch.tensor([3.0, 1.0]))
    assert weighted.item() == pytest.approx(-(3 * math.log(0.2) + math.log(0.5)) / 4)
    no_idea = torch.zeros(2, CLASSES, 4, 5)
    assert cross_entropy(no_idea, draw()[1]).item() == pytest.approx(math.log(CLASSES))
    assert cross_entropy(no_idea, torch.full((2, 4, 5), 255)) == 0


def test_dice_by_hand_at_its_extremes_and_falls_as_the_prediction_gets_better():
    _, labels = draw(shape=(4, 32, 32))
    wrong = torch.where(labels == 255, labels, (labels + 1) % CLASSES)
    assert dice_loss(sure_of(labels), labels).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(sure_of(wrong), labels).item() == pytest.approx(1, abs=0.002)
    assert dice_loss(sure_of(labels, CLASSES + 2), labels).item() == pytest.approx(0, abs=1e-6), "classes in neither"
    losses = [dice_loss(sure_of(labels) / 40 * sureness, labels).item() for sureness in (-4, 0, 1, 2, 4, 8)]
    assert losses == sorted(losses, reverse=True)
    assert 0 < losses[-1] < losses[0] < 1
    # half a pixel of overlap of 1 + 1 for class 0, the same for class 1: 1 - (2 * .5 + s) / (2 + s)
    no_idea, ids = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    assert dice_loss(no_idea, ids, smooth=0.0).item() == pytest.approx(1 - 1 / 2)
    assert dice_loss(no_idea, ids, smooth=1.0).item() == pytest.approx(1 - 2 / 3)
    # the batch is one image: two images side by side score as they do one below the other
    logits, labels = draw()
    beside = dice_loss(torch.cat(tuple(logits), dim=-1)[None], torch.cat(tuple(labels), dim=-1)[None])
    assert beside.item() == pytest.approx(dice_loss(logits, labels).item())


def test_median_frequency_weights_by_hand():
    labels = np.full((2, 4, 4), 255, np.uint8)
    labels[0, :3] = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]  # 12 labelled: 8 of class 0, 4 of class 1
    labels[1, :2] = [[0, 0, 2, 2], [2, 2, 2, 2]]  # 8 labelled: 2 of class 0, 6 of class 2; class 3 never
    frequency = np.array([10 / 20, 4 / 12, 6 / 8])  # only the images that hold the class
    weights = median_frequency_weights(labels, 4)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights, [*(0.5 / frequency), 0.0], rtol=1e-6)
    balanced = np.tile(np.uint8([[0, 1], [2, 255]]), (3, 2, 2))
    assert median_frequency_weights(balanced, CLASSES).tolist() == [1.0, 1.0, 1.0]
