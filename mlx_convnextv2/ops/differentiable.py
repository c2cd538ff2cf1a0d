"""Functions of arrays with their own gradient, equal to the gradient of a plain form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx


def differentiable(
    forward: Callable[..., tuple[mx.array, ...]],
    backward: Callable[..., tuple[mx.array, ...]],
    plain_form: Callable[..., mx.array],
) -> Any:
    """A function from arrays to (result, *kept): `forward` with the gradient `backward`.

    Args:
        forward: arrays -> (result, *kept), where only the gradient needs `kept`.
        backward: (*arrays, *kept, the gradient of the result) -> the gradients of the arrays.
        plain_form: arrays -> result, in operations that MLX can differentiate. It provides forward mode and second
            derivatives, which would otherwise be silently wrong.
    """
    function, gradient = mx.custom_function(forward), mx.custom_function(backward)

    @function.vjp
    def _(primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]) -> Any:
        return gradient(*primals, *outputs[1:], cotangents[0])

    @gradient.vjp
    def _(arguments: Sequence[mx.array], cotangents: Sequence[mx.array], _: Any) -> Any:
        count = len(cotangents)
        primals, kept, cotangent = arguments[:count], arguments[count:-1], arguments[-1]

        def plain_gradient(*arrays: mx.array) -> list[mx.array]:
            return mx.vjp(plain_form, list(arrays[:-1]), [arrays[-1]])[1]

        *of_primals, of_cotangent = mx.vjp(plain_gradient, [*primals, cotangent], list(cotangents))[1]
        return (*of_primals, *map(mx.zeros_like, kept), of_cotangent)

    @function.jvp
    def _(primals: Sequence[mx.array], tangents: Sequence[mx.array | None]) -> Any:
        directions = [mx.zeros_like(p) if t is None else t for p, t in zip(primals, tangents, strict=True)]
        (result,) = mx.jvp(plain_form, list(primals), directions)[1]
        return result, *(mx.zeros_like(kept) for kept in forward(*primals)[1:])

    return function
