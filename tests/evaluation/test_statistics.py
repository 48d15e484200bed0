"""The paired bootstrap finds the difference that was put in, and its interval holds it as often as it says."""

import numpy as np
import pytest
import scipy.stats

from petseg.evaluation.statistics import (
    Pair,
    Resampling,
    bootstrap,
    family_intervals,
    paired_bootstrap,
    ratio_of,
    simultaneous_intervals,
    summed_by,
)
from petseg.metrics import iou, mean_iou
from petseg.schema import LatencyInfo


def draw_trainings(seeds, count, *, lead, seed, of_seed=0.0, noise=0.05):
    """Returns two models' matrices [S, N, 2, 2] of the same images: the first errs on `lead` fewer pixels of 0..1.

    Trainings differ by `of_seed`, images of one by `noise`. Images differ in difficulty and in the share of their
    pet, which all trainings share.
    """
    generator = np.random.default_rng(seed)
    pet = generator.uniform(0.2, 0.7, count)
    difficulty = generator.beta(2, 10, count) + 0.1

    def matrices(sign):
        of_training = generator.normal(0, of_seed, seeds)[:, None] if of_seed else 0.0
        error = difficulty + sign * lead / 2 + of_training + generator.normal(0, noise, (seeds, count))
        error = np.clip(error, 0.01, 0.9)
        shares = np.array([[(1 - pet) * (1 - error), (1 - pet) * error], [pet * error, pet * (1 - error)]])
        return np.moveaxis(np.rint(4096 * shares), (0, 1), (-2, -1)).astype(np.int64)

    return matrices(-1), matrices(1)


def draw_images(count, **how):
    first, second = draw_trainings(1, count, **how)
    return first[0], second[0]


def paired(first, second, **how):
    return paired_bootstrap(first, second, how=Resampling(**how))


def width(estimate):
    return estimate.high - estimate.low


def share_that_hold(truth, differences):
    return np.mean([difference.low <= truth <= difference.high for difference in differences])


def test_equal_models_hold_zero_and_a_lead_is_found():
    first, second = draw_images(200, lead=0.0, seed=1)
    same = paired(first, first.copy(), resamples=300)
    assert (same.points, same.low, same.high, same.share_left_better) == (0, 0, 0, 0)
    equal = paired(first, second, resamples=500)
    assert equal.low < 0 < equal.high
    assert 0.01 < equal.share_left_better < 0.99
    ahead = paired(*draw_images(200, lead=0.05, seed=0), resamples=500)
    assert 0 < ahead.low < ahead.points < ahead.high
    assert ahead.share_left_better == 1
    with pytest.raises(AssertionError, match="both models score the same images"):
        paired_bootstrap(first, second[:4])


def test_points_by_hand_and_a_class_absent_from_a_resample_is_left_out(monkeypatch):
    monkeypatch.setattr("petseg.evaluation.statistics.FEW", 0)  # the bootstrap by itself
    first = np.array([[[6, 2], [2, 6]], [[8, 0], [0, 8]]])  # added: 14, 2 / 2, 14; IoU 14 / 18 of both classes
    second = np.array([[[4, 4], [4, 4]], [[8, 0], [0, 8]]])  # added: 12, 4 / 4, 12; IoU 12 / 20
    difference = paired_bootstrap(first, second)
    assert difference.points == pytest.approx(100 * (14 / 18 - 12 / 20))
    # of four draws of two images one is twice the first (6 / 10 less 4 / 12), one twice the second (no difference)
    assert difference.high == pytest.approx(100 * (6 / 10 - 4 / 12))
    assert difference.low == 0
    assert difference.share_left_better == pytest.approx(3 / 4, abs=0.03)
    # a class that one image of three holds is missing from many resamples, which are scored without it
    plain = np.array([[4, 1, 0], [1, 4, 0], [0, 0, 0]])
    rare = np.array([[4, 1, 0], [1, 4, 0], [0, 0, 3]])
    difference = paired(np.array([plain, plain, rare]), np.array([plain, plain, rare]), resamples=200)
    assert (difference.low, difference.high) == (0, 0)


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_swapping_swaps_the_sign_and_order_does_not_matter(seeds):
    first, second = draw_trainings(seeds, 50, lead=0.02, seed=2, of_seed=0.01)
    there, back = paired(first, second, resamples=400), paired(second, first, resamples=400)
    assert (there.points, there.low, there.high) == pytest.approx((-back.points, -back.high, -back.low))
    assert there.share_left_better + back.share_left_better == pytest.approx(1)
    turned = paired(first[::-1, ::-1], second[::-1, ::-1], resamples=10)
    assert turned.points == pytest.approx(there.points)


def test_the_interval_follows_from_seed_confidence_images_and_pairing():
    pair = draw_images(60, lead=0.02, seed=4)
    first, again, other = (paired(*pair, resamples=200, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)
    assert first.points == other.points
    half, most = (paired(*pair, resamples=500, confidence=confidence) for confidence in (0.5, 0.99))
    assert most.low < half.low < half.high < most.high
    few, many = (paired(*draw_images(count, lead=0.02, seed=5), resamples=500) for count in (40, 1000))
    assert width(many) < 0.4 * width(few)
    # images vary far more than the models differ: shuffling one model's images widens the interval
    first, second = draw_images(100, lead=0.02, seed=6, noise=0.01)
    together = paired(first, second, resamples=500)
    shuffled = paired(first, np.random.default_rng(0).permutation(second), resamples=500)
    assert together.points == pytest.approx(shuffled.points)
    assert width(together) < 0.5 * width(shuffled)


@pytest.mark.parametrize(("confidence", "least", "most"), [(0.95, 0.88, 0.99), (0.5, 0.4, 0.6)])
def test_coverage(confidence, least, most):
    """Of 200 studies of 60 images, about the stated share of intervals holds the population's difference."""
    first, second = draw_images(20_000, lead=0.03, seed=7)
    truth = 100 * float(mean_iou(first.sum(axis=0)) - mean_iou(second.sum(axis=0)))
    drawn = [np.random.default_rng([8, study]).integers(0, len(first), 60) for study in range(200)]
    how = {"resamples": 200, "confidence": confidence}
    studies = [paired(first[rows], second[rows], seed=study, **how) for study, rows in enumerate(drawn)]
    assert truth > 1
    assert least <= share_that_hold(truth, studies) <= most


@pytest.mark.parametrize("count", [2, 4, 10])
def test_coverage_with_few_images(count, monkeypatch):
    """About 95 of 100 studies of few images hold the truth; by the bootstrap itself 49 to 91 do."""
    first, second = draw_images(20_000, lead=0.03, seed=7)
    truth = 100 * float(mean_iou(first.sum(axis=0)) - mean_iou(second.sum(axis=0)))
    drawn = [np.random.default_rng([8, study]).integers(0, len(first), count) for study in range(200)]

    def covered():
        return share_that_hold(truth, [paired(first[rows], second[rows], resamples=200) for rows in drawn])

    assert 0.92 <= covered() <= 0.99
    monkeypatch.setattr("petseg.evaluation.statistics.FEW", 0)
    assert covered() < 0.92


def draw_rare(count, held, generator):
    """Returns two models' matrices [2, N, 3, 3] of images of which about `held`, at least one, hold class 2."""
    rare = generator.random(count) < held / count
    rare[generator.integers(count)] |= not rare.any()
    sizes = np.stack([generator.integers(1500, 2500, count), generator.integers(500, 1500, count), 400 * rare], axis=1)
    difficulty = generator.beta(2, 8, (count, 3))[None] + generator.uniform(0.02, 0.12, (2, count, 3))
    wrong = np.rint(sizes * difficulty).astype(np.int64)
    found = np.zeros((2, count, 3, 3), np.int64)
    found[..., [0, 1, 2], [0, 1, 2]] = sizes - wrong
    found[..., [0, 1, 2], [1, 0, 0]] = wrong
    return found


@pytest.mark.parametrize(("count", "held"), [(20, 3), (200, 4)])
@pytest.mark.parametrize("paired", [False, True])
def test_coverage_where_few_images_hold_a_class(count, held, paired, monkeypatch):
    """About 95 of 100 studies hold the truth; where all images count alike 85 to 92 do."""
    every, drawn = np.random.default_rng(9), np.random.default_rng(10)
    first, second = mean_iou(draw_rare(400_000, 400_000 * held / count, every).sum(axis=1))
    truth = 100 * (first - second if paired else first)
    studies = [draw_rare(count, held, drawn) for _ in range(300)]

    def covered():
        make = paired_bootstrap if paired else lambda model, _, how: bootstrap(model, how=how)
        return share_that_hold(truth, [make(*study, how=Resampling(300)) for study in studies])

    assert 0.93 <= covered() <= 0.99
    monkeypatch.setattr("petseg.evaluation.statistics._worth", lambda confusions, _: confusions.shape[1])
    assert covered() < 0.93


def test_a_false_pixel_of_a_class_that_was_not_drawn_takes_no_class_from_a_mean():
    """Class 2 lies in one of six images; the first model calls one pixel of another image so."""
    first = np.zeros((6, 3, 3), np.int64)
    first[:, 0, 0], first[:, 1, 1], first[0, 2, 2] = 500, 400, 100
    second = first.copy()
    first[1, 0, 0], first[1, 0, 2] = 499, 1
    found = paired_bootstrap(first, second)
    assert -2 < found.low <= found.points <= found.high < 2, "whole thirds of the mean before"


def test_a_class_that_no_image_holds_is_in_the_resamples_as_it_is_in_the_score():
    """One pixel of it, wrongly predicted, takes a third from the mean: the interval must not leave the score out."""
    first, second = (np.pad(arm, ((0, 0), (0, 1), (0, 1))) for arm in draw_images(150, lead=0.05, seed=3))
    assert paired_bootstrap(first, second).low > 0
    first[0, 0, 2] = 1
    for found in (paired_bootstrap(first, second), bootstrap(first)):
        assert found.low <= found.points <= found.high
    first[:, 0, 2] = 1  # in every resample
    assert paired_bootstrap(first, second).high < -10


@pytest.mark.parametrize("count", [2, 3, 5, 150])
def test_an_image_without_labelled_pixels_says_nothing(count):
    first, second = draw_trainings(2, count, lead=0.02, seed=3)
    wider = [np.concatenate([arm, np.zeros_like(arm[:, :2])], axis=1) for arm in (first, second)]
    assert paired_bootstrap(*wider) == paired_bootstrap(first, second)
    assert bootstrap(wider[0]) == bootstrap(first)
    assert family_intervals([Pair(*wider)]) == family_intervals([Pair(first, second)])


def test_alike_images_are_drawn_by_group():
    """Each image ten times over: the interval is that of the images once, and over them one by one too narrow."""
    first, second = draw_images(120, lead=0.03, seed=4)
    copies = [np.repeat(model, 10, axis=0) for model in (first, second)]
    groups = [f"patient {row // 10}" for row in range(1200)]
    whole = paired_bootstrap(*(summed_by(groups, model) for model in copies))
    once, alone = paired_bootstrap(first, second), paired_bootstrap(*copies)
    assert whole.points == pytest.approx(once.points)
    assert width(whole) == pytest.approx(width(once), rel=0.1)
    assert width(alone) == pytest.approx(width(once) / 10**0.5, rel=0.15)
    seeds = np.stack([first, second])
    assert np.array_equal(summed_by("aab" * 40, seeds)[1], summed_by("aab" * 40, second))


def test_of_one_image_nothing_is_shown():
    first, second = draw_images(1, lead=0.2, seed=0)
    assert not paired_bootstrap(first, second).shown
    ((low, high),) = family_intervals([Pair(first, second)])
    assert (low < -50, high) == (True, 100)
    assert (bootstrap(first).low, bootstrap(first).high) == pytest.approx((2.5, 97.5), abs=5)


def test_points_are_the_mean_over_seeds_equal_ones_are_one_and_others_widen_the_interval():
    first, second = draw_trainings(3, 40, lead=0.03, seed=0, of_seed=0.01)
    alone = [paired(one, other, resamples=10).points for one, other in zip(first, second, strict=True)]
    assert paired(first, second, resamples=10).points == pytest.approx(np.mean(alone))
    by_class = paired_bootstrap(first, second, score=lambda confusions: iou(confusions)[..., 1])
    own = [100 * float(iou(model.sum(axis=1))[:, 1].mean()) for model in (first, second)]
    assert by_class.points == pytest.approx(own[0] - own[1]), "another score"
    found = bootstrap(first)
    assert found.points == pytest.approx(100 * float(mean_iou(first.sum(axis=1)).mean()))
    assert found.low < found.points < found.high
    # equal seeds
    first, second = draw_images(200, lead=0.03, seed=0)
    one = paired_bootstrap(first, second)
    assert paired_bootstrap(first[None], second[None]) == one
    three = paired_bootstrap(np.stack([first] * 3), np.stack([second] * 3))
    assert (three.low, three.high) == pytest.approx((one.low, one.high))
    wild = paired_bootstrap(*draw_trainings(4, 200, lead=0.03, seed=2, of_seed=0.03))
    assert width(wild) > 2 * width(one)


@pytest.mark.parametrize("seeds", [3, 5])
def test_where_seeds_make_all_of_the_spread_the_interval_is_student_s(seeds):
    right = np.array([[1000, 0], [0, 1000]])
    errors = np.rint(np.linspace(100, 200, seeds)).astype(int)
    trained = np.array([[right + error * np.array([[-1, 1], [1, -1]])] * 9 for error in errors])
    found = bootstrap(trained)
    scores = 100 * mean_iou(trained.sum(axis=1))
    wanted = scipy.stats.t.interval(0.95, seeds - 1, scores.mean(), scipy.stats.sem(scores))
    assert (found.low, found.high) == pytest.approx(wanted, abs=0.02 * (wanted[1] - wanted[0]))


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_seed", [1e-9, 0.003, 0.02])
def test_coverage_over_images_and_seeds(seeds, of_seed):
    """About 95 of 100 studies hold the truth, whether images or seeds make most of the spread."""
    many = draw_trainings(2000, 200, lead=0.03, seed=3, of_seed=of_seed)
    truth = 100 * float(np.mean(mean_iou(many[0].sum(axis=1)) - mean_iou(many[1].sum(axis=1))))
    drawn = [draw_trainings(seeds, 60, lead=0.03, seed=100 + study, of_seed=of_seed) for study in range(200)]
    studies = [paired(*pair, resamples=200, seed=study) for study, pair in enumerate(drawn)]
    assert 0.9 <= share_that_hold(truth, studies) <= 0.99


@pytest.mark.parametrize(("models", "critical"), [(1, 1.96), (2, 2.21), (5, 2.51), (9, 2.69)])
def test_simultaneous_intervals_are_dunnett_s_for_normal_errors(models, critical):
    """Critical values for two-sided .05 and many degrees of freedom: C. W. Dunnett, Biometrics 20, 1964, table II."""
    generator = np.random.default_rng(0)
    middle, scale = generator.normal(size=(2, models))
    scores = generator.normal(size=(400_000, models + 1))  # of the reference, and of each model
    drawn = middle + scale * (scores[:, 1:] - scores[:, :1])
    ends = np.array(simultaneous_intervals(drawn, 0.95)).T
    reach = critical * np.sqrt(2) * np.abs(scale)
    for found, wanted in zip(ends, (middle - reach, middle + reach), strict=True):
        assert np.abs(found - wanted) / np.abs(scale) == pytest.approx(0, abs=0.04)


def test_differences_from_one_reference_are_wider_at_once_and_an_equal_model_is_zero():
    first, reference = draw_images(60, lead=0.03, seed=1)
    second, _ = draw_images(60, lead=0.0, seed=1)
    how = Resampling(resamples=300)
    pairs = [Pair(model, reference) for model in (first, second, reference)]
    together = family_intervals(pairs, how=how)
    assert together[2] == (0, 0)
    for pair, (low, high) in zip(pairs, together, strict=True):
        alone = paired_bootstrap(pair.first, pair.second, how=how)
        assert low <= alone.low <= alone.points <= alone.high <= high
    assert family_intervals([]) == []


def test_family_wise_coverage():
    """Of 200 studies of five models about 95 % hold all four differences at once; one by one fewer do."""
    many = draw_trainings(5, 20_000, lead=0.03, seed=11, noise=0.2)[0]
    scores = 100 * mean_iou(many.sum(axis=1))
    truth = scores[1:] - scores[0]
    drawn = [np.random.default_rng([12, study]).integers(0, 20_000, 60) for study in range(200)]
    alone = together = 0
    for study, rows in enumerate(drawn):
        reference, *models = many[:, rows]
        how = Resampling(1000, seed=study)
        found = [paired_bootstrap(model, reference, how=how) for model in models]
        intervals = family_intervals([Pair(model, reference) for model in models], how=how)
        alone += all(one.low <= true <= one.high for one, true in zip(found, truth, strict=True))
        together += all(low <= true <= high for (low, high), true in zip(intervals, truth, strict=True))
    assert 0.9 <= together / 200 <= 0.99
    assert alone / 200 < 0.88


def test_a_ratio_of_latencies_cancels_what_slows_both():
    rng = np.random.default_rng(0)
    slow = 1 + 0.2 * rng.random(20)
    one, other = (
        LatencyInfo(p50=base, p95=base, rounds=tuple(base * slow + rng.normal(0, 0.02, 20)), repeats=200, size=96)
        for base in (10.0, 5.0)
    )
    found = ratio_of(one, other)
    assert 1.98 < found.low < 2 < found.high < 2.02
