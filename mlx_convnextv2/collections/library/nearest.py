"""Exact search by cosine, at the speed of memory.

numpy converts float16 slowly, one element at a time. But the bits of a float16, shifted to where a float32 has them,
are its value times 2^-112, because the exponents' biases differ by 112. So integer shifts, in blocks that fit a cache,
and a product in float32 give all scores. The best are computed again in float64, and divided by the row's length.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np

from ...runtime.numpy_blas import find_blas
from ...runtime.threads import MAX_WORKERS, available_cpus, for_each, scratch

_BLOCK_VALUES = 2**20  # 4 MiB in float32
_EXACT_ROWS = 4096  # computed in float64 at a time
SCALE = np.float32(2.0**112)
_SIGN_EXPONENT_FRACTION = np.int32(-0x70002000)  # of a float16, 13 bits higher: 0x8fffe000
_ROUNDING = 2.0**-10  # twice the most by which the length of a float16 row differs from one


def unscaled(features: np.ndarray, out: np.ndarray) -> np.ndarray:
    """float16 (N, C) -> float32 (N, C) in `out`, 2^112 times too small. Exact but for infinities and NaN."""
    bits = out.view(np.int32)
    np.copyto(bits, features.view("<i2"))  # the sign is extended
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _SIGN_EXPONENT_FRACTION, out=bits)
    return out


def rough_scores(features: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The products (N,) float32 of all rows, float16 (N, C), with a query (C,), in blocks and on all cores."""
    count, width = features.shape
    scores = np.empty(count, np.float32)
    scaled = query.astype(np.float32) * SCALE
    rows = max(1, _BLOCK_VALUES // width)

    def score(first: int) -> None:
        block = features[first : first + rows]
        np.dot(unscaled(block, scratch("library", *block.shape)), scaled, out=scores[first : first + rows])

    blas = find_blas()
    with blas.one_thread() if blas else nullcontext():
        for_each(score, range(0, count, rows), min(available_cpus(), MAX_WORKERS))
    return scores


def cosines(features: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The cosines (N,) float64 of rows, float16 (N, C), with a query (C,) or with one for each row (N, C).

    A row's result does not depend on the others. It is -1 where the cosine is not defined.
    """
    rows, others = features.astype(np.float64), query.astype(np.float64)
    with np.errstate(all="ignore"):
        lengths = np.sqrt((rows * rows).sum(axis=-1) * (others * others).sum(axis=-1))
        found = (rows * others).sum(axis=-1) / lengths
    return np.where(np.isfinite(found), np.clip(found, -1.0, 1.0), -1.0)


def margin(width: int) -> float:
    """How far two rough scores may be from their cosines, together: rows are rounded to float16, sums to float32."""
    return _ROUNDING + width * 2.0**-22


def nearest(features: np.ndarray, query: np.ndarray, rough: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows with the `count` highest cosines and those that tie with the last, and their cosines, unordered.

    Args:
        features: float16 (N, C), of length one but for rounding.
        query: (C,) of length one.
        rough: `rough_scores` of them.
    """
    rough = np.where(np.abs(rough) < 2, rough, -1)  # unit vectors give no other value: it comes from infinities or NaN
    if count >= len(rough):
        rows = np.arange(len(rough))
    else:
        last = np.partition(rough, len(rough) - count)[len(rough) - count]
        rows = np.flatnonzero(rough >= last - margin(features.shape[1]))
    scores = np.concatenate(
        [cosines(features[rows[first : first + _EXACT_ROWS]], query) for first in range(0, len(rows), _EXACT_ROWS)]
        or [np.empty(0)]
    )
    if count < len(rows):
        kept = scores >= np.partition(scores, len(rows) - count)[len(rows) - count]
        rows, scores = rows[kept], scores[kept]
    return rows, scores
