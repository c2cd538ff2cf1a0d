"""GELU and Global Response Normalization, and their gradient, on a CPU, in numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from ..runtime.threads import scratch
from .activations import ERF, tanh_of_polynomial
from .numpy_parts import as_numpy, deal, new, parts_of, sum_by_image, sum_of_rows
from .plain import FLOAT32_TINY

CHUNK = 2**15  # elements per chunk: the cache holds several arrays of this size through all passes
TINY = np.float32(FLOAT32_TINY)


def gelu_grn(x: mx.array, weight: mx.array, bias: mx.array) -> tuple[mx.array, mx.array]:
    """x (N, H, W, D), weight and bias (1, 1, 1, D) -> the result (N, H, W, D), in float32.

    It also returns what the gradient needs: each channel's sum of squares (N, D).
    """
    result, y = new(x.shape)
    hidden, w, b = as_numpy(x), as_numpy(weight).reshape(-1), as_numpy(bias).reshape(-1)
    parts = parts_of(x.shape)
    squares: list[np.ndarray] = [np.empty(0)] * len(parts)

    def activate(i: int) -> None:
        square: np.ndarray = np.zeros((len(hidden[parts[i]]), len(w)), np.float32)
        for image, h, a in _chunks(hidden[parts[i]], y[parts[i]]):
            _normal_distribution(h, out=a)
            np.multiply(a, h, out=a)
            square[image] += np.einsum("pd,pd->d", a, a)
        squares[i] = square

    deal(activate, range(len(parts)))
    sums = sum_by_image(parts, squares, len(hidden))
    norms, mean = _norms(sums)
    factors = w * (norms / mean) + np.float32(1)

    def scale(i: int) -> None:
        images, _ = parts[i]
        for image, a in _chunks(y[parts[i]]):
            np.multiply(a, factors[images][image], out=a)
            np.add(a, b, out=a)

    deal(scale, range(len(parts)))
    return result, mx.array(sums)


def gelu_grn_gradient(
    x: mx.array, weight: mx.array, _: mx.array, sums_of_squares: mx.array, cotangent: mx.array
) -> tuple[mx.array, ...]:
    """The gradients of x, weight and bias, in float32, given the gradient of the result, (N, H, W, D).

    With a = GELU(x), g its norms, m their mean over channels plus 1e-6 and s = 1 + weight g / m, the result is
    a s + bias. The gradient of g is dg = (u - mean(u g) / m) / m, where u = weight * sum(dy a). The gradient of a is
    dy s + a dg / g.
    """
    gradient, dx = new(x.shape)
    hidden, w, dy, sums = as_numpy(x), as_numpy(weight).reshape(-1), as_numpy(cotangent), as_numpy(sums_of_squares)
    parts = parts_of(x.shape)
    channels = hidden.shape[-1]
    products: list[np.ndarray] = [np.empty(0)] * len(parts)
    biases = np.empty((len(parts), channels), np.float32)

    def sum_products(i: int) -> None:
        """Compute the sums over positions, and Phi(x), which dx holds until it is used below."""
        product: np.ndarray = np.zeros((len(hidden[parts[i]]), channels), np.float32)
        bias: np.ndarray = np.zeros(channels, np.float32)
        for image, h, d, phi in _chunks(hidden[parts[i]], dy[parts[i]], dx[parts[i]]):
            _normal_distribution(h, out=phi)
            a = scratch("activation", *h.shape)
            np.multiply(h, phi, out=a)
            product[image] += np.einsum("pd,pd->d", a, d)
            bias += sum_of_rows(d)
        products[i], biases[i] = product, bias

    deal(sum_products, range(len(parts)))
    total = sum_by_image(parts, products, len(hidden))
    norms, mean = _norms(sums)
    factors = w * (norms / mean) + np.float32(1)
    u = w * total
    of_norms = (u - (u * norms).mean(axis=1, keepdims=True) / mean) / mean
    through_norms = np.where(sums > TINY, of_norms / norms, np.float32(0))

    def of_input(i: int) -> None:
        images, _ = parts[i]
        for image, h, d, phi in _chunks(hidden[parts[i]], dy[parts[i]], dx[parts[i]]):
            a, density = scratch("activation", *h.shape), scratch("density", *h.shape)
            np.multiply(h, h, out=density)
            np.multiply(density, -0.5, out=density)
            np.exp(density, out=density)
            np.multiply(density, 1 / math.sqrt(2 * math.pi), out=density)
            np.multiply(density, h, out=density)  # x times the density: with Phi(x) the derivative of GELU
            np.multiply(h, phi, out=a)
            np.multiply(a, through_norms[images][image], out=a)
            np.add(density, phi, out=density)
            np.multiply(d, factors[images][image], out=phi)
            np.add(phi, a, out=phi)
            np.multiply(phi, density, out=phi)

    deal(of_input, range(len(parts)))
    of_weight = (total * (norms / mean)).sum(axis=0)
    of_bias = biases.sum(axis=0)
    return gradient, mx.array(of_weight).reshape(weight.shape), mx.array(of_bias).reshape(weight.shape)


def _norms(sums_of_squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) -> each channel's norm (N, D), and their mean plus 1e-6 (N, 1)."""
    norms = np.sqrt(np.maximum(sums_of_squares, TINY))
    return norms, norms.mean(axis=1, keepdims=True) + np.float32(1e-6)


def _normal_distribution(x: np.ndarray, out: np.ndarray) -> None:
    """Phi(x), (P, D) -> (P, D)."""
    tanh_of_polynomial(x.reshape(-1), ERF, out.reshape(-1))
    np.add(out, 1, out=out)
    np.multiply(out, 0.5, out=out)


def _chunks(*arrays: np.ndarray) -> Iterator[tuple[Any, ...]]:
    """Arrays (n, H, W, D) in chunks: the index of the image, and some positions (P, D) of each array."""
    channels = arrays[0].shape[-1]
    step = max(1, CHUNK // channels)
    for image, own in enumerate(zip(*arrays, strict=True)):
        flat = [array.reshape(-1, channels) for array in own]
        for start in range(0, len(flat[0]), step):
            yield image, *(array[start : start + step] for array in flat)
