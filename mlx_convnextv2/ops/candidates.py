"""The ways to compute the two parts of a block that are not matrix products: plain MLX, compiled by MLX, our kernels.

`depthwise` computes the same as `gpu.depthwise_layer_norm_residual`. `gelu_grn` turns hidden (N, P, D) and GRN's weight
(D,) into the activations (N, P, D) and factors (N, D), or None. The next matrix product can apply the factors to its
weight and add GRN's bias to its own.

Candidates have names. The name of a depthwise kernel gives the rows and columns of its tile, and the name of a GELU
kernel says what the factors are applied to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import prod
from typing import Any

import mlx.core as mx

from . import gpu, plain
from .proving import Arrays, farthest, kernel_tolerance, name_of, random, uses_tf32
from .trials import PLAIN, Operation, Trial

COMPILED = "compiled"
ON_WEIGHT, ON_INPUT = "kernel, scaled weight", "kernel, scaled input"  # of the matrix product after GRN
MORE_STRIPS = ", more strips"  # the suffix of such a name with `gpu.MANY_STRIPS`
MOST_ELEMENTS = 2**24  # of a trial's input: more images only take longer
_EPS = 1e-6

Chain = Callable[[str, int], Callable[[], Any]]
Activations = tuple[mx.array, mx.array | None]


def tile_name(rows: int, columns: int) -> str:
    return f"kernel {rows}x{columns}"


def depthwise(name: str) -> Callable[..., Any]:
    """(x, taps, bias, norm_weight, norm_bias, eps, residual_bias) -> normed and residual, (N, H, W, C) each."""
    if name in (PLAIN, COMPILED):
        return _compiled(mx.compile, _plain_depthwise) if name == COMPILED else _plain_depthwise
    rows, columns = name.removeprefix("kernel ").split("x")
    return partial(gpu.depthwise_layer_norm_residual, tile=(int(rows), int(columns)))


def gelu_grn(name: str) -> Callable[[mx.array, mx.array], Activations]:
    """(hidden, weight) -> activations and factors."""
    if name in (PLAIN, COMPILED):
        return _compiled(mx.compile, _plain_gelu_grn) if name == COMPILED else _plain_gelu_grn
    enough = gpu.MANY_STRIPS if name.endswith(MORE_STRIPS) else gpu.ENOUGH_STRIPS
    return partial(_gelu_and_factors if name.startswith(ON_WEIGHT) else _gelu_scaled, enough=enough)


@cache
def _compiled(compiler: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled once, as the next trial would trace it again."""
    return compiler(function)


def depthwise_trial(shape: tuple[int, ...], dtype: mx.Dtype, rule: str, chain: Chain, form: str = "") -> Trial:
    """For x (N, H, W, C) of random numbers. `form` names whatever else the time of a link depends on.

    A trial holds no memory: it draws the same numbers again each time.
    """
    shape, channels = _tried(shape), shape[-1]

    def inputs() -> list[mx.array]:
        x, taps = random(shape, dtype, 0), random((7, 7, channels), dtype, 1) * 0.2
        vectors = [random((channels,), dtype, key) for key in (2, 3, 4)]
        return [x, taps, *vectors, random((channels,), mx.float32, 5)]

    def results(name: str, arrays: list[mx.array] | None = None) -> Arrays:
        *first, residual_bias = arrays or inputs()
        return depthwise(name)(*first, _EPS, residual_bias)

    def expected() -> Arrays:
        return results(PLAIN, [array.astype(mx.float32) for array in inputs()])

    tolerance = kernel_tolerance(dtype, uses_tf32())

    names = (*(tile_name(*tile) for tile in gpu.tiles(channels)), COMPILED, PLAIN)
    operation = Operation("depthwise_layer_norm", shape, name_of(dtype), form)
    return Trial(operation, names, rule, expected, results, _limit(tolerance, results, expected), chain)


def gelu_grn_trial(
    shape: tuple[int, ...], dtype: mx.Dtype, rule: str, chain: Chain, form: str = "", quantized: bool = False
) -> Trial:
    """For hidden (N, P, D) of random numbers. `quantized` refers to the next product's weight; `form` is as above."""
    shape = _tried(shape)

    def inputs() -> tuple[mx.array, mx.array]:
        return random(shape, dtype, 6) * 2, random(shape[-1:], dtype, 7)

    def results(name: str) -> Arrays:
        activations, factors = gelu_grn(name)(*inputs())
        return [activations if factors is None else activations.astype(mx.float32) * factors[:, None]]

    def expected() -> Arrays:
        return [_plain_gelu_grn(*(array.astype(mx.float32) for array in inputs()))[0]]

    limit = _limit(kernel_tolerance(dtype), results, expected)
    kernels = [ON_INPUT] if quantized else [ON_WEIGHT, ON_INPUT]
    batch, pixels, channels = shape
    if gpu.strips_of(batch, pixels, channels, gpu.MANY_STRIPS) > gpu.strips_of(batch, pixels, channels):
        kernels += [name + MORE_STRIPS for name in kernels]
    names = (*kernels, COMPILED, PLAIN)
    return Trial(Operation("gelu_grn", shape, name_of(dtype), form), names, rule, expected, results, limit, chain)


def _limit(
    tolerance: float, results: Callable[[str], Arrays], expected: Callable[[], Arrays]
) -> Callable[[str], float]:
    """How far a candidate may differ: by the tolerance or, if MLX compiles it, by twice plain MLX's own difference."""

    def allowed(name: str) -> float:
        return max(tolerance, 2 * farthest(results(PLAIN), expected())) if name == COMPILED else tolerance

    return allowed


def _plain_depthwise(
    x: mx.array,
    taps: mx.array,
    bias: mx.array,
    norm_weight: mx.array,
    norm_bias: mx.array,
    eps: float,
    residual_bias: mx.array,
) -> tuple[mx.array, mx.array]:
    normed = plain.depthwise_layer_norm(x, gpu.channel_major(taps), bias, norm_weight, norm_bias, eps)
    return normed, (x + residual_bias).astype(x.dtype)


def _plain_gelu_grn(hidden: mx.array, weight: mx.array) -> Activations:
    four_d = hidden[:, None]  # (N, P, D) -> (N, 1, P, D)
    return plain.gelu_grn(four_d, weight, mx.zeros_like(weight))[:, 0], None


def _gelu_and_factors(hidden: mx.array, weight: mx.array, enough: int) -> Activations:
    activations, sums = gpu.gelu_sum_of_squares(hidden, enough)
    return activations, gpu.grn_scale(sums, weight)


def _gelu_scaled(hidden: mx.array, weight: mx.array, enough: int) -> Activations:
    scale = gpu.grn_scale(gpu.sum_of_squares_of_gelu(hidden, enough), weight)
    return gpu.gelu_scaled(hidden, scale, enough), None


def _tried(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, with no more images than it takes to fill a GPU."""
    batch, *rest = shape
    return (max(1, min(batch, MOST_ELEMENTS // prod(rest))), *rest)
