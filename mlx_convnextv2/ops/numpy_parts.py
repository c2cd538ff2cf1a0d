"""Arrays of MLX computed in numpy, in parts that are dealt to all cores.

What is summed over parts is summed in their order, so that the same input gives the same bits.
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

PART = 2**18  # elements of a part: few enough to stay in a core's cache

Part = tuple[slice, slice]  # some images, and rows of each


def as_numpy(array: mx.array) -> np.ndarray:
    """The values in float32: the array's own memory where they are float32 already, else a copy."""
    if array.dtype != mx.float32:
        check_not_forked()
    return np.ascontiguousarray(np.array(array.astype(mx.float32), copy=False))


def new(shape: Sequence[int]) -> tuple[mx.array, np.ndarray]:
    """An array of float32, and its memory to write into."""
    array = mx.zeros(shape)
    mx.eval(array)
    return array, np.array(array, copy=False)


def workers() -> int:
    """How many threads `deal` uses. One where numpy's BLAS brings threads of its own that cannot be held back."""
    return min(available_cpus(), MAX_WORKERS) if find_blas() else 1


def deal(function: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Call function(item) for every item, on all cores."""
    blas = find_blas()
    with blas.one_thread() if blas else nullcontext():
        for_each(function, items, workers())


def parts_of(shape: Sequence[int]) -> list[Part]:
    """Images (N, H, W, C) in parts: as many for each worker, of whole images or of rows of one."""
    batch, height, width, channels = shape
    image = height * width * channels
    strips = min(height, max(ceil(image / PART), ceil(workers() / batch)))
    if strips == 1:
        return [(images, slice(0, height)) for images in slices(batch, ceil(batch * image / PART))]
    return [(slice(i, i + 1), rows) for i in range(batch) for rows in slices(height, strips)]


def slices(size: int, count: int = 1) -> list[slice]:
    """0 to size in at least `count` slices of about the same length, as many for each worker if there are enough."""
    count = min(size, ceil(max(count, 1) / workers()) * workers())
    return [slice(*edges) for edges in pairwise(size * i // count for i in range(count + 1))]


def sum_by_image(parts: Sequence[Part], values: Iterable[np.ndarray], batch: int) -> np.ndarray:
    """values (n, D) of each part -> (N, D)."""
    sums = list(values)
    total = np.zeros((batch, sums[0].shape[1]), np.float32)
    for (images, _), value in zip(parts, sums, strict=True):
        total[images] += value
    return total


def sum_of_rows(x: np.ndarray) -> np.ndarray:
    """(positions, C) -> (C,)"""
    return np.ones(len(x), np.float32) @ x
