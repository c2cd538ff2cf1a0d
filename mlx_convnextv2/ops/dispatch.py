"""The hot operations of the block, each computed by the path that `choose` names.

Plain MLX is in `plain`; `gpu` and `gpu_backward` have kernels of our own for Metal and CUDA. Where the path is
"numpy", `inference` computes whole models; single operations, which training needs, are in the files `numpy_*`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import mlx.core as mx

from ..runtime.mlx_blas import warn_if_late
from . import gpu, plain, trainable

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
    - on a CPU under Linux "numpy", where MLX's own operations are scalar: whole models in inference, single
      operations elsewhere, but for what is traced and so has no values yet, which is plain;
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
    path = choose(x.dtype, x.shape[-1])
    if path == "kernel":
        return _by_kernel("depthwise_layer_norm", trainable.depthwise_layer_norm_by_kernel(eps), plain_form, *arrays)
    if path == "numpy" and _have_values(*arrays):
        return trainable.depthwise_layer_norm_in_numpy(eps)(*arrays)[0]
    return plain_form(*arrays)


def gelu_grn(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """`plain.gelu_grn`, by the path that `choose` names. Differentiable on every path."""
    path = choose(x.dtype, x.shape[-1] // 4)
    if path == "kernel":
        return _by_kernel("gelu_grn", trainable.gelu_grn_by_kernel, plain.gelu_grn, x, weight, bias)
    if path == "numpy" and _have_values(x, weight, bias):
        return trainable.gelu_grn_in_numpy(x, weight, bias)[0]
    return plain.gelu_grn(x, weight, bias)


def linear(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """`plain.linear`, in numpy where `choose` names that. Differentiable on every path."""
    if choose(x.dtype, x.shape[-1]) == "numpy" and _have_values(x, weight, bias):
        return trainable.linear_in_numpy(x, weight, bias)[0]
    warn_if_late()  # of a slow BLAS
    return plain.linear(x, weight, bias)


def patch_conv2d(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """`plain.patch_conv2d`, in numpy where `choose` names that. Differentiable on every path."""
    if choose(x.dtype, x.shape[-1]) != "numpy" or not _have_values(x, weight, bias):
        return plain.patch_conv2d(x, weight, bias)
    outputs, height, width, channels = weight.shape
    rows, columns = x.shape[1] // height, x.shape[2] // width
    patches = x[:, : rows * height, : columns * width].reshape(len(x), rows, height, columns, width, channels)
    patches = patches.swapaxes(2, 3).reshape(len(x), rows, columns, height * width * channels)
    return linear(patches, weight.reshape(outputs, -1), bias)


def _by_kernel(name: str, kernel: Any, plain_form: Callable[..., mx.array], *arrays: mx.array) -> mx.array:
    """By the kernel, or by its plain form where nobody asked for kernels and this one is wrong on this device."""
    from . import trust  # here, where it is needed

    def by_kernel(*arrays: mx.array) -> mx.array:
        return kernel(*arrays)[0]

    is_trusted = asked() is not None or trust.is_right(name, by_kernel, plain_form, arrays)
    return (by_kernel if is_trusted else plain_form)(*arrays)


def _have_values(*arrays: mx.array) -> bool:
    """Whether numpy can compute with these now: not while a function is traced, when arrays have no values yet.

    So `mx.compile`, `mx.vmap` and exports get plain MLX, which an exported graph can hold.
    """
    if any(array.dtype not in _KERNEL_DTYPES or array.size == 0 for array in arrays):
        return False
    try:
        mx.eval(*arrays)
    except ValueError:
        return False
    return True
