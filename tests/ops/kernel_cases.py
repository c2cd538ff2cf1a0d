"""What the tests of the kernels share: random arrays, and each kernel checked against plain MLX in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import mlx.core as mx
import numpy as np

from mlx_convnextv2.ops import gpu, gpu_backward, plain
from mlx_convnextv2.ops.tolerances import KERNEL

Run = Callable[[], AbstractContextManager[None]]
Shape = tuple[int, ...]
DTYPES = (mx.float32, mx.float16, mx.bfloat16)


def random(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0, spread: float = 1.0) -> mx.array:
    values = np.random.RandomState(seed + sum(shape)).standard_normal(shape) * spread
    return mx.array(values.astype(np.float32)).astype(dtype)


def depthwise_arrays(shape: Shape, dtype: mx.Dtype) -> list[mx.array]:
    weight = random(shape[-1], 7, 7, 1, dtype=dtype, seed=1, spread=0.2)
    return [random(*shape, dtype=dtype), weight, *(random(shape[-1], dtype=dtype, seed=seed) for seed in (2, 3, 4))]


def gelu_grn_arrays(shape: Shape, dtype: mx.Dtype) -> list[mx.array]:
    vectors = [random(1, 1, 1, shape[-1], dtype=dtype, seed=seed) for seed in (1, 2)]
    return [random(*shape, dtype=dtype, spread=2), *vectors]


def largest(array: mx.array) -> float:
    """The largest magnitude."""
    return float(np.abs(np.array(array)).max())


def assert_close(
    result: mx.array, expected: mx.array, dtype: mx.Dtype = mx.float32, in_dtype: mx.array | None = None
) -> None:
    """Within the dtype's tolerance of a float32 result, or as near to it as plain MLX in that dtype.

    Where the terms of a sum cancel, their own roundings are more than the sum's tolerance.
    """
    assert result.shape == expected.shape
    allowed = KERNEL[str(dtype).removeprefix("mlx.core.")] * largest(expected)
    if in_dtype is not None:
        allowed = max(allowed, largest(in_dtype.astype(mx.float32) - expected))
    assert largest(result.astype(mx.float32) - expected) <= allowed  # false for NaN


def check_depthwise(shape: Shape, dtype: mx.Dtype, run: Run) -> None:
    """The three forms of the depthwise kernel against the plain version in float32, on the same rounded inputs."""
    x, weight, bias, norm_weight, norm_bias = depthwise_arrays(shape, dtype)
    residual_bias = random(shape[-1], seed=5)
    taps = gpu.tap_major(weight)
    exact = [array.astype(mx.float32) for array in (x, weight, bias, norm_weight, norm_bias)]
    convolved = mx.conv2d(exact[0], exact[1], padding=3, groups=shape[-1]) + exact[2]
    with run():
        without_norm = gpu.depthwise_conv2d(x, taps, bias)
        without_residual = gpu.depthwise_layer_norm(x, taps, bias, norm_weight, norm_bias, 1e-6)
        whole, residual = gpu.depthwise_layer_norm_residual(x, taps, bias, norm_weight, norm_bias, 1e-6, residual_bias)
        mx.eval(without_norm, without_residual, whole, residual)
    assert {a.dtype for a in (without_norm, without_residual, whole, residual)} == {dtype}
    assert_close(without_norm, convolved, dtype)
    assert_close(whole, plain_depthwise(*exact), dtype)
    assert mx.array_equal(whole, without_residual)
    assert_close(residual, exact[0] + residual_bias, dtype)


def check_gelu_grn(shape: Shape, dtype: mx.Dtype, run: Run) -> None:
    """GELU, its sums of squares, GRN's factors and their use against the plain version in float32, for (N, P, D)."""
    batch, pixels, channels = shape
    hidden, weight = random(*shape, dtype=dtype, spread=2), random(channels, dtype=dtype, seed=1)
    exact = hidden.astype(mx.float32)
    with run():
        activations, sums = gpu.gelu_sum_of_squares(hidden)
        sums_alone = gpu.sum_of_squares_of_gelu(hidden)
        scale = gpu.grn_scale(sums, weight)
        scaled = gpu.gelu_scaled(hidden, scale)
        mx.eval(activations, sums, sums_alone, scale, scaled)
    assert activations.dtype == scaled.dtype == dtype
    assert sums.dtype == scale.dtype == mx.float32
    assert_close(activations, plain.gelu(exact), dtype)
    assert_close(sums.sum(axis=1), mx.square(activations.astype(mx.float32)).sum(axis=1))
    assert mx.array_equal(sums, sums_alone)
    four_d = (batch, 1, pixels, channels)
    expected = plain.gelu_grn(exact.reshape(four_d), weight.astype(mx.float32).reshape(1, 1, 1, -1), mx.zeros(1))
    assert_close(scaled, expected.reshape(shape), dtype)


depthwise_gradient: Callable[..., tuple[mx.array, ...]] = partial(gpu_backward.depthwise_layer_norm_gradient, eps=1e-6)
plain_depthwise: Callable[..., mx.array] = partial(plain.depthwise_layer_norm, eps=1e-6)


def gelu_grn_gradient(x: mx.array, weight: mx.array, _: mx.array, cotangent: mx.array) -> tuple[mx.array, ...]:
    squares = gpu.sum_of_squares_of_gelu(x.reshape(x.shape[0], -1, x.shape[-1]))
    return gpu_backward.gelu_grn_gradient(x, weight, squares, cotangent)


def check_gradient(
    function: Callable[..., tuple[mx.array, ...]],
    plain_form: Callable[..., mx.array],
    arrays: list[mx.array],
    run: Run,
) -> None:
    """Every gradient, against those of the plain form in float32 for the same rounded arrays."""
    dtype = arrays[0].dtype
    cotangent = random(*arrays[0].shape, dtype=dtype, seed=9)
    exact = [array.astype(mx.float32) for array in arrays]
    expected = mx.vjp(plain_form, exact, [cotangent.astype(mx.float32)])[1]
    in_dtype = mx.vjp(plain_form, arrays, [cotangent])[1] if dtype != mx.float32 else [None] * len(expected)
    with run():
        gradients = function(*arrays, cotangent)
        mx.eval(gradients)
    assert gradients[0].dtype == dtype
    assert {gradient.dtype for gradient in gradients[1:]} == {mx.float32}
    for gradient, reference, plainly in zip(gradients, expected, in_dtype, strict=True):
        assert_close(gradient, reference, dtype, plainly)


def check_gradients(shape: Shape, dtype: mx.Dtype, run: Run) -> None:
    """Of both operations, for (N, H, W, C)."""
    check_gradient(depthwise_gradient, plain_depthwise, depthwise_arrays(shape, dtype), run)
    check_gradient(gelu_grn_gradient, plain.gelu_grn, gelu_grn_arrays(shape, dtype), run)
