"""The three numbers of an epoch: loss, top-1 and top-5."""

from __future__ import annotations

import numpy as np

from ..evaluation.metrics import label_ranks, log_softmax


def score(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Mean cross-entropy, and the shares of images whose class is the first answer, or among the first five.

    logits (N, num_labels), labels (N,). Among equal logits, the lower class comes first. Computed in float64.
    """
    logits = logits.astype(np.float64)
    loss = -log_softmax(logits)[np.arange(len(labels)), labels].mean()
    ranks = label_ranks(logits, labels)
    return float(loss), float((ranks == 0).mean()), float((ranks < 5).mean())
