"""The hot operations with their own gradients: by our GPU kernels, and in numpy.

Each is a function from arrays to the result and whatever its gradient needs. The dtypes are always those of plain MLX:
the result has the common type of its arguments, and a gradient has the type of its argument.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import mlx.core as mx

from . import gpu, gpu_backward, numpy_depthwise, numpy_gelu_grn, numpy_linear, plain
from .differentiable import differentiable

Operation = Callable[..., tuple[mx.array, ...]]


@cache
def depthwise_layer_norm_by_kernel(eps: float) -> Any:
    """`plain.depthwise_layer_norm` without eps."""

    def forward(
        x: mx.array, weight: mx.array, bias: mx.array, norm_weight: mx.array, norm_bias: mx.array
    ) -> tuple[mx.array]:
        return (gpu.depthwise_layer_norm(x, gpu.tap_major(weight), bias, norm_weight, norm_bias, eps),)

    backward = partial(gpu_backward.depthwise_layer_norm_gradient, eps=eps)
    return _with_dtypes(forward, backward, partial(plain.depthwise_layer_norm, eps=eps))


@cache
def depthwise_layer_norm_in_numpy(eps: float) -> Any:
    """`plain.depthwise_layer_norm` without eps."""
    forward = partial(numpy_depthwise.depthwise_layer_norm, eps=eps)
    backward = numpy_depthwise.depthwise_layer_norm_gradient
    return _with_dtypes(forward, backward, partial(plain.depthwise_layer_norm, eps=eps))


def _gelu_grn_forward(x: mx.array, weight: mx.array, bias: mx.array) -> tuple[mx.array, mx.array]:
    hidden = x.reshape(x.shape[0], -1, x.shape[-1])  # (N, H, W, D) -> (N, H * W, D)
    squares = gpu.sum_of_squares_of_gelu(hidden)
    scale = gpu.grn_scale(squares, weight.reshape(-1))
    return gpu.gelu_scaled(hidden, scale).reshape(x.shape) + bias, squares  # (N, H * W, D) -> (N, H, W, D)


def _gelu_grn_backward(x: mx.array, weight: mx.array, _: mx.array, squares: mx.array, cotangent: mx.array) -> Any:
    return gpu_backward.gelu_grn_gradient(x, weight, squares, cotangent)


def _with_dtypes(forward: Operation, backward: Operation, plain_form: Callable[..., mx.array]) -> Any:
    def typed_forward(*arrays: mx.array) -> tuple[mx.array, ...]:
        result, *kept = forward(*arrays)
        return result.astype(mx.result_type(*arrays)), *kept

    def typed_backward(*arrays: mx.array) -> tuple[mx.array, ...]:
        gradients = backward(*arrays)
        return tuple(g.astype(array.dtype) for g, array in zip(gradients, arrays, strict=False))

    return differentiable(typed_forward, typed_backward, plain_form)


gelu_grn_by_kernel = _with_dtypes(_gelu_grn_forward, _gelu_grn_backward, plain.gelu_grn)
gelu_grn_in_numpy = _with_dtypes(numpy_gelu_grn.gelu_grn, numpy_gelu_grn.gelu_grn_gradient, plain.gelu_grn)
linear_in_numpy = _with_dtypes(
    lambda *arrays: (numpy_linear.linear(*arrays),), numpy_linear.linear_gradient, plain.linear
)
