"""Whether a candidate computes what plain MLX computes, on this device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx

from ..messages import one_line

Arrays = Sequence[mx.array]


def prove(compute: Callable[[], Arrays], expected: Arrays, allowed: float) -> str | None:
    """Why the candidate's results cannot be trusted: an exception, a shape, a NaN, a difference. None: they can.

    Args:
        compute: runs the candidate; whatever it raises is a reason, a kernel that does not compile for one.
        expected: the right results, of the same shapes, in float32. Where they are not finite, so may be the others.
        allowed: how far the results may be away, as a part of the largest magnitude of each.

    Raises:
        RuntimeError: there is not enough memory, which is no fault of the candidate's.
    """
    try:
        results = compute()
        mx.eval(results)
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            raise
        return one_line(error)
    for result, right in zip(results, expected, strict=True):
        if result.shape != right.shape:
            return f"its result has the shape {tuple(result.shape)}, not {tuple(right.shape)}"
        result, finite = result.astype(mx.float32), mx.isfinite(right)
        if not mx.all(mx.isfinite(result) | ~finite).item():
            return "it returns NaN or infinity where plain MLX does not"
        difference = distance(result, right)
        if not difference <= allowed:
            return f"it differs from plain MLX by {difference:.1e} of the largest value, and {allowed:.1e} is allowed"
    return None


def distance(result: mx.array, right: mx.array) -> float:
    """The largest difference between two arrays of one shape, as a part of the second's largest finite magnitude."""
    result, right = result.astype(mx.float32), right.astype(mx.float32)
    finite = mx.isfinite(right)
    difference = mx.where(finite, mx.abs(result - right), 0).max()
    largest = mx.where(finite, mx.abs(right), 0).max()
    return cast(float, (difference / mx.maximum(largest, 1e-30)).item())
