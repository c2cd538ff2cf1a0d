"""Check the kernels on this device, and time them, for the shapes of one model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median

import mlx.core as mx
import numpy as np

from ..inference.composition import plain_block
from ..inference.gpu_block import FoldedBlock
from ..model.config import ConvNextV2Config, as_pair
from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Layer
from ..ops import gpu, gpu_backward, plain
from ..ops.dispatch import choose
from .findings import KernelCheck, OperationTiming
from .peers import known
from .report import Report, Watch
from .workload import subject

Operation = Callable[[mx.array], mx.array]
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def self_check(
    *, model: str | None = None, size: str | None = None, image_size: int | None = None, watch: Watch | None = None
) -> Report[KernelCheck]:
    """Compare every kernel with plain MLX, for the shapes of a model and every dtype, with one image each.

    Args:
        model: a Hub id or a folder.
        size: a published size, "atto" to "huge", instead of a model.
        image_size: the side of the image in pixels; None takes the model's.
        watch: called with the findings (see `Report`).

    Raises:
        ValueError: MLX has no GPU here, which the kernels need; or both or neither of model and size are given.
        FileNotFoundError, OSError, ValueError: as `load`.
    """
    os.environ.setdefault("MLX_ENABLE_TF32", "0")  # the reference must be true float32
    if mx.default_device().type != mx.gpu:
        raise ValueError("the kernels run on a GPU, and MLX has none here: this check is for a Mac or CUDA")
    network, side = _network(model, size, image_size)
    device = str(mx.device_info()["device_name"])
    report: Report[KernelCheck] = Report(
        "self-check", str(size or model), image_size=(side, side), device=device, watch=watch
    )
    checks = list(check_kernels(network, side))
    report.add(*checks)
    for kernel in dict.fromkeys(check.kernel.strip() for check in checks if not check.passed):
        report.fail(f"{kernel} is wrong on this device: set MLX_CONVNEXTV2_OPS=plain, and please report it")
    return report


def time_operations(
    *,
    model: str | None = None,
    size: str | None = None,
    batch_size: Iterable[int] = (1,),
    dtype: Iterable[str] = ("float32",),
    image_size: int | None = None,
    runs: int = 10,
    watch: Watch | None = None,
) -> Report[OperationTiming]:
    """Time each operation of the block for each shape of a model: plain, compiled by MLX, and our kernels on a GPU.

    Args and errors: as `self_check`, but no GPU is needed; also
        batch_size: images at once.
        dtype: "float32", "float16" or "bfloat16".
        runs: how often each is timed, in alternation.
    """
    dtypes = known("dtype", dtype, DTYPES)
    network, side = _network(model, size, image_size)
    report: Report[OperationTiming] = Report("ops", str(size or model), runs, (side, side), watch=watch)
    for name in dtypes:
        for batch in dict.fromkeys(batch_size):
            report.add(*operation_timings(network, side, batch, name, runs))
    return report


def _network(
    model: str | None, size: str | None, image_size: int | None
) -> tuple[ConvNextV2ForImageClassification, int]:
    """The model that gives the shapes, and the side of its images."""
    network, _ = subject(model, size)
    return network, image_size or min(as_pair(network.config.image_size))


def check_kernels(model: ConvNextV2ForImageClassification, image_size: int) -> Iterator[KernelCheck]:
    """Every kernel against plain MLX, for every stage of the model and every dtype, on the default device."""
    for shape in _stages(model, image_size):
        for name, dtype in DTYPES.items():
            results = {**_check_depthwise(shape, dtype), **_check_gelu_grn(shape, dtype)}
            results |= {**_check_depthwise_gradient(shape, dtype), **_check_gelu_grn_gradient(shape, dtype)}
            for kernel, (result, expected) in results.items():
                scale = mx.abs(expected).max()
                difference = mx.abs(result.astype(mx.float32) - expected).max() / scale
                yield KernelCheck(kernel, shape, name, float(np.array(difference)))


def operation_timings(
    model: ConvNextV2ForImageClassification, image_size: int, batch: int, dtype: str, runs: int = 10
) -> Iterator[OperationTiming]:
    """The block of every stage and its fused parts, timed in alternation: medians of `runs` each."""
    for _, height, width, channels in _stages(model, image_size):
        yield from _time_stage((batch, height, width, channels), dtype, runs)


def _time_stage(shape: tuple[int, int, int, int], dtype: str, runs: int) -> Iterator[OperationTiming]:
    batch, height, width, channels = shape
    layer = ConvNextV2Layer(ConvNextV2Config(), channels)
    layer.set_dtype(DTYPES[dtype])
    mx.eval(layer.parameters())
    folded = FoldedBlock.of(layer)
    conv, norm, grn = layer.dwconv, layer.layernorm, layer.grn
    x = _random(shape, DTYPES[dtype], 0)
    hidden = _random((batch, height, width, 4 * channels), DTYPES[dtype], 1)
    flat = x.reshape(batch, -1, channels)

    parts: dict[str, tuple[Operation, Operation, mx.array]] = {
        "depthwise + bias + LayerNorm": (
            lambda x: plain.depthwise_layer_norm(x, conv.weight, conv.bias, norm.weight, norm.bias, norm.eps),
            lambda x: gpu.depthwise_layer_norm(x, folded.taps, conv.bias, norm.weight, norm.bias, norm.eps),
            x,
        ),
        "GELU + GRN + product": (
            lambda hidden: layer.pwconv2(plain.gelu_grn(hidden, grn.weight, grn.bias)),
            lambda hidden: folded.project(hidden.reshape(batch, -1, 4 * channels), flat, folded.rule(shape).gelu_grn),
            hidden,
        ),
        "block": (plain_block(layer), folded, x),
    }
    on_gpu = mx.default_device().type == mx.gpu
    for operation, (plainly, by_kernel, inputs) in parts.items():
        contenders = [plainly, mx.compile(plainly), *([mx.compile(by_kernel)] if on_gpu else [])]
        plain_time, compiled, *kernel = _alternate(contenders, inputs, runs)
        chosen = choose(DTYPES[dtype], channels)
        yield OperationTiming(operation, shape, dtype, plain_time, compiled, kernel[0] if kernel else None, chosen)


def _check_depthwise(shape: tuple[int, ...], dtype: mx.Dtype) -> dict[str, tuple[mx.array, mx.array]]:
    """For each kernel, its result and the plain float32 result from the same rounded inputs."""
    channels = shape[-1]
    x, weight = _random(shape, dtype, 0), _random((channels, 7, 7, 1), dtype, 1) * 0.2
    bias, norm_weight, norm_bias = (_random((channels,), dtype, key) for key in (2, 3, 4))
    residual_bias = _random((channels,), mx.float32, 5)
    exact = [array.astype(mx.float32) for array in (x, weight, bias, norm_weight, norm_bias)]
    convolved = mx.conv2d(exact[0], exact[1], padding=3, groups=channels) + exact[2]
    normed = mx.fast.layer_norm(convolved, exact[3], exact[4], 1e-6)
    taps = gpu.tap_major(weight)
    whole, residual = gpu.depthwise_layer_norm_residual(x, taps, bias, norm_weight, norm_bias, 1e-6, residual_bias)
    return {
        "depthwise_conv2d": (gpu.depthwise_conv2d(x, taps, bias), convolved),
        "depthwise_layer_norm": (gpu.depthwise_layer_norm(x, taps, bias, norm_weight, norm_bias, 1e-6), normed),
        "depthwise_layer_norm_residual": (whole, normed),
        "  its residual": (residual, exact[0] + residual_bias),
    }


def _check_gelu_grn(shape: tuple[int, ...], dtype: mx.Dtype) -> dict[str, tuple[mx.array, mx.array]]:
    batch, height, width, channels = shape
    hidden = _random((batch, height * width, 4 * channels), dtype, 6) * 2
    weight = _random((4 * channels,), dtype, 7)
    exact = hidden.astype(mx.float32)
    activations, sums = gpu.gelu_sum_of_squares(hidden)
    stored = mx.square(activations.astype(mx.float32)).sum(axis=1)
    # The sums and factors are always float32; their tolerance here is the dtype's.
    scale = gpu.grn_scale(sums, weight)
    norms = mx.sqrt(stored)
    expected_scale = 1 + weight.astype(mx.float32) * norms / (norms.mean(axis=-1, keepdims=True) + 1e-6)
    return {
        "gelu_sum_of_squares": (activations, plain.gelu(exact)),
        "  its sums": (sums.sum(axis=1), stored),
        "sum_of_squares_of_gelu": (gpu.sum_of_squares_of_gelu(hidden).sum(axis=1), stored),
        "grn_scale": (scale, expected_scale),
        "gelu_scaled": (gpu.gelu_scaled(hidden, scale), plain.gelu(exact) * expected_scale[:, None]),
    }


def _check_depthwise_gradient(shape: tuple[int, ...], dtype: mx.Dtype) -> dict[str, tuple[mx.array, mx.array]]:
    channels = shape[-1]
    arrays = [_random(shape, dtype, 0), _random((channels, 7, 7, 1), dtype, 1) * 0.2]
    arrays += [_random((channels,), dtype, key) for key in (2, 3, 4)]
    cotangent = _random(shape, dtype, 8)
    gradient: Callable[..., tuple[mx.array, ...]] = partial(gpu_backward.depthwise_layer_norm_gradient, eps=1e-6)
    ours = gradient(*arrays, cotangent)
    expected = _plain_gradients(partial(plain.depthwise_layer_norm, eps=1e-6), arrays, cotangent)
    of_x, of_weight, of_bias, of_norm_weight, of_norm_bias = zip(ours, expected, strict=True)
    return {
        "depthwise_norm_gradient": of_norm_weight,
        "  its bias": of_norm_bias,
        "  and the input's": of_x,
        "depthwise_weight_gradient": of_weight,
        "  and the bias": of_bias,
    }


def _check_gelu_grn_gradient(shape: tuple[int, ...], dtype: mx.Dtype) -> dict[str, tuple[mx.array, mx.array]]:
    batch, height, width, channels = shape
    hidden = _random((batch, height, width, 4 * channels), dtype, 6) * 2
    weight, bias = (_random((1, 1, 1, 4 * channels), dtype, key) for key in (7, 9))
    cotangent = _random(tuple(hidden.shape), dtype, 8)
    squares = gpu.sum_of_squares_of_gelu(hidden.reshape(batch, height * width, -1))
    ours = gpu_backward.gelu_grn_gradient(hidden, weight, squares, cotangent)
    expected = _plain_gradients(plain.gelu_grn, [hidden, weight, bias], cotangent)
    names = "gelu_grn_gradient", "grn_gradient", "gelu_grn_sums"
    return dict(zip(names, zip(ours, expected, strict=True), strict=True))


def _plain_gradients(function: Callable[..., mx.array], arrays: list[mx.array], cotangent: mx.array) -> list[mx.array]:
    """The gradients in float32, from the same rounded arrays."""
    return mx.vjp(function, [array.astype(mx.float32) for array in arrays], [cotangent.astype(mx.float32)])[1]


def _stages(model: ConvNextV2ForImageClassification, image_size: int) -> Iterator[tuple[int, int, int, int]]:
    """The shape of the features of every stage with blocks, for one image."""
    height, width = (image_size // side for side in model.config.patch_shape)
    for i, stage in enumerate(model.convnextv2.encoder.stages):
        if stage.layers:
            channels = model.config.hidden_sizes[i]
            yield 1, max(height // 2**i, 1), max(width // 2**i, 1), channels


def _random(shape: tuple[int, ...], dtype: mx.Dtype, key: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(key)).astype(dtype)


def _alternate(operations: list[Operation], inputs: mx.array, runs: int) -> list[float]:
    """The median milliseconds of each operation. They are called in turns, after one call that is not timed."""
    for operation in operations:
        mx.eval(operation(inputs))
    times: list[list[float]] = [[] for _ in operations]
    for _ in range(runs):
        for operation, own in zip(operations, times, strict=True):
            start = time.perf_counter()
            mx.eval(operation(inputs))
            own.append((time.perf_counter() - start) * 1e3)
    return [median(own) for own in times]
