"""Are the kernels right, and are they faster, on this device? For the shapes of one model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from . import choose, gpu, plain

if TYPE_CHECKING:
    from ..model import ConvNextV2ForImageClassification

Operation = Callable[[mx.array], mx.array]
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
# The largest difference from plain MLX in float32 that counts as equal, as a part of the largest magnitude.
TOLERANCES = {"float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Check:
    """One kernel on one shape: how far it is from plain MLX, as a part of the largest magnitude."""

    kernel: str
    shape: tuple[int, ...]
    dtype: str
    difference: float

    @property
    def passed(self) -> bool:
        return self.difference <= TOLERANCES[self.dtype]  # false for NaN


@dataclass(frozen=True)
class Timing:
    """One operation on one shape, in milliseconds: plain MLX, compiled by MLX, and our kernels (None without a GPU)."""

    operation: str
    shape: tuple[int, ...]
    plain: float
    compiled: float
    kernel: float | None
    chosen: str


def check_kernels(model: ConvNextV2ForImageClassification, image_size: int) -> Iterator[Check]:
    """Every kernel against plain MLX, for every stage of the model and every dtype, on the default device."""
    for shape in _stages(model, image_size):
        for name, dtype in DTYPES.items():
            results = {**_check_depthwise(shape, dtype), **_check_gelu_grn(shape, dtype)}
            for kernel, (result, expected) in results.items():
                scale = mx.abs(expected).max()
                difference = mx.abs(result.astype(mx.float32) - expected).max() / scale
                yield Check(kernel, shape, name, float(np.array(difference)))


def check_report(checks: list[Check]) -> str:
    """A line with a verdict for each kernel."""
    lines = []
    for kernel in dict.fromkeys(check.kernel for check in checks):
        own = [check for check in checks if check.kernel == kernel]
        failed = [check for check in own if not check.passed]
        worst = max(own, key=lambda check: _share(check))
        verdict = f"{len(failed)} of {len(own)} WRONG" if failed else f"{len(own)} right"
        lines.append(
            f"  {kernel:30} {verdict:16} at worst {_share(worst):.0%} of what {worst.dtype} allows, "
            f"at {' x '.join(map(str, worst.shape))}"
        )
    return "\n".join(lines)


def time_operations(
    model: ConvNextV2ForImageClassification, image_size: int, batch: int, dtype: str, runs: int = 10
) -> Iterator[Timing]:
    """The block of every stage and its fused parts, timed in alternation: medians of `runs` each."""
    for _, height, width, channels in _stages(model, image_size):
        yield from _time_stage((batch, height, width, channels), dtype, runs)


def _time_stage(shape: tuple[int, int, int, int], dtype: str, runs: int) -> Iterator[Timing]:
    from ..config import ConvNextV2Config
    from ..inference import FoldedBlock
    from ..model import ConvNextV2Layer

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
            lambda hidden: folded.project(hidden.reshape(batch, -1, 4 * channels), flat),
            hidden,
        ),
        "block": (lambda x: x + layer.branch(x, "plain"), folded, x),
    }
    on_gpu = mx.default_device().type == mx.gpu
    for operation, (plainly, by_kernel, inputs) in parts.items():
        contenders = [plainly, mx.compile(plainly), *([mx.compile(by_kernel)] if on_gpu else [])]
        plain_time, compiled, *kernel = _alternate(contenders, inputs, runs)
        chosen = choose(DTYPES[dtype], channels)
        yield Timing(operation, shape, plain_time, compiled, kernel[0] if kernel else None, chosen)


def timing_report(timings: list[Timing]) -> str:
    """A table: milliseconds, and how many times faster the kernels are than what MLX compiles."""
    lines = [f"  {'operation':30} {'shape':20} {'plain':>9} {'compiled':>9} {'kernel':>9} {'gain':>6}  auto takes"]
    for t in timings:
        shape = " x ".join(map(str, t.shape))
        kernel, gain = ("-", "-") if t.kernel is None else (f"{t.kernel:.3f}", f"{t.compiled / t.kernel:.2f}")
        lines.append(
            f"  {t.operation:30} {shape:20} {t.plain:9.3f} {t.compiled:9.3f} {kernel:>9} {gain:>6}  {t.chosen}"
        )
    return "\n".join(lines)


def _check_depthwise(shape: tuple[int, ...], dtype: mx.Dtype) -> dict[str, tuple[mx.array, mx.array]]:
    """By kernel, its result and the plain one in float32, of the same rounded inputs."""
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
    # The sums and factors are float32 whatever the dtype; their tolerance here is the dtype's.
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


def _stages(model: ConvNextV2ForImageClassification, image_size: int) -> Iterator[tuple[int, int, int, int]]:
    """For every stage with blocks, the shape of its features for one image."""
    height, width = (image_size // side for side in model.config.patch_shape)
    for i, stage in enumerate(model.convnextv2.encoder.stages):
        if stage.layers:
            channels = model.config.hidden_sizes[i]
            yield 1, max(height // 2**i, 1), max(width // 2**i, 1), channels


def _random(shape: tuple[int, ...], dtype: mx.Dtype, key: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(key)).astype(dtype)


def _alternate(operations: list[Operation], inputs: mx.array, runs: int) -> list[float]:
    """The median milliseconds of each operation, called in turns after one call that does not count."""
    for operation in operations:
        mx.eval(operation(inputs))
    times: list[list[float]] = [[] for _ in operations]
    for _ in range(runs):
        for operation, own in zip(operations, times, strict=True):
            start = time.perf_counter()
            mx.eval(operation(inputs))
            own.append((time.perf_counter() - start) * 1e3)
    return [median(own) for own in times]


def _share(check: Check) -> float:
    """The difference as a part of what is allowed; NaN counts as the worst."""
    share = check.difference / TOLERANCES[check.dtype]
    return share if share == share else float("inf")
