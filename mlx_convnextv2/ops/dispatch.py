"""The hot operations of the block, each computed by the path that `choose` names.

Plain MLX is in `plain`, and `gpu` has kernels of our own for Metal and CUDA. Where the path is "numpy", `inference`
computes whole models, and single operations are plain.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import mlx.core as mx

from . import gpu, plain

PATHS = ("auto", "plain", "kernel", "numpy")
_KERNEL_DTYPES = (mx.float32, mx.float16, mx.bfloat16)


_wanted: ContextVar[str | None] = ContextVar("wanted", default=None)


@contextmanager
def path(name: str | None) -> Iterator[None]:
    """In this context, and in this thread, the operations take the path of this name; None leaves the choice."""
    token = _wanted.set(name)
    try:
        yield
    finally:
        _wanted.reset(token)


def asked(path: str | None = None) -> str | None:
    """The path that the argument, the context or the environment decides for, as `choose` says; None where none does.

    Raises:
        ValueError: a path that does not exist.
    """
    for wanted, name in (
        (path, "path"),
        (_wanted.get(), "path"),
        (os.environ.get("MLX_CONVNEXTV2_OPS"), "MLX_CONVNEXTV2_OPS"),
    ):
        if wanted and wanted not in PATHS:
            raise ValueError(f"{name} must be one of {', '.join(PATHS)}, not {wanted!r}")
        if wanted and wanted != "auto":
            return wanted
    return None


def choose(dtype: mx.Dtype, channels: int, path: str | None = None) -> str:
    """The path for a block of so many channels in this dtype: "plain", "kernel" or "numpy".

    An argument other than "auto" decides, then the context of `path`, then the environment variable
    MLX_CONVNEXTV2_OPS. Else the rule is:

    - on a GPU "kernel", for float32, float16 and bfloat16 and at most `gpu.MOST_CHANNELS` channels;
    - on a CPU under Linux "numpy", where MLX's own operations are scalar; it computes whole models in inference, so
      that single operations are plain there;
    - else "plain".

    Matrix products, the strided convolutions and what happens once a stage are MLX's own on a GPU: they move their
    operands once.

    Raises:
        ValueError: a path that does not exist.
    """
    if wanted := asked(path):
        return wanted
    if mx.default_device().type == mx.gpu:
        return "kernel" if dtype in _KERNEL_DTYPES and channels <= gpu.MOST_CHANNELS else "plain"
    return "numpy" if sys.platform == "linux" else "plain"


def depthwise_layer_norm(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    norm_weight: mx.array,
    norm_bias: mx.array,
    eps: float,
) -> mx.array:
    """`plain.depthwise_layer_norm`, by the path that `choose` names. Differentiable on every path."""
    plain_form, arrays = partial(plain.depthwise_layer_norm, eps=eps), (x, weight, bias, norm_weight, norm_bias)
    if choose(x.dtype, x.shape[-1]) != "kernel":
        return plain_form(*arrays)
    return _by_kernel("depthwise_layer_norm", _depthwise_layer_norm_kernel(eps), plain_form, *arrays)


def gelu_grn(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """`plain.gelu_grn`, by the path that `choose` names. Differentiable on every path."""
    if choose(x.dtype, x.shape[-1] // 4) != "kernel":
        return plain.gelu_grn(x, weight, bias)
    return _by_kernel("gelu_grn", _gelu_grn_kernel, plain.gelu_grn, x, weight, bias)


def _by_kernel(name: str, kernel: Any, plain_form: Callable[..., mx.array], *arrays: mx.array) -> mx.array:
    """By the kernel, or by its plain form where nobody asked for kernels and this one is wrong on this device."""
    from . import trust  # here, where it is needed

    is_trusted = asked() is not None or trust.is_right(name, kernel, plain_form, arrays)
    return (kernel if is_trusted else plain_form)(*arrays)


def with_plain_gradient(kernel: Callable[..., mx.array], plain_form: Callable[..., mx.array]) -> Any:
    """A function of arrays that runs a kernel forwards, and backwards the gradient of the plain form it equals."""
    function = mx.custom_function(kernel)

    @function.vjp
    def gradient(primals: Any, cotangent: mx.array, _: Any) -> Any:
        return tuple(mx.vjp(plain_form, list(primals), [cotangent])[1])

    return function


@cache
def _depthwise_layer_norm_kernel(eps: float) -> Any:
    def kernel(x: mx.array, weight: mx.array, bias: mx.array, norm_weight: mx.array, norm_bias: mx.array) -> mx.array:
        return gpu.depthwise_layer_norm(x, gpu.tap_major(weight), bias, norm_weight, norm_bias, eps)

    return with_plain_gradient(kernel, partial(plain.depthwise_layer_norm, eps=eps))


def _gelu_grn(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    hidden = x.reshape(x.shape[0], -1, x.shape[-1])  # (N, H, W, D) -> (N, H * W, D)
    scale = gpu.grn_scale(gpu.sum_of_squares_of_gelu(hidden), weight.reshape(-1))
    return gpu.gelu_scaled(hidden, scale).reshape(x.shape) + bias  # (N, H * W, D) -> (N, H, W, D)


_gelu_grn_kernel = with_plain_gradient(_gelu_grn, plain.gelu_grn)
