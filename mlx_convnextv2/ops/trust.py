"""Whether a kernel may replace its plain form where gradients are taken: tried once per machine, like all kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import mlx.core as mx

from .proving import Arrays, farthest, kernel_tolerance, name_of, random, uses_tf32
from .trials import PLAIN, Operation, Trial, Verdict
from .tuning import shared

KERNEL = "kernel"
_MOST = (1, 9, 7)  # images, rows and columns that are tried
Form = Callable[..., mx.array]


def is_right(name: str, kernel: Form, plain_form: Form, arrays: Sequence[mx.array]) -> bool:
    """Whether a function of arrays and its gradients equal those of its plain form on this device.

    The trial uses random numbers, so it works while a function is traced and its arrays have no values. The first
    array (N, H, W, C) keeps its channels but has few positions; the others keep their shapes.
    """
    x, *rest = arrays
    shape = (*(min(pair) for pair in zip(x.shape, _MOST, strict=False)), x.shape[-1])
    like = [(shape, x.dtype), *((array.shape, array.dtype) for array in rest)]
    form = ", ".join(name_of(dtype) for _, dtype in like[1:])
    operation = Operation(f"{name} and its gradients", shape, name_of(x.dtype), form)
    tuner = shared()

    @cache
    def inputs() -> list[mx.array]:
        return [random(*each, key) * (0.2 if key else 1) for key, each in enumerate(like)]

    def results(path: str, dtype: mx.Dtype | None = None) -> Arrays:
        function = kernel if path == KERNEL else plain_form
        primals = [array.astype(dtype or array.dtype) for array in inputs()]
        cotangent = random(shape, x.dtype, len(like)).astype(dtype or x.dtype)
        values, gradients = mx.vjp(lambda *primals: [function(*primals)], primals, [cotangent])
        return [*values, *gradients]

    @cache
    def expected() -> Arrays:
        return results(PLAIN, mx.float32)

    def allowed(name: str) -> float:
        """In half types, gradients are computed from rounded results, and plain MLX rounds more often."""
        return max(kernel_tolerance(x.dtype, uses_tf32()), 2 * farthest(results(PLAIN), expected()))

    trial = Trial(operation, (KERNEL, PLAIN), KERNEL, expected, results, allowed, _not_measured)
    verdict = tuner.known(trial)
    if not _is_decided(verdict):
        with tuner.session():
            tuner.prove(trial)
    return verdict.choice == KERNEL


def _is_decided(verdict: Verdict) -> bool:
    return KERNEL in verdict.proven or KERNEL in verdict.failures


def _not_measured(name: str, links: int) -> Callable[[], None]:
    raise NotImplementedError(f"{name} is proven alone")
