"""The loss of a classifier, as transformers computes it."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

IGNORED_LABEL = -100  # a sample to leave out of the cross-entropy, as in PyTorch


def classification_loss(logits: mx.array, labels: mx.array, problem_type: str | None = None) -> mx.array:
    """transformers' image classification loss, averaged: logits (N, num_labels) and labels -> a scalar in float32.

    The labels' shapes are those of `ConvNextV2ForImageClassification`.

    Raises:
        ValueError: labels do not fit the logits' shape, or are classes that do not exist. `mx.compile` hides the
            values, so the loss for such classes is NaN there.
    """
    if not isinstance(labels, mx.array):
        raise TypeError(f"labels must be an mx.array, not {type(labels).__name__}: wrap them in mx.array")
    logits = logits.astype(mx.float32)
    batch, num_labels = logits.shape
    is_integer = mx.issubdtype(labels.dtype, mx.integer)
    if problem_type is None:
        if num_labels == 1:
            problem_type = "regression"
        else:
            problem_type = "single_label_classification" if is_integer else "multi_label_classification"
    if problem_type == "single_label_classification":
        _check_labels(
            is_integer and labels.shape in ((batch,), (batch, 1)), labels, f"integers of the shape ({batch},)"
        )
        _check_classes(labels, num_labels)
        labels = labels.reshape(-1).astype(mx.int32)
        counted = labels != IGNORED_LABEL
        valid = (labels >= 0) & (labels < num_labels)
        losses = nn.losses.cross_entropy(logits, mx.where(valid, labels, 0))
        losses = mx.where(valid, losses, mx.nan)  # a class that does not exist must not go unnoticed
        return mx.where(counted, losses, 0).sum() / counted.sum()
    fits = labels.shape == logits.shape or (num_labels == 1 and labels.shape == (batch,))
    _check_labels(fits, labels, f"numbers of the shape ({batch}, {num_labels})")
    labels = labels.astype(mx.float32).reshape(logits.shape)
    if problem_type == "regression":
        return mx.square(logits - labels).mean()
    return nn.losses.binary_cross_entropy(logits, labels, with_logits=True)


def _check_labels(fits: bool, labels: mx.array, expected: str) -> None:
    if not fits:
        raise ValueError(f"labels must be {expected}, not {labels.dtype} {tuple(labels.shape)}")


def _check_classes(labels: mx.array, num_labels: int) -> None:
    try:
        classes = np.array(labels)
    except ValueError:  # they are being traced
        return
    wrong = classes[((classes < 0) | (classes >= num_labels)) & (classes != IGNORED_LABEL)]
    if wrong.size:
        raise ValueError(
            f"labels must be classes from 0 to {num_labels - 1}, or {IGNORED_LABEL} for a sample to leave out, "
            f"not {wrong[0]}"
        )
