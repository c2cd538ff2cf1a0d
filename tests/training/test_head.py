"""The head on frozen features: its optimum, and how its penalty is chosen."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mlx_convnextv2.training.head import PENALTIES, choose_head, fit_head
from mlx_convnextv2.training.metrics import score


def blobs(count=300, width=12, classes=4, spread=1.5, seed=0):
    """Features (count, width) around one centre a class, and labels."""
    random = np.random.RandomState(seed)
    centres = random.standard_normal((classes, width)) + 3
    labels = random.randint(0, classes, count)
    features = centres[labels] + spread * random.standard_normal((count, width))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_the_optimum_is_scikit_learns_logistic_regression(classes, l2):
    features, labels = blobs(classes=classes)
    ours = fit_head(features, labels, classes, l2)
    theirs = LogisticRegression(C=1 / (len(labels) * l2), tol=1e-10, max_iter=10_000).fit(
        features.astype(np.float64), labels
    )
    logits = theirs.decision_function(features.astype(np.float64))
    if classes == 2:  # theirs has one row; with two the penalty is shared, which is a penalty of half
        theirs = LogisticRegression(C=1 / (len(labels) * l2 / 2), tol=1e-10, max_iter=10_000).fit(
            features.astype(np.float64), labels
        )
        expected = theirs.coef_[0], theirs.intercept_[0]
        np.testing.assert_allclose(ours.weight[1] - ours.weight[0], expected[0], rtol=0, atol=1e-4)
        assert ours.bias[1] - ours.bias[0] == pytest.approx(expected[1], abs=2e-4)
        return
    np.testing.assert_allclose(ours.weight, theirs.coef_, rtol=0, atol=1e-4)
    own = ours(features)
    np.testing.assert_allclose(own - own.mean(axis=1, keepdims=True), logits, rtol=0, atol=1e-3)


def test_a_start_from_elsewhere_ends_at_the_same_head():
    features, labels = blobs()
    first = fit_head(features, labels, 4, 1e-2)
    again = fit_head(features, labels, 4, 1e-2, start=fit_head(features, labels, 4, 1e-1))
    np.testing.assert_allclose(again.weight, first.weight, atol=1e-4)


def test_smoothed_labels_pull_the_answers_towards_all_classes():
    features, labels = blobs(spread=0.3)
    sharp, smooth = (fit_head(features, labels, 4, 1e-5, label_smoothing=share) for share in (0.0, 0.4))
    assert np.abs(smooth(features)).max() < np.abs(sharp(features)).max()
    probabilities = np.exp(smooth(features))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert probabilities[np.arange(300), labels].mean() == pytest.approx(0.7, abs=0.02)  # 0.6 and a quarter of 0.4


def test_the_penalty_is_the_best_on_the_images_set_aside_and_weak_ones_are_not_tried_for_ever():
    train, val = blobs(count=30, spread=3), blobs(count=200, spread=3)
    head, rows, best = choose_head(train, val, 4)
    assert [row.l2 for row in rows] == list(PENALTIES[: len(rows)])
    assert len(rows) < len(PENALTIES)  # thirty noisy images are soon learned by heart
    assert (best.val_top1, -best.val_loss) == max((row.val_top1, -row.val_loss) for row in rows)
    assert score(head(val[0]), val[1]) == (best.val_loss, best.val_top1, best.val_top5)


def test_a_strong_penalty_is_kept_where_features_are_noise():
    """The best must lie within the penalties that are tried, or a weaker head than could be had is kept."""
    random = np.random.RandomState(0)
    features, labels = random.normal(size=(120, 64)), random.randint(0, 2, 120)
    _, rows, _ = choose_head((features[:80], labels[:80]), (features[80:], labels[80:]), 2)
    lowest = min(rows, key=lambda row: row.val_loss)
    assert lowest.l2 is not None
    assert lowest.l2 >= 0.3


def test_a_penalty_that_is_given_is_the_only_one():
    _, rows, best = choose_head(blobs(), blobs(seed=1), 4, l2=0.05)
    assert rows == [best]
    assert best.l2 == 0.05


def test_a_score_counts_the_first_and_the_first_five_answers():
    logits = np.arange(12, dtype=np.float32).reshape(2, 6)  # the last class is the first answer
    loss, top1, top5 = score(logits, np.array([5, 0]))
    assert (top1, top5) == (0.5, 0.5)
    powers = np.exp(np.arange(6.0))
    assert loss == pytest.approx(-np.log(powers[[5, 0]] / powers.sum()).mean())
