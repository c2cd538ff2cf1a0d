"""Mixup and CutMix in MLX: each image of a batch is mixed with its neighbour."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

UNMIXED = (0.0, 0.0, 0.0, 0.0, 1.0)


def draw_mix(mixup: float, cutmix: float, shape: tuple[int, int], random: np.random.Generator) -> tuple[float, ...]:
    """How to mix a batch, drawn outside the step: (top, bottom, left, right, weight).

    Within these rows and columns, an image keeps `weight` of its pixel values and its neighbour gives the rest. Mixup
    (Zhang et al. 2018, arXiv:1710.09412) blends whole images; CutMix (Yun et al. 2019, arXiv:1905.04899) has weight 0
    in a box. If both are on, each has probability 1/2.

    Args:
        mixup, cutmix: alpha of the Beta distribution; 0 turns it off.
        shape: (height, width) of the images.
    """
    if not mixup and not cutmix:
        return UNMIXED
    height, width = shape
    cuts = cutmix > 0 and (not mixup or random.random() < 0.5)
    kept = float(random.beta(cutmix, cutmix) if cuts else random.beta(mixup, mixup))
    if not cuts:
        return 0.0, float(height), 0.0, float(width), kept
    side = math.sqrt(1 - kept)
    high, wide = int(height * side), int(width * side)
    y, x = int(random.integers(height)), int(random.integers(width))
    top, bottom = max(y - high // 2, 0), min(y + high // 2, height)
    left, right = max(x - wide // 2, 0), min(x + wide // 2, width)
    return float(top), float(bottom), float(left), float(right), 0.0


def mix(pixel_values: mx.array, targets: mx.array, how: mx.array) -> tuple[mx.array, mx.array]:
    """Mix each image with its neighbour: the first with the second, the third with the fourth.

    The last of an odd number stays as it is. Shapes do not depend on how a batch is mixed, so a compiled step has one
    trace. Mixing neighbours allows a batch to be computed in parts.

    Args:
        pixel_values: (N, H, W, C).
        targets: (N, num_labels), shares of the classes.
        how: (5,), from `draw_mix`.
    """
    count, height, width, _ = pixel_values.shape
    rows, columns = mx.arange(height)[:, None], mx.arange(width)[None]
    inside = (rows >= how[0]) & (rows < how[1]) & (columns >= how[2]) & (columns < how[3])
    kept = mx.where(inside, how[4], 1.0)  # (H, W)
    share = kept.mean()
    partners = np.arange(count) ^ 1
    partners[partners == count] = count - 1
    others = mx.array(partners)
    kept = kept[None, :, :, None].astype(pixel_values.dtype)
    mixed = kept * pixel_values + (1 - kept) * pixel_values[others]
    return mixed, share * targets + (1 - share) * targets[others]


def smooth_targets(labels: mx.array, classes: int, smoothing: float) -> mx.array:
    """Classes (N,) -> (N, num_labels) float32: 1 - smoothing for the class, plus smoothing spread over all classes."""
    own = labels[:, None] == mx.arange(classes)[None]
    return own.astype(mx.float32) * (1 - smoothing) + smoothing / classes
