"""The scores, held against scikit-learn, hand-made cases and a boundary score that compares every pair of pixels."""

import math
from itertools import pairwise

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from petseg import metrics
from petseg.metrics import BoundaryCounts, boundary_counts, boundary_f, confusion_matrix, dice, iou, mean_iou

CLASSES = 3
TRUTH = np.uint8([[0, 0, 1], [0, 1, 1], [2, 2, 255]])
PREDICTION = np.uint8([[0, 1, 1], [0, 1, 0], [2, 1, 2]])
MATRIX = [[2, 1, 0], [1, 2, 0], [0, 1, 1]]
examples = settings(max_examples=60, deadline=None)


@st.composite
def mask_pairs(draw):
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, max_side=7))
    truth = draw(npst.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255])))
    prediction = draw(npst.arrays(np.uint8, shape, elements=st.integers(0, CLASSES - 1)))
    truth.flat[draw(st.integers(0, truth.size - 1))] = draw(st.integers(0, CLASSES - 1))
    return truth, prediction


def test_scores_by_hand_and_absent_classes_are_nan_and_left_out():
    matrix = confusion_matrix(TRUTH, PREDICTION, CLASSES)
    assert (matrix.tolist(), matrix.dtype) == (MATRIX, np.int64)
    np.testing.assert_allclose(iou(matrix), [2 / 4, 2 / 5, 1 / 2])
    np.testing.assert_allclose(dice(matrix), [4 / 6, 4 / 7, 2 / 3])
    assert mean_iou(matrix) == pytest.approx((1 / 2 + 2 / 5 + 1 / 2) / 3)
    assert metrics.pixel_accuracy(matrix) == pytest.approx(5 / 8)
    scores = np.array([[0.5, np.nan, 1.0], [np.nan] * 3, [0.0, 0.0, 0.3]])
    np.testing.assert_allclose(metrics.mean_over_classes(scores), [0.75, np.nan, 0.1])
    absent = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    np.testing.assert_allclose(iou(absent), [3 / 4, 2 / 3, np.nan])
    np.testing.assert_allclose(dice(absent), [6 / 7, 4 / 5, np.nan])
    assert mean_iou(absent) == pytest.approx((3 / 4 + 2 / 3) / 2)
    predicted_alone = np.array([[3, 0, 1], [0, 2, 0], [0, 0, 0]])
    np.testing.assert_allclose(iou(predicted_alone), [3 / 4, 1, 0])
    assert mean_iou(predicted_alone) == pytest.approx((3 / 4 + 1 + 0) / 3)
    nothing = confusion_matrix(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), CLASSES)
    assert nothing.tolist() == [[0] * CLASSES] * CLASSES
    assert np.isnan([*iou(nothing), mean_iou(nothing), metrics.pixel_accuracy(nothing)]).all()


@examples
@given(mask_pairs())
def test_scores_agree_with_scikit_learn(pair):
    truth, prediction = pair
    counted = truth != 255
    flat = {"y_true": truth[counted], "y_pred": prediction[counted]}
    labels = range(CLASSES)
    matrix = confusion_matrix(truth, prediction, CLASSES)
    np.testing.assert_array_equal(matrix, sklearn.metrics.confusion_matrix(**flat, labels=labels))
    assert metrics.pixel_accuracy(matrix) == pytest.approx(sklearn.metrics.accuracy_score(**flat))
    present = np.isin(labels, np.concatenate([flat["y_true"], flat["y_pred"]]))
    for ours, theirs in ((iou, sklearn.metrics.jaccard_score), (dice, sklearn.metrics.f1_score)):
        expected = theirs(**flat, labels=labels, average=None, zero_division=0)
        np.testing.assert_allclose(ours(matrix), np.where(present, expected, np.nan))
    macro = sklearn.metrics.jaccard_score(**flat, labels=np.flatnonzero(present), average="macro", zero_division=0)
    assert mean_iou(matrix) == pytest.approx(macro)


@examples
@given(mask_pairs(), st.permutations(range(CLASSES)))
def test_identical_masks_score_one_and_relabelling_permutes(pair, order):
    truth, prediction = pair
    matrix = confusion_matrix(truth, np.where(truth == 255, np.uint8(0), truth), CLASSES)
    for scores in (iou(matrix), dice(matrix)):
        assert set(scores[np.isfinite(scores)]) == {1.0}
        assert np.isfinite(scores).tolist() == np.isin(range(CLASSES), truth).tolist()
    assert mean_iou(matrix) == metrics.pixel_accuracy(matrix) == 1
    table = np.full(256, 255, np.uint8)
    table[:CLASSES] = order
    before, after = (confusion_matrix(ids[truth], ids[prediction], CLASSES) for ids in (np.arange(256), table))
    np.testing.assert_array_equal(after[np.ix_(order, order)], before)
    np.testing.assert_array_equal(iou(after)[order], iou(before))
    assert mean_iou(after) == pytest.approx(mean_iou(before), nan_ok=True)


@examples
@given(mask_pairs(), st.integers(0, 7))
def test_halves_add_sides_transpose_and_ignored_pixels_do_not_matter(pair, cut):
    truth, prediction = pair
    whole = confusion_matrix(truth, prediction, CLASSES)
    halves = (confusion_matrix(truth[part], prediction[part], CLASSES) for part in (slice(cut), slice(cut, None)))
    np.testing.assert_array_equal(sum(halves), whole)
    changed = np.where(truth == 255, (prediction + 1) % CLASSES, prediction).astype(np.uint8)
    np.testing.assert_array_equal(confusion_matrix(truth, changed, CLASSES), whole)
    back = confusion_matrix(prediction[truth != 255], truth[truth != 255], CLASSES)
    np.testing.assert_array_equal(back, whole.T)
    np.testing.assert_array_equal(iou(back), iou(whole))


@pytest.mark.parametrize("score", [iou, dice, mean_iou, metrics.pixel_accuracy])
def test_leading_axes_stay_and_large_counts_do_not_overflow(score):
    matrices = np.random.default_rng(0).integers(0, 5, (4, 6, CLASSES, CLASSES))
    matrices[1, 2] = 0
    matrices[3, 3, 1] = matrices[3, 3, :, 1] = 0
    together = score(matrices)
    assert together.shape == ((4, 6, CLASSES) if score in (iou, dice) else (4, 6))
    for place in np.ndindex(4, 6):
        np.testing.assert_array_equal(together[place], score(matrices[place]))
    np.testing.assert_allclose(score(matrices * 1500 * 1500 * 3669), together)


def square(top, left, side=20, size=100):
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def pairwise_counts(truth, prediction, label, tolerance):
    def edge(inside):
        height, width = inside.shape
        for row, column in zip(*np.nonzero(inside), strict=True):
            near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            near = [(r, c) for r, c in near if 0 <= r < height and 0 <= c < width]
            if any(not inside[place] and truth[place] != 255 for place in near):
                yield int(row), int(column)

    def right(points, others):
        return sum(any(math.dist(one, other) <= tolerance for other in others) for one in points)

    true, predicted = [*edge(truth == label)], [*edge((prediction == label) & (truth != 255))]
    return BoundaryCounts(len(predicted), right(predicted, true), len(true), right(true, predicted))


def test_boundary_by_hand_and_scores_add_up_to_their_mean():
    truth = np.uint8([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]])
    # the corner block's inner ring, the image's edge being none: 3 in its top row, 2 more in its left column
    counts = boundary_counts(truth, np.uint8(truth == 9), 1)
    assert counts == BoundaryCounts(predicted=0, predicted_right=0, true=5, true_found=0)
    prediction = truth.copy()
    prediction[1] = 0
    assert metrics.BOUNDARY_TOLERANCE * math.hypot(4, 4) < 1, "here a pixel is right only in its very place"
    counts = boundary_counts(truth, prediction, 1)
    assert counts == BoundaryCounts(predicted=4, predicted_right=2, true=5, true_found=2)
    assert boundary_f(counts) == pytest.approx(2 * (2 / 4) * (2 / 5) / (2 / 4 + 2 / 5))
    assert boundary_f(BoundaryCounts(predicted=10, predicted_right=0, true=8, true_found=0)) == 0
    sums = metrics.boundary_sums(np.array([[0.5, 1.0, np.nan], [0.25, np.nan, np.nan], [0.0, 0.5, np.nan]]))
    assert (sums.dtype, sums.shape) == (np.int64, (3, 3, 2))
    assert metrics.mean_boundary_f(sums.sum(axis=0)) == pytest.approx((0.25 + 0.75) / 2)
    assert metrics.mean_boundary_f(sums[0]) == pytest.approx(0.75)
    assert np.isnan(metrics.mean_boundary_f(metrics.boundary_sums(np.full((1, 3), np.nan))[0]))


@examples
@given(st.data(), st.sampled_from([0.5, 1.0, 1.5, 2.0]))
def test_boundary_agrees_with_all_pairs(data, tolerance):
    shape = data.draw(npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
    truth = data.draw(npst.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 1, 1, 255])))
    prediction = data.draw(npst.arrays(np.uint8, shape, elements=st.integers(0, 1)))
    with pytest.MonkeyPatch.context() as patch:
        # small images would round every tolerance to the same pixel: set the share so that it comes out as drawn
        patch.setattr("petseg.metrics.BOUNDARY_TOLERANCE", tolerance / math.hypot(*shape))
        reached = tolerance / math.hypot(*shape) * float(np.hypot(*shape))
        assert boundary_counts(truth, prediction, 1) == pairwise_counts(truth, prediction, 1, reached)


def test_boundary_falls_with_the_shift_of_a_square_and_tolerance_grows_with_the_image():
    for shift, expected in ((0, 1.0), (1, 1.0), (40, 0.0)):  # .0075 of the diagonal of 100 x 100 is 1.06 pixels
        counts = boundary_counts(square(20, 20), square(20, 20 + shift), 1)
        assert counts.true == counts.predicted == 4 * 20 - 4
        assert boundary_f(counts) == expected
    assert boundary_f(boundary_counts(square(10, 30), square(10, 30), 0)) == 1, "the background's"
    scores = [boundary_f(boundary_counts(square(20, 20), square(20 + by, 20 + by), 1)) for by in range(0, 25, 2)]
    assert (scores[0], scores[-1]) == (1, 0)
    assert scores[1] < 0.5
    assert all(later <= earlier for earlier, later in pairwise(scores))
    small, large = (boundary_counts(square(8, 8, 8, size), square(8, 10, 8, size), 1) for size in (40, 400))
    assert boundary_f(small) < boundary_f(large) == 1


def test_boundary_absent_and_the_rim_of_an_ignored_band_is_none():
    empty, whole, there = np.zeros((30, 30), np.uint8), np.ones((30, 30), np.uint8), square(5, 5, 10, 30)
    assert math.isnan(boundary_f(boundary_counts(empty, empty, 1)))
    assert math.isnan(boundary_f(boundary_counts(whole, whole, 1))), "the image's edge is no boundary"
    assert boundary_f(boundary_counts(there, empty, 1)) == boundary_f(boundary_counts(empty, there, 1)) == 0
    # a disc whose whole outline is ignored: a model that calls everything the class gains nothing from the band
    rows, columns = np.mgrid[:60, :60]
    distance = np.hypot(rows - 30, columns - 30)
    truth = np.where(distance < 15, 1, 0).astype(np.uint8)
    truth[(distance >= 13) & (distance < 17)] = 255
    everywhere = boundary_counts(truth, np.ones_like(truth), 1)
    assert (everywhere.predicted, everywhere.true) == (0, 0)
    assert np.isnan(boundary_f(everywhere))
    too_wide = boundary_counts(truth, (distance < 22).astype(np.uint8), 1)
    assert too_wide.predicted > 0
    assert boundary_f(too_wide) == 0
