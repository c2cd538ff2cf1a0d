"""The activations of `ACT2FN` on numpy arrays, in place.

numpy has no erf, but it multiplies, adds and computes tanh with SIMD instructions. So the two GELUs and SiLU are
written as x (1 + tanh(x q(x^2))) / 2, each with its own polynomial q.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ..runtime.threads import scratch

# erf(x / sqrt 2) = tanh(x q(x^2)). This q, highest power first, minimises the largest error of erf over all x: 6e-8,
# or 1.5e-7 when computed in float32. tests/inference/test_numpy_classifier.py fits it anew and measures the error.
ERF = (1.75628168e-09, -1.32266419e-07, 3.96477476e-06, -5.53063247e-05, -3.25947278e-05, 0.0363330844, 0.797884941)
GELU_TANH = (0.044715 * math.sqrt(2 / math.pi), math.sqrt(2 / math.pi))
SIGMOID = (0.5,)  # sigmoid(x) = (1 + tanh(x / 2)) / 2

CHUNK = 131_072  # elements: few enough for the cache, and enough that threads seldom wait for Python's lock


def tanh_of_polynomial(x: np.ndarray, coefficients: Sequence[float], out: np.ndarray) -> None:
    """out = tanh(x q(x^2)) on 1-D float32 arrays. The coefficients are those of q, highest power first."""
    if len(coefficients) == 1:
        np.multiply(x, coefficients[0], out=out)
    else:
        squares = scratch("squares", x.size)
        np.multiply(x, x, out=squares)
        np.multiply(squares, coefficients[0], out=out)  # Horner's scheme
        for coefficient in coefficients[1:-1]:
            np.add(out, coefficient, out=out)
            np.multiply(out, squares, out=out)
        np.add(out, coefficients[-1], out=out)
        np.multiply(out, x, out=out)
    np.tanh(out, out=out)


def gated(half: np.ndarray, coefficients: Sequence[float]) -> None:
    """x (1 + tanh(x q(x^2))) / 2 of x = 2 half, in place."""
    gate = scratch("gate", half.size)
    degree = len(coefficients) - 1
    tanh_of_polynomial(half, [2 * c * 4.0 ** (degree - i) for i, c in enumerate(coefficients)], gate)
    np.multiply(gate, half, out=gate)
    np.add(half, gate, out=half)


def relu(x: np.ndarray) -> None:
    np.maximum(x, 0, out=x)


def selu(x: np.ndarray) -> None:
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    negative = scratch("gate", x.size)
    np.minimum(x, 0, out=negative)
    np.exp(negative, out=negative)
    np.subtract(negative, 1, out=negative)
    np.multiply(negative, alpha, out=negative)
    np.maximum(x, 0, out=x)
    np.add(x, negative, out=x)
    np.multiply(x, scale, out=x)


_IN_PLACE: dict[str, Callable[[np.ndarray], None]] = {
    "gelu": partial(gated, coefficients=ERF),
    "gelu_new": partial(gated, coefficients=GELU_TANH),
    "gelu_pytorch_tanh": partial(gated, coefficients=GELU_TANH),
    "relu": relu,
    "silu": partial(gated, coefficients=SIGMOID),
    "swish": partial(gated, coefficients=SIGMOID),
    "selu": selu,
}


def scale_before(name: str) -> float:
    """What `activate` wants its input multiplied by. A linear layer before it can do this at no cost."""
    return 1.0 if name in ("relu", "selu") else 0.5


def activate(x: np.ndarray, name: str) -> None:
    """The named activation of x / `scale_before(name)`, a contiguous array, in place, in pieces that fit the cache."""
    flat = x.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        _IN_PLACE[name](flat[start : start + CHUNK])
