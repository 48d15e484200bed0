"""The losses, held against plain numpy in float64: values, gradients by finite differences, and the extremes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from petseg.training.losses import cross_entropy, dice_loss, median_frequency_weights

CLASSES = 3
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])


def made(seed: int = 0, shape: tuple[int, int, int] = (2, 4, 5)) -> tuple[Tensor, Tensor]:
    """Returns logits [N, C, H, W] and labels [N, H, W] with a fifth of the pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(shape[0], CLASSES, *shape[1:], generator=generator)
    labels = torch.randint(0, CLASSES, shape, generator=generator)
    return logits, labels.masked_fill(torch.rand(shape, generator=generator) < 0.2, 255)


def sure_of(labels: Tensor, num_classes: int = CLASSES) -> Tensor:
    """Returns logits that give each pixel's label (0 where ignored) a probability of nearly 1."""
    known = labels.masked_fill(labels == 255, 0)
    return 40.0 * torch.nn.functional.one_hot(known, num_classes).permute(0, 3, 1, 2).float()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def naive_cross_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    logs = log_softmax(logits)
    total = divisor = 0.0
    for index, row, column in np.argwhere(labels != 255):
        label = labels[index, row, column]
        weight = 1.0 if weights is None else weights[label]
        total -= weight * logs[index, label, row, column]
        divisor += weight
    return total / divisor


def naive_dice(logits: np.ndarray, labels: np.ndarray, smooth: float = 1.0) -> float:
    probabilities = np.exp(log_softmax(logits))
    scores = []
    for label in range(logits.shape[1]):
        chosen = probabilities[:, label][labels != 255]
        true = labels[labels != 255] == label
        scores.append((2 * chosen[true].sum() + smooth) / (chosen.sum() + true.sum() + smooth))
    return 1 - float(np.mean(scores))


def finite_differences(
    loss: Callable[[np.ndarray, np.ndarray], float], logits: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    gradient = np.empty_like(logits)
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        gradient[place] = (loss(logits + step, labels) - loss(logits - step, labels)) / 2e-5
    return gradient


CASES = {
    "cross entropy": (cross_entropy, naive_cross_entropy),
    "weighted cross entropy": (
        lambda logits, labels: cross_entropy(logits, labels, WEIGHTS),
        lambda logits, labels: naive_cross_entropy(logits, labels, WEIGHTS.double().numpy()),
    ),
    "dice": (dice_loss, naive_dice),
    "dice smoothed by 7": (
        lambda logits, labels: dice_loss(logits, labels, 7.0),
        lambda logits, labels: naive_dice(logits, labels, 7.0),
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> tuple[Callable[..., Tensor], Callable[..., float]]:
    return request.param


# Any loss


@pytest.mark.parametrize("seed", range(3))
def test_value_agrees_with_numpy(case, seed):
    ours, naive = case
    logits, labels = made(seed)
    assert ours(logits, labels).item() == pytest.approx(naive(logits.double().numpy(), labels.numpy()), rel=1e-5)


def test_gradient_agrees_with_finite_differences(case):
    # not torch's gradcheck: the losses compute in float32 by intent, too coarse to differentiate by steps; the oracle
    # is the naive loss in float64
    ours, naive = case
    logits, labels = made()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(ours(logits, labels), logits)
    expected = finite_differences(naive, logits.detach().double().numpy(), labels.numpy())
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-6, rtol=1e-4)


def test_ignored_pixels_do_not_matter(case):
    ours, _ = case
    logits, labels = made()
    ignored = (labels == 255)[:, None].expand_as(logits)
    logits.requires_grad_()
    loss = ours(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[ignored].abs().max() == 0
    assert gradient[~ignored].abs().max() > 0
    assert ours(torch.where(ignored, logits.flip(1) - 5, logits), labels).item() == pytest.approx(loss.item())


def test_computes_in_float32(case):
    ours, _ = case
    logits, labels = made()
    coarse = logits.bfloat16()
    loss = ours(coarse, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, ours(coarse.float(), labels))


def test_order_of_pictures_does_not_matter(case):
    ours, _ = case
    logits, labels = made()
    assert ours(logits.flip(0), labels.flip(0)).item() == pytest.approx(ours(logits, labels).item())


def test_relabelling_does_not_matter():
    logits, labels = made()
    order = torch.tensor([2, 0, 1])  # new class c is old class order[c]
    table = torch.full((256,), 255)
    table[order] = torch.arange(CLASSES)
    for loss in (cross_entropy, dice_loss):
        assert loss(logits[:, order], table[labels]).item() == pytest.approx(loss(logits, labels).item())
    weighted = cross_entropy(logits[:, order], table[labels], WEIGHTS[order])
    assert weighted.item() == pytest.approx(cross_entropy(logits, labels, WEIGHTS).item())


# Cross-entropy


def test_cross_entropy_by_hand():
    logits = torch.log(torch.tensor([[0.2, 0.5], [0.8, 0.5]]))[None, :, None]
    assert cross_entropy(logits, torch.tensor([[[0, 1]]])).item() == pytest.approx(-math.log(0.2 * 0.5) / 2)
    weighted = cross_entropy(logits, torch.tensor([[[0, 1]]]), torch.tensor([3.0, 1.0]))
    assert weighted.item() == pytest.approx(-(3 * math.log(0.2) + math.log(0.5)) / 4)


def test_cross_entropy_of_no_idea_is_ln_c():
    _, labels = made()
    assert cross_entropy(torch.zeros(2, CLASSES, 4, 5), labels).item() == pytest.approx(math.log(CLASSES))


def test_cross_entropy_without_labels_is_nan():
    assert cross_entropy(torch.zeros(1, CLASSES, 2, 2), torch.full((1, 2, 2), 255)).isnan()


# Dice


def test_dice_extremes():
    _, labels = made(shape=(4, 32, 32))
    wrong = torch.where(labels == 255, labels, (labels + 1) % CLASSES)
    assert dice_loss(sure_of(labels), labels).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(sure_of(wrong), labels).item() == pytest.approx(1, abs=0.002)


def test_dice_by_hand():
    # half a pixel of overlap of 1 + 1 for class 0, the same for class 1: 1 - (2 * .5 + s) / (2 + s)
    logits, labels = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    assert dice_loss(logits, labels, smooth=0.0).item() == pytest.approx(1 - 1 / 2)
    assert dice_loss(logits, labels, smooth=1.0).item() == pytest.approx(1 - 2 / 3)


def test_dice_of_a_class_in_neither_costs_nothing():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, :2] = 1
    assert dice_loss(sure_of(labels, 5), labels).item() == pytest.approx(0, abs=1e-6)


def test_dice_adds_over_the_batch():
    """The batch is one picture: two pictures side by side score as they do one below the other."""
    logits, labels = made()
    beside = dice_loss(torch.cat(tuple(logits), dim=-1)[None], torch.cat(tuple(labels), dim=-1)[None])
    assert beside.item() == pytest.approx(dice_loss(logits, labels).item())


def test_dice_falls_as_the_prediction_gets_better():
    _, labels = made(shape=(2, 16, 16))
    losses = [dice_loss(sure_of(labels) / 40 * sureness, labels).item() for sureness in (-4, 0, 1, 2, 4, 8)]
    assert losses == sorted(losses, reverse=True)
    assert 0 < losses[-1] < losses[0] < 1


# Median frequency


def test_median_frequency_weights_by_hand():
    labels = np.full((2, 4, 4), 255, np.uint8)
    labels[0, :3] = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]  # 12 labelled: 8 of class 0, 4 of class 1
    labels[1, :2] = [[0, 0, 2, 2], [2, 2, 2, 2]]  # 8 labelled: 2 of class 0, 6 of class 2; class 3 never
    frequency = np.array([10 / 20, 4 / 12, 6 / 8])  # only the pictures that hold the class
    weights = median_frequency_weights(labels, 4)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), [*(0.5 / frequency), 0.0], rtol=1e-6)


def test_median_frequency_weights_follow_the_formula():
    """Section 6.3.2 of Eigen and Fergus by loops: median(f) / f_c, f_c = pixels of c / pixels of pictures with c."""
    generator = np.random.default_rng(0)
    labels = generator.choice(np.uint8([0, 1, 2, 3, 255]), (6, 8, 8), p=[0.5, 0.2, 0.1, 0.05, 0.15])
    labels[:4][labels[:4] == 3] = 0
    frequency = []
    for label in range(4):
        holding = [picture for picture in labels if (picture == label).any()]
        own = sum(int((picture == label).sum()) for picture in holding)
        frequency.append(own / sum(int((picture != 255).sum()) for picture in holding))
    weights = median_frequency_weights(labels, 4)
    np.testing.assert_allclose(weights.numpy(), np.median(frequency) / frequency, rtol=1e-6)
    assert weights[3] > weights[0]


def test_balanced_classes_weigh_one():
    labels = np.tile(np.uint8([[0, 1], [2, 255]]), (3, 2, 2))
    assert median_frequency_weights(labels, CLASSES).tolist() == [1.0, 1.0, 1.0]
