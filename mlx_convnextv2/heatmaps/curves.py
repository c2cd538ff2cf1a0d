"""Test a heat map: remove what it marks, and see whether the model still finds the label.

Deletion and insertion (Petsiuk et al. 2018, arXiv:1806.07421). Deletion replaces positions by a baseline, the map's
strongest first. Insertion puts them into the baseline in the same order. With a good map the score falls fast in
deletion and rises fast in insertion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np


def deletion_curve(
    predict: Callable[[mx.array], mx.array],
    pixel_values: mx.array,
    heat_maps: Any,
    labels: Any,
    *,
    baseline: Any = 0.0,
    steps: int | None = None,
) -> np.ndarray:
    """The labels' probabilities while the positions of the maps are removed.

    Args:
        predict: pixel_values -> logits (N, num_labels), such as `fuse(model)`.
        pixel_values: (N, H, W, C).
        heat_maps: (N, h, w). Rows and columns left over by H / h and W / w are never replaced.
        labels: (N,) indices.
        baseline: replaces pixel values: a number, or an array that broadcasts to them.
        steps: how often the model runs after the first time, at most h * w. None takes h * w.

    Returns:
        (N, steps + 1) float32, from the picture to the baseline; its mean over the steps is the area below the curve.

    Raises:
        ValueError: the shapes do not fit.
    """
    pixels = np.array(pixel_values, np.float32)
    blank = np.broadcast_to(np.array(baseline, np.float32), pixels.shape)
    return _curve(predict, pixels, blank, heat_maps, labels, steps)


def insertion_curve(
    predict: Callable[[mx.array], mx.array],
    pixel_values: mx.array,
    heat_maps: Any,
    labels: Any,
    *,
    baseline: Any = 0.0,
    steps: int | None = None,
) -> np.ndarray:
    """The labels' probabilities while the positions are put into the baseline. Otherwise as `deletion_curve`."""
    pixels = np.array(pixel_values, np.float32)
    blank = np.broadcast_to(np.array(baseline, np.float32), pixels.shape)
    return _curve(predict, blank, pixels, heat_maps, labels, steps)


def _curve(
    predict: Callable[[mx.array], mx.array],
    start: np.ndarray,
    end: np.ndarray,
    heat_maps: Any,
    labels: Any,
    steps: int | None,
) -> np.ndarray:
    maps, labels = np.array(heat_maps, np.float32), np.array(labels).reshape(-1)
    if maps.ndim != 3 or not len(maps) == len(labels) == len(start):
        raise ValueError(f"there must be a map (h, w) and a label for each of {len(start)} images")
    count, rows, columns = maps.shape
    steps = rows * columns if steps is None else steps
    if not 1 <= steps <= rows * columns:
        raise ValueError(f"steps must be from 1 to the {rows * columns} positions of the maps, not {steps}")
    order = np.argsort(-maps.reshape(count, -1), axis=1, kind="stable")
    rank = np.argsort(order, axis=1).reshape(maps.shape)  # 0 for the strongest position
    height, width = start.shape[1] // rows, start.shape[2] // columns
    if not height or not width:
        raise ValueError(f"maps of {rows} x {columns} are finer than pixel values of {start.shape[1:3]}")
    scores = []
    for step in range(steps + 1):
        chosen = rank < round(step * rows * columns / steps)
        mask = chosen.repeat(height, axis=1).repeat(width, axis=2)  # (N, h, w) -> (N, H, W)
        mask = np.pad(mask, [(0, 0), *((0, a - b) for a, b in zip(start.shape[1:3], mask.shape[1:], strict=True))])
        logits = predict(mx.array(np.where(mask[..., None], end, start)))
        probabilities = np.array(mx.softmax(logits.astype(mx.float32), axis=-1))
        scores.append(probabilities[np.arange(count), labels])
    return np.stack(scores, axis=1)
