"""The hot operations of the block, each computed by the path that `choose` names.

Plain MLX is in `plain`; our own kernels for Metal and CUDA are in `gpu` and `gpu_backward`. On the path "numpy",
`inference` computes whole models, and the files `numpy_*` compute the single operations that training needs.
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

PATHS = ("auto", "plain", "kernel", "numpy", "onnxruntime")
_KERNEL_DTYPES = (mx.float32, mx.float16, mx.bfloat16)


_wanted: ContextVar[str | None] = ContextVar("wanted", default=None)


@contextmanager
def path(name: str | None) -> Iterator[None]:
    """In this context and thread the operations take the named path; None leaves the choice open."""
    token = _wanted.set(name)
    try:
        yield
    finally:
        _wanted.reset(token)


def asked(path: str | None = None) -> str | None:
    """The path set by the argument, the context or the environment (see `choose`), or None.

    Raises:
        ValueError: there is no such path.
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
    """The path for a block with this dtype and number of channels: "plain", "kernel" or "numpy".

    The argument decides, then the context of `path`, then the environment variable MLX_CONVNEXTV2_OPS, unless they
    are "auto". Otherwise the rule is:

    - "kernel" on a GPU, for float32, float16 and bfloat16 and at most `gpu.MOST_CHANNELS` channels;
    - "numpy" on a CPU under Linux, where MLX's own operations are scalar. Inference computes whole models this way,
      everything else single operations. Traced arrays have no values yet, so they take the plain form;
    - "plain" otherwise.

    On a GPU, MLX itself computes the matrix products, the strided convolutions and whatever runs once per stage: they
    move their operands only once.

    Raises:
        ValueError: there is no such path.
    """
    if wanted := asked(path):
        return "numpy" if wanted == "onnxruntime" else wanted  # it takes whole models alone, see `inference.fuse`
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
    """Run the kernel, or its plain form if the kernel is wrong on this device and nobody asked for kernels."""
    from . import trust

    def by_kernel(*arrays: mx.array) -> mx.array:
        return kernel(*arrays)[0]

    is_trusted = asked() is not None or trust.is_right(name, by_kernel, plain_form, arrays)
    return (by_kernel if is_trusted else plain_form)(*arrays)


def _have_values(*arrays: mx.array) -> bool:
    """Whether numpy can compute with these arrays now. While a function is traced, arrays have no values.

    So `mx.compile`, `mx.vmap` and exports get plain MLX, which an exported graph can hold.
    """
    if any(array.dtype not in _KERNEL_DTYPES or array.size == 0 for array in arrays):
        return False
    try:
        mx.eval(*arrays)
    except ValueError:
        return False
    return True
