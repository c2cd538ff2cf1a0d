"""The head alone: multinomial logistic regression on frozen features, solved to its optimum."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from ..evaluation.metrics import log_softmax
from ..runtime.numpy_blas import find_blas
from .metrics import score
from .progress import Progress, Row

# From strong to weak. Each solution is the start of the next.
PENALTIES = (1e0, 3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
_RISES = 2  # stop after this many penalties without a better validation loss
_HISTORY = 10  # of L-BFGS
_MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class Head:
    """weight (num_labels, C) and bias (num_labels,), float32."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """(N, C) -> logits (N, num_labels)."""
        return features @ self.weight.T + self.bias


def fit_head(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    l2: float,
    start: Head | None = None,
    label_smoothing: float = 0.0,
    tolerance: float = 1e-6,
) -> Head:
    """Minimise mean cross-entropy + l2 / 2 * sum of squared weights in float64. The bias has no penalty.

    scikit-learn's `LogisticRegression(C=1 / (N * l2))` minimises the same.

    Args:
        features: (N, C).
        labels: (N,) from 0 to classes - 1.
        l2: the penalty. At 0 there may be no optimum; the last iterate is returned then.
        start: the head to begin with; None begins with zeros.
        tolerance: the limit on the gradient's largest component.
    """
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    centred = features - mean  # better conditioned; the bias makes up for it
    count, width = features.shape
    targets = np.full((count, classes), label_smoothing / classes)
    targets[np.arange(count), labels] += 1 - label_smoothing

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: classes * width].reshape(classes, width), flat[classes * width :]
        logs = log_softmax(centred @ weight.T + bias)
        rest = (np.exp(logs) - targets) / count  # (N, num_labels)
        value = -(targets * logs).sum() / count + 0.5 * l2 * (weight * weight).sum()
        return value, np.concatenate([(rest.T @ centred + l2 * weight).ravel(), rest.sum(axis=0)])

    first = np.zeros(classes * (width + 1))  # weight and bias, flattened
    if start is not None:
        first[: classes * width] = start.weight.ravel()
        first[classes * width :] = start.bias + start.weight.astype(np.float64) @ mean
    blas = find_blas()
    with blas.one_thread() if blas else nullcontext():  # for small products several threads mostly wait
        solution = minimise(value_and_gradient, first, tolerance)
    weight = solution[: classes * width].reshape(classes, width)
    bias = solution[classes * width :] - weight @ mean
    return Head(weight.astype(np.float32), bias.astype(np.float32))


def choose_head(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    classes: int,
    l2: float | None = None,
    label_smoothing: float = 0.0,
    progress: Progress | None = None,
) -> tuple[Head, list[Row], Row]:
    """Fit heads with penalties from strong to weak and keep the best on the validation images.

    Args:
        train, val: features (N, C) and labels (N,).
        l2: try only this penalty.

    Returns:
        The head, a row for each penalty that was tried, and the row of the chosen head.
    """
    progress = progress or Progress()
    rows: list[Row] = []
    best: tuple[Head, Row] | None = None
    head = None
    lowest, rises = np.inf, 0
    for penalty in PENALTIES if l2 is None else (l2,):
        begun = time.perf_counter()
        head = fit_head(*train, classes, penalty, head, label_smoothing)
        train_loss, _, _ = score(head(train[0]), train[1])
        row = Row(
            len(rows) + 1,
            train_loss,
            *score(head(val[0]), val[1]),
            l2=penalty,
            seconds=time.perf_counter() - begun,
        )
        rows.append(row)
        progress.row(row)
        if best is None or row.better_than(best[1]):
            best = head, row
        rises = 0 if row.val_loss < lowest else rises + 1
        lowest = min(lowest, row.val_loss)
        if rises == _RISES:
            break
    if best is None:
        raise ValueError("there is no penalty to try")
    return best[0], rows, best[1]


def minimise(
    value_and_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, tolerance: float
) -> np.ndarray:
    """L-BFGS with a backtracking line search (Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 3.1)."""
    point = start
    value, gradient = value_and_gradient(point)
    pairs: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=_HISTORY)
    for _ in range(_MAX_ITERATIONS):
        if np.abs(gradient).max() <= tolerance:
            break
        direction = -_times_inverse_hessian(gradient, pairs)
        slope = float(direction @ gradient)
        step = 1.0 if pairs else min(1.0, 1 / np.abs(gradient).sum())
        while True:
            candidate = point + step * direction
            new_value, new_gradient = value_and_gradient(candidate)
            if new_value <= value + 1e-4 * step * slope:
                break
            step /= 2
            if step < 1e-12:  # only rounding is left
                return point
        moved, change = candidate - point, new_gradient - gradient
        curvature = float(moved @ change)
        if curvature > 1e-300:
            pairs.append((moved, change, 1 / curvature))
        point, value, gradient = candidate, new_value, new_gradient
    return point


def _times_inverse_hessian(gradient: np.ndarray, pairs: deque[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """The gradient times the inverse Hessian, estimated from the last steps and changes of the gradient."""
    result = gradient.copy()
    weights = []
    for moved, change, rho in reversed(pairs):
        weights.append(rho * float(moved @ result))
        result -= weights[-1] * change
    if pairs:
        moved, change, rho = pairs[-1]
        result /= rho * float(change @ change)
    for (moved, change, rho), weight in zip(pairs, reversed(weights), strict=True):
        result += (weight - rho * float(change @ result)) * moved
    return result
