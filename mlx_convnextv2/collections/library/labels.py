"""A classifier's head, applied to the features in a library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...inference.classifier import softmax
from ...inference.embedder import ImageEmbedder
from ...inference.numpy_block import dense_weight
from ...model.convnextv2 import body_and_classifier
from ...model.labels import class_labels
from ...ops.numpy_parts import as_numpy
from .reader import View
from .writer import Entry

_BLOCK = 4096  # rows at a time

Head = Callable[[np.ndarray], np.ndarray]


def head_of(embedder: ImageEmbedder) -> tuple[list[str], Head]:
    """The labels of a model, and its head: pooled features (N, C) float32 -> logits (N, num_labels).

    Raises:
        ValueError: the model has no classification head.
    """
    _, classifier = body_and_classifier(embedder.model)
    labels = class_labels(embedder.model.config)
    if classifier is None or not labels:
        raise ValueError(
            f"{embedder.name} has no classification head: give a model that has one on the same body (--model)"
        )
    weight, bias = dense_weight(classifier), as_numpy(classifier.bias)
    return labels, lambda features: features @ weight.T + bias


def labelled(views: Sequence[View], head: Head, index: int) -> list[tuple[float, Entry]]:
    """The pictures whose best label is this one, each with its probability."""
    found: list[tuple[float, Entry]] = []
    for view in views:
        live = view.live()
        pictures = live[np.unique(live["row"], return_index=True)[1]]
        scores: dict[int, float] = {}
        for first in range(0, len(pictures), _BLOCK):
            some = pictures[first : first + _BLOCK]
            logits = head(view.features[some["row"]].astype(np.float32) * some["norm"][:, None])
            chosen = np.flatnonzero(logits.argmax(axis=1) == index)
            own = softmax(logits[chosen])[:, index].tolist() if len(chosen) else []
            scores.update(zip(some["row"][chosen].tolist(), own, strict=True))
        found += [(scores[entry.row], entry) for entry in view.entries(list(scores))]
    return found
