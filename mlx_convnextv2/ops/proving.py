"""Whether a candidate gives the same results as plain MLX on this device."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import cast

import mlx.core as mx

from ..messages import one_line
from . import tolerances

Arrays = Sequence[mx.array]


def prove(compute: Callable[[], Arrays], expected: Arrays, allowed: float) -> str | None:
    """Why the candidate's results cannot be trusted (an exception, a shape, a NaN, a difference), or None if they can.

    Args:
        compute: runs the candidate. Any exception is a reason, such as a kernel that does not compile.
        expected: the right results, of the same shapes, in float32. Where they are not finite, the candidate's need
            not be either.
        allowed: the largest difference, as a fraction of the largest magnitude of each result.

    Raises:
        RuntimeError: there is not enough memory, which is not the candidate's fault.
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
    """The largest difference of two arrays of one shape, as a fraction of the second's largest finite magnitude."""
    result, right = result.astype(mx.float32), right.astype(mx.float32)
    finite = mx.isfinite(right)
    difference = mx.where(finite, mx.abs(result - right), 0).max()
    largest = mx.where(finite, mx.abs(right), 0).max()
    return cast(float, (difference / mx.maximum(largest, 1e-30)).item())


def farthest(results: Arrays, expected: Arrays) -> float:
    """The largest `distance` of several arrays. It is not 0 for plain MLX, which rounds after each operation."""
    return max(distance(*pair) for pair in zip(results, expected, strict=True))


def kernel_tolerance(dtype: mx.Dtype, tf32: bool = False) -> float:
    """How far a kernel may differ from plain MLX in float32. `tf32`: MLX rounds the factors of products."""
    return tolerances.KERNEL["float16" if tf32 and dtype == mx.float32 else name_of(dtype)]


def uses_tf32() -> bool:
    """Whether MLX may round the factors of float32 products to 11 bits here: on CUDA and from Apple's M5 on, unless
    MLX_ENABLE_TF32=0."""
    if os.environ.get("MLX_ENABLE_TF32") == "0" or mx.default_device().type != mx.gpu:
        return False
    generation = re.match(r"applegpu_g(\d+)", str(mx.device_info().get("architecture")))
    return mx.cuda.is_available() or (generation is not None and int(generation[1]) >= 17)


def random(shape: tuple[int, ...], dtype: mx.Dtype, key: int) -> mx.array:
    """Normally distributed numbers, the same for the same key."""
    return mx.random.normal(shape, key=mx.random.key(key)).astype(dtype)


def name_of(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")
