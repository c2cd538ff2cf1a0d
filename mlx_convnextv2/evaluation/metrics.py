"""Metrics of a classifier's scores: accuracies, errors by class, and calibration.

N is the number of images and K the number of classes. All arrays are numpy's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before the right one: (N, K) and (N,) -> (N,), 0 where the answer is right.

    Among equal scores, the class with the lower index comes first, as in `classify`.

    Args:
        scores: logits or probabilities.
        labels: the right class of each image, from 0 to K - 1.

    Raises:
        ValueError: shapes or labels do not fit, or a score is NaN.
    """
    scores, labels = _checked(scores, labels)
    own = np.take_along_axis(scores, labels[:, None], axis=1)  # (N, 1)
    before = np.arange(scores.shape[1]) < labels[:, None]  # (N, K)
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logarithms of the probabilities, over the last axis. Small probabilities are not rounded to 0."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def best_classes(scores: np.ndarray, k: int) -> np.ndarray:
    """The k classes with the highest scores, highest first, lower index first among equals: (K,) -> (k,).

    It does not sort all scores, which would take longer than everything else done with them.
    """
    least = np.partition(scores, -k)[-k]
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """The share of images whose right class is among the k best: (N, K) and (N,). NaN without images."""
    return share(label_ranks(scores, labels) < k)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """(N,) and (N,) -> (K, K) int64: the row is the right class, the column the answer."""
    pairs = np.asarray(labels, np.int64) * num_classes + np.asarray(predictions, np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def mistake_shares(labels: np.ndarray, predictions: np.ndarray, num_classes: int, most: int) -> tuple[np.ndarray, int]:
    """The confusion matrix to draw: only mistakes, as shares of each row's images. Many classes are merged.

    Args:
        most: the largest number of rows.

    Returns:
        (S, S) with S at most `most`, where rows without images are 0, and how many classes a row stands for.
    """
    labels, predictions = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)
    group = max(1, -(-num_classes // most))
    side = -(-num_classes // group)
    wrong = labels != predictions
    counts = confusion_matrix(labels[wrong] // group, predictions[wrong] // group, side)
    images = np.bincount(labels // group, minlength=side)
    return counts / np.maximum(images, 1)[:, None], group


@dataclass(frozen=True)
class ClassMetrics:
    """For each class, (K,): the number of its images, of answers that name it, and of those that are right."""

    support: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> ClassMetrics:
        """From the right and the answered class of each image, (N,) and (N,)."""
        labels, predictions = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)
        right = labels[labels == predictions]
        return cls(*(np.bincount(classes, minlength=num_classes) for classes in (labels, predictions, right)))

    @property
    def precision(self) -> np.ndarray:
        """The share of the answers naming the class that are right. 0 without such answers, as in scikit-learn."""
        return _ratio(self.correct, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """The share of the class's images that are recognised. 0 without images."""
        return _ratio(self.correct, self.support)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall. 0 for a class that has neither images nor answers."""
        return _ratio(2 * self.correct, self.support + self.predicted)

    def macro(self) -> tuple[float, float, float]:
        """Precision, recall and F1, each an unweighted mean over the classes that have images. NaN without images."""
        present = self.support > 0
        precision, recall, f1 = (share(values[present]) for values in (self.precision, self.recall, self.f1))
        return precision, recall, f1


@dataclass(frozen=True)
class Calibration:
    """Answers in equal bins of confidence, (bins,): their number, mean confidence and accuracy.

    An empty bin has NaN for its confidence and accuracy.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        """(bins + 1,): bin i holds the confidences above edges[i] and up to edges[i + 1]."""
        return np.linspace(0, 1, len(self.counts) + 1)

    @property
    def expected_error(self) -> float:
        """The expected calibration error: the mean of |accuracy - confidence| over all answers. NaN without answers.

        Guo et al. 2017, arXiv:1706.04599, equation 3.
        """
        filled = self.counts > 0
        if not filled.any():
            return float("nan")
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.average(gaps, weights=self.counts[filled]))


def calibration(confidences: np.ndarray, correct: np.ndarray, bins: int = 15) -> Calibration:
    """Compare the confidence of answers with their accuracy.

    Args:
        confidences: the probability of each answer, (N,), from 0 to 1.
        correct: whether each answer is right, (N,).
        bins: the number of bins, which have equal width and are open below and closed above.
    """
    confidences, correct = np.asarray(confidences, np.float64), np.asarray(correct, bool)
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = (np.bincount(place, weights=weights, minlength=bins) for weights in (confidences, correct))
    confidence, accuracy = (np.where(counts > 0, total / np.maximum(counts, 1), np.nan) for total in sums)
    return Calibration(counts, confidence, accuracy)


def interval(right: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's confidence interval for the share `right` / `total`, 95 % unless `z` says otherwise.

    Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not total:
        return 0.0, 1.0
    p, weight = right / total, z * z / total
    middle = (p + weight / 2) / (1 + weight)
    half = z / (1 + weight) * (p * (1 - p) / total + weight / (4 * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def share(values: np.ndarray) -> float:
    """The mean. Without values it is NaN, without numpy's warning."""
    return float(np.mean(values)) if len(values) else float("nan")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


def _checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores must have the shape (N, K) and labels (N,), not {scores.shape} and {labels.shape}")
    if labels.size and not (
        np.issubdtype(labels.dtype, np.integer) and 0 <= labels.min() <= labels.max() < scores.shape[1]
    ):
        raise ValueError(f"labels must be whole numbers from 0 to {scores.shape[1] - 1}")
    if np.isnan(scores).any():
        raise ValueError("scores must be numbers, and some are NaN")
    return scores, labels.astype(np.int64)
