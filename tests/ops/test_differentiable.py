"""A function with a gradient of its own is differentiable in every way that the plain form is."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_convnextv2.ops.differentiable import differentiable


def plain(x: mx.array, w: mx.array) -> mx.array:
    return x**3 * w


def opaque(*arrays: mx.array) -> mx.array:
    """What MLX cannot look into: the product of the arrays' values."""
    return mx.array(np.prod([np.array(array) for array in arrays], axis=0))


def forward(x: mx.array, w: mx.array) -> tuple[mx.array, mx.array]:
    return opaque(x, x, x, w), opaque(x, x)


def backward(x: mx.array, w: mx.array, square: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    return opaque(mx.full(2, 3.0), square, w, cotangent), opaque(x, square, cotangent)


function = differentiable(forward, backward, plain)
X, W = mx.array([1.5, -2.0]), mx.array([3.0, 5.0])


def ours(x: mx.array, w: mx.array) -> mx.array:
    return (function(x, w)[0] * mx.sin(x)).sum()


def expected(x: mx.array, w: mx.array) -> mx.array:
    return (plain(x, w) * mx.sin(x)).sum()


@pytest.mark.parametrize("argument", [0, 1])
def test_value_and_gradient(argument: int) -> None:
    values = zip(*(mx.value_and_grad(f, argument)(X, W) for f in (ours, expected)), strict=True)
    assert all(mx.allclose(*pair) for pair in values)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("second", [0, 1])
def test_second_derivatives(first: int, second: int) -> None:
    """Which would be zero in silence where the gradient is a constant to MLX."""

    def twice(function):
        return mx.grad(lambda *arrays: (mx.grad(function, first)(*arrays) * mx.cos(X)).sum(), second)(X, W)

    assert mx.allclose(twice(ours), twice(expected))


def test_forward_mode() -> None:
    directions = [mx.array([1.0, 2.0]), mx.array([-1.0, 0.5])]
    assert mx.allclose(mx.jvp(ours, [X, W], directions)[1][0], mx.jvp(expected, [X, W], directions)[1][0])
    of_x, expected_of_x = (mx.jvp(lambda x, f=f: f(x, W), [X], directions[:1])[1][0] for f in (ours, expected))
    assert mx.allclose(of_x, expected_of_x)
