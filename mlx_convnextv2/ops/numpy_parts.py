"""MLX's arrays computed in numpy, in parts that are dealt to all cores.

Sums over parts are added in a fixed order, so the same input gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from math import ceil
from typing import Any

import mlx.core as mx
import numpy as np

from ..runtime.forks import check_not_forked
from ..runtime.numpy_blas import find_blas
from ..runtime.threads import MAX_WORKERS, available_cpus, for_each

PART = 2**18  # elements per part: few enough for a core's cache

Part = tuple[slice, slice]  # some images, and some rows of each


def as_numpy(array: mx.array) -> np.ndarray:
    """The values in float32: the array's own memory if it is float32 already, else a copy."""
    if array.dtype != mx.float32:
        check_not_forked()
    return np.ascontiguousarray(np.array(array.astype(mx.float32), copy=False))


def new(shape: Sequence[int]) -> tuple[mx.array, np.ndarray]:
    """An array of float32, and its memory to write into."""
    array = mx.zeros(shape)
    mx.eval(array)
    return array, np.array(array, copy=False)


def workers() -> int:
    """The number of threads for `deal`: one if numpy's BLAS starts its own threads and cannot be limited."""
    return min(available_cpus(), MAX_WORKERS) if find_blas() else 1


def deal(function: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Call function(item) for every item, on all cores."""
    blas = find_blas()
    with blas.one_thread() if blas else nullcontext():
        for_each(function, items, workers())


def parts_of(shape: Sequence[int]) -> list[Part]:
    """Images (N, H, W, C) in parts, the same number for each worker: whole images, or rows of one."""
    batch, height, width, channels = shape
    image = height * width * channels
    strips = min(height, max(ceil(image / PART), ceil(workers() / batch)))
    if strips == 1:
        return [(images, slice(0, height)) for images in slices(batch, ceil(batch * image / PART))]
    return [(slice(i, i + 1), rows) for i in range(batch) for rows in slices(height, strips)]


def slices(size: int, count: int = 1) -> list[slice]:
    """0 to size in at least `count` slices of about the same length, if possible the same number for each worker."""
    count = min(size, ceil(max(count, 1) / workers()) * workers())
    return [slice(*edges) for edges in pairwise(size * i // count for i in range(count + 1))]


def sum_by_image(parts: Sequence[Part], values: Iterable[np.ndarray], batch: int) -> np.ndarray:
    """The values (n, D) of each part -> their sums by image (N, D)."""
    sums = list(values)
    total = np.zeros((batch, sums[0].shape[1]), np.float32)
    for (images, _), value in zip(parts, sums, strict=True):
        total[images] += value
    return total


def sum_of_rows(x: np.ndarray) -> np.ndarray:
    """(positions, C) -> (C,)"""
    return np.ones(len(x), np.float32) @ x
