"""The results: the answer to each image, and the figures computed from the answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from . import metrics
from .metrics import Calibration, ClassMetrics

TOP = 5  # answers kept for each image


@dataclass(frozen=True)
class Failure:
    """An image that could not be read or answered, and why. No figure counts it."""

    image: Path
    error: str


@dataclass(frozen=True)
class Confusion:
    """How many images of the class `label` were answered with the class `prediction`; both are indices."""

    label: int
    prediction: int
    images: int


@dataclass
class Findings:
    """The answers of a model to N labelled images, and their figures.

    Args:
        model: the model's name.
        data: where the images come from.
        labels: the names of the K classes, in the order of the logits.
        images: the N files that were answered.
        targets: the right class of each, (N,) int64.
        answers: the best classes of each, the best first, (N, min(K, 5)) int64.
        scores: their probabilities, (N, min(K, 5)) float32.
        target_scores: the probability of the right class, (N,) float32.
        ranks: how many classes came before the right one, (N,) int64.
        losses: the cross-entropy of each image in nats, (N,) float32.
        failures: images that could not be answered.
        seconds: the time taken, including reading the images.
        folder: the model's folder, if it has one.
    """

    model: str
    data: str
    labels: list[str]
    images: list[Path]
    targets: np.ndarray
    answers: np.ndarray
    scores: np.ndarray
    target_scores: np.ndarray
    ranks: np.ndarray
    losses: np.ndarray
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def predictions(self) -> np.ndarray:
        """The answered class of each image, (N,)."""
        return self.answers[:, 0]

    @property
    def correct(self) -> np.ndarray:
        """Whether each answer is right, (N,) bool."""
        return self.ranks == 0

    @property
    def top1(self) -> float:
        return metrics.share(self.ranks < 1)

    @property
    def top5(self) -> float:
        """The share of images whose right class is among the five best. It is 1 for five classes or fewer."""
        return metrics.share(self.ranks < 5)

    @property
    def loss(self) -> float:
        """The mean cross-entropy, in nats."""
        return metrics.share(self.losses.astype(np.float64))

    @property
    def top1_interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of top-1, if the images are a random sample."""
        return metrics.interval(int(self.correct.sum()), len(self))

    @cached_property
    def classes(self) -> ClassMetrics:
        return ClassMetrics.of(self.targets, self.predictions, len(self.labels))

    @cached_property
    def calibration(self) -> Calibration:
        return metrics.calibration(self.scores[:, 0], self.correct)

    @property
    def confusion_matrix(self) -> np.ndarray:
        """(K, K): the row is the right class, the column the answer."""
        return metrics.confusion_matrix(self.targets, self.predictions, len(self.labels))

    def mistake_shares(self, most: int) -> tuple[np.ndarray, int]:
        """The mistakes as a matrix of at most `most` rows, to draw. See `metrics.mistake_shares`."""
        return metrics.mistake_shares(self.targets, self.predictions, len(self.labels), most)

    @cached_property
    def confusions(self) -> list[Confusion]:
        """The confusion matrix's entries that are not zero, including the diagonal, row by row."""
        pairs, counts = np.unique(np.stack([self.targets, self.predictions]), axis=1, return_counts=True)
        return [Confusion(*map(int, row)) for row in zip(*pairs, counts, strict=True)]

    def most_confused(self, most: int | None = None) -> list[Confusion]:
        """The pairs of different classes that were confused, the most frequent first."""
        mixed = [confusion for confusion in self.confusions if confusion.label != confusion.prediction]
        return sorted(mixed, key=lambda confusion: -confusion.images)[:most]

    def mistakes(self, most: int | None = None) -> list[int]:
        """The images (indices) with a wrong answer, the most confident first."""
        order = np.argsort(-self.scores[:, 0], kind="stable")
        return [int(index) for index in order if self.ranks[index]][:most]
