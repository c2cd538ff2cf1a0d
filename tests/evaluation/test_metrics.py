"""The metrics are those of scikit-learn, or of their definition written out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mlx_convnextv2.evaluation.metrics import (
    ClassMetrics,
    best_classes,
    calibration,
    confusion_matrix,
    interval,
    label_ranks,
    top_k_accuracy,
)

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def some_scores(seed, images=200, classes=7, skewed=True):
    """Logits that are often right, and labels of which the last class has none."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes - skewed, images)
    scores = random.standard_normal((images, classes)).astype(np.float32)
    scores[np.arange(images), labels] += 1
    return scores, labels


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_scikit_learns(k):
    for seed in range(3):
        scores, labels = some_scores(seed)
        expected = sklearn_metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(7))
        assert top_k_accuracy(scores, labels, k) == pytest.approx(expected, abs=1e-12)
    assert top_k_accuracy(scores, labels, 7) == 1
    assert top_k_accuracy(np.zeros((4, 4)), np.arange(4)) == 0.25  # constant scores are no hits for every class


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_a_rank_is_the_place_in_the_order_that_classify_prints_ties_too(seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 4, (20, 6)).astype(np.float32)
    labels = random.integers(0, 6, 20)
    order = np.argsort(-scores, axis=1, kind="stable")
    assert label_ranks(scores, labels).tolist() == [row.tolist().index(k) for row, k in zip(order, labels, strict=True)]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_the_best_classes_are_the_first_in_that_order(seed, k):
    scores = np.random.default_rng(seed).integers(0, 4, 6).astype(np.float32)
    assert best_classes(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_precision_recall_f1_and_support_are_scikit_learns(seed):
    scores, labels = some_scores(seed)
    predictions = scores.argmax(axis=1)
    ours = ClassMetrics.of(labels, predictions, 7)
    theirs = sklearn_metrics.precision_recall_fscore_support(labels, predictions, labels=range(7), zero_division=0)
    for own, expected in zip((ours.precision, ours.recall, ours.f1, ours.support), theirs, strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-12)
    present = range(6)  # the seventh class has no image
    expected = sklearn_metrics.precision_recall_fscore_support(
        labels, predictions, labels=present, average="macro", zero_division=0
    )[:3]
    np.testing.assert_allclose(ours.macro(), expected, atol=1e-12)


def test_a_class_that_is_never_answered_and_one_without_images_have_zeros():
    ours = ClassMetrics.of(np.array([0, 0, 1]), np.array([0, 2, 2]), 4)
    assert ours.precision.tolist() == [1, 0, 0, 0]
    assert ours.recall.tolist() == [0.5, 0, 0, 0]
    assert ours.f1.tolist() == pytest.approx([2 / 3, 0, 0, 0])
    assert ours.support.tolist() == [2, 1, 0, 0]
    assert ours.macro() == pytest.approx((0.5, 0.25, 1 / 3))


@pytest.mark.parametrize("classes", [2, 7])
def test_the_confusion_matrix_is_scikit_learns(classes):
    scores, labels = some_scores(0, classes=classes, skewed=False)
    ours = confusion_matrix(labels, scores.argmax(axis=1), classes)
    expected = sklearn_metrics.confusion_matrix(labels, scores.argmax(axis=1), labels=range(classes))
    assert ours.dtype == np.int64
    assert ours.tolist() == expected.tolist()


def calibration_error_by_definition(confidences, correct, bins):
    """Equation 3 of Guo et al. 2017, bin by bin."""
    total = 0.0
    for i in range(bins):
        inside = [j for j, c in enumerate(confidences) if (c > i / bins or i == 0) and c <= (i + 1) / bins]
        if inside:
            accuracy = sum(correct[j] for j in inside) / len(inside)
            confidence = sum(confidences[j] for j in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_the_calibration_error_is_its_definition(bins):
    random = np.random.default_rng(1)
    confidences = random.uniform(0.1, 1, 300)
    correct = random.uniform(size=300) < confidences**2
    ours = calibration(confidences, correct, bins)
    assert ours.expected_error == pytest.approx(calibration_error_by_definition(confidences, correct, bins), abs=1e-12)
    assert ours.counts.sum() == 300
    assert len(ours.edges) == bins + 1


def test_bins_are_open_below_and_closed_above_and_hold_certainty_too():
    ours = calibration(np.array([0.0, 0.25, 0.26, 1.0]), np.array([False, True, True, True]), bins=4)
    assert ours.counts.tolist() == [2, 1, 0, 1]
    assert ours.confidence.tolist()[:2] == [0.125, 0.26]
    assert math.isnan(ours.accuracy[2])
    assert ours.accuracy[[0, 1, 3]].tolist() == [0.5, 1, 1]


def test_answers_that_are_as_often_right_as_they_claim_have_no_calibration_error():
    confidences = np.repeat([0.25, 0.75], 100)
    correct = np.concatenate([np.arange(100) < 25, np.arange(100) < 75])
    assert calibration(confidences, correct).expected_error == pytest.approx(0, abs=1e-12)
    assert calibration(np.ones(10), np.zeros(10, bool)).expected_error == 1


def test_the_interval_is_that_of_newcombes_examples_within_0_and_1():
    # Newcombe 1998, table I, method 3 (the score interval without continuity correction)
    assert interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    assert interval(5, 5)[1] == 1
    assert interval(0, 0) == (0, 1)


def test_nothing_gives_no_numbers_rather_than_warnings():
    none = np.zeros(0, np.int64)
    assert math.isnan(top_k_accuracy(np.zeros((0, 3)), none))
    assert math.isnan(calibration(np.zeros(0), none).expected_error)
    assert all(map(math.isnan, ClassMetrics.of(none, none, 3).macro()))
    assert confusion_matrix(none, none, 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros(3), np.zeros(3, int), "must have the shape"),
        (np.zeros((3, 2)), np.zeros(2, int), "must have the shape"),
        (np.zeros((2, 2)), np.array([0, 2]), "from 0 to 1"),
        (np.zeros((2, 2)), np.array([0, -1]), "from 0 to 1"),
        (np.zeros((2, 2)), np.array([0.0, 1.0]), "whole numbers"),
        (np.array([[0, np.nan]]), np.array([0]), "NaN"),
    ],
)
def test_what_does_not_fit_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        label_ranks(scores, labels)
