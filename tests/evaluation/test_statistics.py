"""The paired bootstrap finds the difference that was made, and its interval holds it as often as it says."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from petseg.evaluation.statistics import bootstrap, paired_bootstrap, permutation_test, seed_interval
from petseg.metrics import iou, mean_iou


def made_pictures(count: int, *, lead: float, seed: int, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Returns two models' matrices [N, 2, 2] of the same pictures: the first errs on `lead` fewer pixels of 0..1."""
    first, second = made_trainings(1, count, lead=lead, seed=seed, noise=noise, of_seed=0.0)
    return first[0], second[0]


def made_trainings(
    seeds: int, count: int, *, lead: float, seed: int, of_seed: float, noise: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Returns two models' matrices [S, N, 2, 2]: trainings differ by `of_seed`, pictures of one by `noise`.

    Pictures differ in difficulty and in the share of their pet, which all trainings share.
    """
    generator = np.random.default_rng(seed)
    pet = generator.uniform(0.2, 0.7, count)
    difficulty = generator.beta(2, 10, count) + 0.1

    def matrices(sign: int) -> np.ndarray:
        of_training = generator.normal(0, of_seed, seeds)[:, None] if of_seed else 0.0
        error = difficulty + sign * lead / 2 + of_training + generator.normal(0, noise, (seeds, count))
        error = np.clip(error, 0.01, 0.9)
        shares = np.array([[(1 - pet) * (1 - error), (1 - pet) * error], [pet * error, pet * (1 - error)]])
        return np.moveaxis(np.rint(4096 * shares), (0, 1), (-2, -1)).astype(np.int64)

    return matrices(-1), matrices(1)


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


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_swapping_swaps_the_sign(seeds):
    first, second = made_trainings(seeds, 50, lead=0.02, seed=2, of_seed=0.01)
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


# Several seeds


def test_points_are_the_mean_over_seeds():
    first, second = made_trainings(3, 40, lead=0.03, seed=0, of_seed=0.01)
    difference = paired_bootstrap(first, second, resamples=100)
    alone = [paired_bootstrap(one, other, resamples=100).points for one, other in zip(first, second, strict=True)]
    assert difference.points == pytest.approx(np.mean(alone))


def test_one_seed_with_or_without_its_axis():
    first, second = made_pictures(40, lead=0.03, seed=0)
    assert paired_bootstrap(first[None], second[None], resamples=100) == paired_bootstrap(first, second, resamples=100)


def test_equal_trainings_have_the_interval_of_one():
    first, second = made_pictures(200, lead=0.03, seed=0)
    one = paired_bootstrap(first, second)
    three = paired_bootstrap(np.stack([first] * 3), np.stack([second] * 3))
    assert (three.low, three.high) == pytest.approx((one.low, one.high))


def test_order_of_pictures_and_seeds_does_not_matter_to_the_points():
    first, second = made_trainings(3, 30, lead=0.02, seed=1, of_seed=0.01)
    there = paired_bootstrap(first, second, resamples=10)
    assert paired_bootstrap(first[::-1, ::-1], second[::-1, ::-1], resamples=10).points == pytest.approx(there.points)


def test_seeds_that_differ_widen_the_interval():
    calm, wild = (
        paired_bootstrap(*made_trainings(4, 300, lead=0.03, seed=2, of_seed=of_seed)) for of_seed in (1e-9, 0.03)
    )
    assert wild.high - wild.low > 2 * (calm.high - calm.low)


@pytest.mark.parametrize("seeds", [3, 5])
def test_where_seeds_make_all_of_the_spread_the_interval_is_student_s(seeds):
    """Each training has one error in all pictures, so that the choice of these does not matter."""
    errors = np.linspace(0.1, 0.2, seeds)
    right = np.array([[1000, 0], [0, 1000]])
    trained = np.array(
        [[right + np.rint(1000 * error).astype(int) * np.array([[-1, 1], [1, -1]])] * 9 for error in errors]
    )
    found = bootstrap(trained)
    scores = 100 * mean_iou(trained.sum(axis=1))
    wanted = scipy.stats.t.interval(0.95, seeds - 1, scores.mean(), scipy.stats.sem(scores))
    assert (found.low, found.high) == pytest.approx(wanted, abs=0.02 * (wanted[1] - wanted[0]))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seed", [1e-9, 0.003, 0.02])
def test_coverage_over_pictures_and_seeds(seeds, of_seed):
    """About 95 of 100 studies hold the truth, whether pictures or seeds make most of the spread."""
    many = made_trainings(2000, 200, lead=0.03, seed=3, of_seed=of_seed)
    truth = 100 * float(np.mean(mean_iou(many[0].sum(axis=1)) - mean_iou(many[1].sum(axis=1))))
    held = 0
    for study in range(200):
        difference = paired_bootstrap(
            *made_trainings(seeds, 60, lead=0.03, seed=100 + study, of_seed=of_seed), resamples=200, seed=study
        )
        held += difference.low <= truth <= difference.high
    assert 0.9 <= held / 200 <= 0.99


def test_a_model_s_own_interval_holds_its_score():
    first, _ = made_trainings(3, 200, lead=0.0, seed=4, of_seed=0.01)
    found = bootstrap(first)
    assert found.points == pytest.approx(100 * float(mean_iou(first.sum(axis=1)).mean()))
    assert found.low < found.points < found.high


def test_another_score():
    first, second = made_trainings(2, 50, lead=0.03, seed=5, of_seed=0.01)
    difference = paired_bootstrap(first, second, score=lambda confusions: iou(confusions)[..., 1], resamples=50)
    own = [100 * float(iou(model.sum(axis=1))[:, 1].mean()) for model in (first, second)]
    assert difference.points == pytest.approx(own[0] - own[1])


# The permutation test


def test_permutations_by_hand():
    """Two pictures, four ways to swap: the models' own order and its reverse are the largest differences of all."""
    first = np.array([[[8, 0], [0, 8]], [[7, 1], [1, 7]]])
    second = np.array([[[6, 2], [2, 6]], [[4, 4], [4, 4]]])
    assert permutation_test(first, second, permutations=4000) == pytest.approx(0.5, abs=0.03)


def test_identical_models_are_no_surprise():
    first, _ = made_pictures(40, lead=0.0, seed=0)
    assert permutation_test(first, first.copy(), permutations=100) == 1


def test_a_lead_is_a_surprise():
    pair = made_trainings(3, 200, lead=0.05, seed=0, of_seed=0.003)
    assert permutation_test(*pair, permutations=499) == pytest.approx(1 / 500)


def test_swapping_the_models_changes_nothing():
    first, second = made_pictures(60, lead=0.005, seed=6)
    assert permutation_test(first, second) == pytest.approx(permutation_test(second, first), abs=0.05)


def test_equal_models_are_called_different_as_often_as_stated():
    """Under chance alone a p-value below .1 comes in a tenth of studies."""
    below = sum(
        permutation_test(*made_pictures(60, lead=0.0, seed=1000 + study), permutations=199) <= 0.1
        for study in range(300)
    )
    assert 0.06 <= below / 300 <= 0.14


def test_the_interval_over_seeds_is_student_s():
    values = [0.31, 0.29, 0.33, 0.3, 0.32]
    wanted = scipy.stats.t.interval(0.9, 4, np.mean(values), scipy.stats.sem(values))
    assert seed_interval(values, 0.9) == pytest.approx(wanted)
    assert seed_interval([0.3]) is None
