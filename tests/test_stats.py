"""The paired bootstrap finds the difference that was made, and its interval holds it as often as it says."""

from __future__ import annotations

import numpy as np
import pytest

from petseg.metrics import mean_iou
from petseg.stats import paired_bootstrap


def made_pictures(count: int, *, lead: float, seed: int, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Returns two models' matrices [N, 2, 2] of the same pictures: the first errs on `lead` fewer pixels of 0..1.

    Pictures differ in difficulty and in the share of their pet, which both models share.
    """
    generator = np.random.default_rng(seed)
    pet = generator.uniform(0.2, 0.7, count)
    difficulty = generator.beta(2, 10, count) + 0.1
    errors = [np.clip(difficulty + sign * lead / 2 + generator.normal(0, noise, count), 0.01, 0.9) for sign in (-1, 1)]

    def matrices(error: np.ndarray) -> np.ndarray:
        shares = np.array([[(1 - pet) * (1 - error), (1 - pet) * error], [pet * error, pet * (1 - error)]])
        return np.moveaxis(np.rint(4096 * shares), -1, 0).astype(np.int64)

    return matrices(errors[0]), matrices(errors[1])


def test_identical_models_differ_by_nothing():
    first, _ = made_pictures(40, lead=0.0, seed=0)
    difference = paired_bootstrap(first, first.copy(), resamples=300)
    assert (difference.points, difference.low, difference.high) == (0, 0, 0)
    assert difference.share_first_better == 0


def test_equal_models_hold_zero():
    difference = paired_bootstrap(*made_pictures(200, lead=0.0, seed=1), resamples=500)
    assert difference.low < 0 < difference.high
    assert 0.01 < difference.share_first_better < 0.99


def test_a_constant_lead_is_found():
    difference = paired_bootstrap(*made_pictures(200, lead=0.05, seed=0), resamples=500)
    assert 0 < difference.low < difference.points < difference.high
    assert difference.share_first_better == 1


def test_points_by_hand():
    first = np.array([[[6, 2], [2, 6]], [[8, 0], [0, 8]]])  # added: 14, 2 / 2, 14; IoU 14 / 18 of both classes
    second = np.array([[[4, 4], [4, 4]], [[8, 0], [0, 8]]])  # added: 12, 4 / 4, 12; IoU 12 / 20
    difference = paired_bootstrap(first, second, resamples=2000)
    assert difference.points == pytest.approx(100 * (14 / 18 - 12 / 20))
    # of four draws of two pictures one is twice the first (6 / 10 less 4 / 12), one twice the second (no difference)
    assert difference.high == pytest.approx(100 * (6 / 10 - 4 / 12))
    assert difference.low == 0
    assert difference.share_first_better == pytest.approx(3 / 4, abs=0.03)
    assert (difference.resamples, difference.confidence) == (2000, 0.95)


def test_swapping_swaps_the_sign():
    first, second = made_pictures(50, lead=0.02, seed=2)
    there, back = paired_bootstrap(first, second, resamples=400), paired_bootstrap(second, first, resamples=400)
    assert (there.points, there.low, there.high) == pytest.approx((-back.points, -back.high, -back.low))
    assert there.share_first_better + back.share_first_better == pytest.approx(1)


def test_order_of_pictures_does_not_matter_to_the_points():
    first, second = made_pictures(50, lead=0.02, seed=2)
    there = paired_bootstrap(first, second, resamples=10)
    assert paired_bootstrap(first[::-1], second[::-1], resamples=10).points == there.points


def test_same_seed_same_interval():
    pair = made_pictures(50, lead=0.02, seed=3)
    first, again, other = (paired_bootstrap(*pair, resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert first.points == other.points


def test_more_confidence_is_wider():
    pair = made_pictures(60, lead=0.02, seed=4)
    half, most = (paired_bootstrap(*pair, resamples=500, confidence=confidence) for confidence in (0.5, 0.99))
    assert most.low < half.low < half.high < most.high


def test_more_pictures_are_narrower():
    few, many = (paired_bootstrap(*made_pictures(count, lead=0.02, seed=5), resamples=500) for count in (40, 1000))
    assert (many.high - many.low) < 0.4 * (few.high - few.low)


def test_pairing_removes_what_pictures_share():
    """Pictures vary far more than the models differ: shuffling one model's pictures widens the interval."""
    first, second = made_pictures(100, lead=0.02, seed=6, noise=0.01)
    paired = paired_bootstrap(first, second, resamples=500)
    shuffled = paired_bootstrap(first, np.random.default_rng(0).permutation(second), resamples=500)
    assert paired.points == pytest.approx(shuffled.points)
    assert (paired.high - paired.low) < 0.5 * (shuffled.high - shuffled.low)


def test_class_absent_from_a_resample_is_left_out():
    """A class that one picture of three holds is missing from many resamples, which are scored without it."""
    plain = np.array([[4, 1, 0], [1, 4, 0], [0, 0, 0]])
    rare = np.array([[4, 1, 0], [1, 4, 0], [0, 0, 3]])
    difference = paired_bootstrap(np.array([plain, plain, rare]), np.array([plain, plain, rare]), resamples=200)
    assert (difference.low, difference.high) == (0, 0)


@pytest.mark.parametrize(("confidence", "least", "most"), [(0.95, 0.88, 0.99), (0.5, 0.4, 0.6)])
def test_coverage(confidence, least, most):
    """Of 200 studies of 60 pictures, about the stated share of intervals holds the population's difference."""
    first, second = made_pictures(20_000, lead=0.03, seed=7)
    truth = 100 * float(mean_iou(first.sum(axis=0)) - mean_iou(second.sum(axis=0)))
    generator = np.random.default_rng(8)
    held = 0
    for study in range(200):
        drawn = generator.integers(0, len(first), 60)
        difference = paired_bootstrap(first[drawn], second[drawn], resamples=200, confidence=confidence, seed=study)
        held += difference.low <= truth <= difference.high
    assert truth > 1
    assert least <= held / 200 <= most


def test_unpaired_matrices_are_refused():
    first, second = made_pictures(5, lead=0.0, seed=0)
    with pytest.raises(AssertionError, match="both models score the same pictures"):
        paired_bootstrap(first, second[:4])
