"""The GPU kernels of the gradients against plain MLX's: executed by the proof, and with the marker gpu on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache

import mlx.core as mx
import numpy as np
import proof
import pytest
from conftest import SMALL
from hypothesis import given, settings, strategies as st
from mlx.utils import tree_flatten
from proof import nvrtc, opencl

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification
from mlx_convnextv2.ops import dispatch, gpu, gpu_backward, plain
from mlx_convnextv2.ops.tolerances import KERNEL

Call = tuple[proof.Launch, tuple[mx.array, ...], list[mx.array]]
KERNELS = (
    *("depthwise_norm_gradient", "depthwise_weight_gradient"),
    *("gelu_grn_sums", "grn_gradient", "gelu_grn_gradient"),
)
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
# A width of one, pixels that fill no tile, more channels than lanes or threads, many small images.
SHAPES = [(1, 1, 1, 5), (2, 1, 9, 33), (3, 9, 1, 31), (1, 2, 3, 257), (1, 5, 4, 513), (65, 2, 2, 8), (2, 9, 15, 40)]


@pytest.fixture(params=["proof", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """How kernels are run: a context to call them in."""
    if request.param == "proof":
        proof.require_compiler()
        yield proof.executed
        return
    if not (mx.metal.is_available() or mx.cuda.is_available()):
        pytest.skip("MLX has no GPU here")
    before = mx.default_device()
    mx.set_default_device(mx.gpu)
    yield contextlib.nullcontext
    mx.set_default_device(before)


def random(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0, spread: float = 1.0) -> mx.array:
    values = np.random.RandomState(seed + sum(shape)).standard_normal(shape) * spread
    return mx.array(values.astype(np.float32)).astype(dtype)


def depthwise_arrays(shape: tuple[int, int, int, int], dtype: mx.Dtype) -> list[mx.array]:
    weight = random(shape[-1], 7, 7, 1, dtype=dtype, seed=1, spread=0.2)
    return [random(*shape, dtype=dtype), weight, *(random(shape[-1], dtype=dtype, seed=seed) for seed in (2, 3, 4))]


def gelu_grn_arrays(shape: tuple[int, int, int, int], dtype: mx.Dtype) -> list[mx.array]:
    vectors = [random(1, 1, 1, shape[-1], dtype=dtype, seed=seed) for seed in (1, 2)]
    return [random(*shape, dtype=dtype, spread=2), *vectors]


def assert_close(result: mx.array, expected: mx.array, dtype: mx.Dtype, in_dtype: mx.array | None = None) -> None:
    """Within the dtype's tolerance of a float32 result, or as near to it as plain MLX in that dtype.

    Where the terms of a sum cancel, their own roundings are more than the sum's tolerance.
    """
    assert result.shape == expected.shape
    allowed = KERNEL[str(dtype).removeprefix("mlx.core.")] * mx.abs(expected).max().item()
    if in_dtype is not None:
        allowed = max(allowed, mx.abs(in_dtype.astype(mx.float32) - expected).max().item())
    difference = mx.abs(result.astype(mx.float32) - expected).max().item()
    assert difference <= allowed  # false for NaN


def check(function: Callable, plain_form: Callable, arrays: list[mx.array], run: Callable) -> None:
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


def depthwise_gradient(*arrays: mx.array) -> tuple[mx.array, ...]:
    return gpu_backward.depthwise_layer_norm_gradient(*arrays, eps=1e-6)


def plain_depthwise(*arrays: mx.array) -> mx.array:
    return plain.depthwise_layer_norm(*arrays, eps=1e-6)


def gelu_grn_gradient(x: mx.array, weight: mx.array, bias: mx.array, cotangent: mx.array) -> tuple[mx.array, ...]:
    squares = gpu.sum_of_squares_of_gelu(x.reshape(x.shape[0], -1, x.shape[-1]))
    return gpu_backward.gelu_grn_gradient(x, weight, squares, cotangent)


def check_depthwise(shape: tuple[int, int, int, int], dtype: mx.Dtype, run: Callable) -> None:
    check(depthwise_gradient, plain_depthwise, depthwise_arrays(shape, dtype), run)


def check_gelu_grn(shape: tuple[int, int, int, int], dtype: mx.Dtype, run: Callable) -> None:
    check(gelu_grn_gradient, plain.gelu_grn, gelu_grn_arrays(shape, dtype), run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestOddShapes:
    def test_depthwise(self, shape: tuple[int, int, int, int], dtype: mx.Dtype, device: Callable) -> None:
        check_depthwise(shape, dtype, device)

    def test_gelu_grn(self, shape: tuple[int, int, int, int], dtype: mx.Dtype, device: Callable) -> None:
        check_gelu_grn(shape, dtype, device)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(8, 300)),
    dtype=st.sampled_from(DTYPES),
)
def test_drawn_shapes(shape: tuple[int, int, int, int], dtype: mx.Dtype) -> None:
    proof.require_compiler()
    check_depthwise(shape, dtype, proof.executed)
    check_gelu_grn(shape, dtype, proof.executed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("side", "channels"), [(56, 40), (14, 384), (7, 768), (7, 2816)])
def test_stage_shapes(side: int, channels: int, dtype: mx.Dtype, device: Callable) -> None:
    """The sizes' stages with fewest and most channels, on their first rows."""
    rows = min(side, max(5, 4000 // (side * channels)))
    check_depthwise((1, rows, side, channels), dtype, device)
    check_gelu_grn((1, min(rows, 6), side, 4 * channels), dtype, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_operations_have_these_gradients(dtype: mx.Dtype, device: Callable, monkeypatch) -> None:
    """Through the functions that the model calls: every gradient in its argument's dtype."""
    monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "kernel")
    for ours, plain_form, make in (
        (lambda *arrays: dispatch.depthwise_layer_norm(*arrays, 1e-6), plain_depthwise, depthwise_arrays),
        (dispatch.gelu_grn, plain.gelu_grn, gelu_grn_arrays),
    ):
        arrays = make((2, 4, 5, 6), dtype)
        cotangent = random(2, 4, 5, 6, dtype=dtype, seed=9)
        exact = [array.astype(mx.float32) for array in arrays]
        expected = mx.vjp(plain_form, exact, [cotangent.astype(mx.float32)])[1]
        with device():
            gradients = mx.vjp(ours, arrays, [cotangent])[1]
            mx.eval(gradients)
        for array, gradient, reference in zip(arrays, gradients, expected, strict=True):
            assert gradient.dtype == array.dtype == dtype
            assert_close(gradient, reference, dtype)


def test_a_compiled_training_step_launches_them(monkeypatch) -> None:
    """As a training step on a GPU is compiled: traced here, where nothing can run."""
    monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "kernel")
    launched = []

    def launch(kernel: gpu.Kernel, *_: mx.array, outputs: list, **__: object) -> list[mx.array]:
        launched.append(kernel.name)
        return [mx.zeros(shape, dtype) for shape, dtype in outputs]

    monkeypatch.setattr(gpu.Kernel, "__call__", launch)
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=3)).train()

    def loss(parameters: dict, pixel_values: mx.array) -> mx.array:
        model.update(parameters)
        return model(pixel_values, labels=mx.array([0, 2])).loss

    gradients = mx.compile(mx.grad(loss))(model.parameters(), mx.zeros((2, 64, 64, 3)))
    shapes = [gradient.shape for _, gradient in tree_flatten(gradients)]
    assert shapes == [array.shape for _, array in tree_flatten(model.parameters())]
    assert {*KERNELS} <= {*launched}


def test_an_image_too_large_for_32_bits_is_plain(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "MOST_ELEMENTS", 10)
    check_depthwise((1, 4, 4, 3), mx.float32, contextlib.nullcontext)


def test_a_dead_channel_and_infinity(device: Callable) -> None:
    """A channel that is zero everywhere has a gradient; GELU's slope is 1 at infinity and 0 at minus a large number."""
    x, weight, bias = gelu_grn_arrays((1, 3, 4, 8), mx.float32)
    x[..., 2] = 0
    check(gelu_grn_gradient, plain.gelu_grn, [x, weight, bias], device)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 1e4, -1e4
    with device():
        gradient = gelu_grn_gradient(x, mx.zeros_like(weight), bias, mx.ones_like(x))[0]
        assert gradient[0, 0, 0, 0].item() == 1
        assert gradient[0, 0, 0, 1].item() == 0


def test_large_half_activations_do_not_overflow(device: Callable) -> None:
    x = mx.full((1, 10, 30, 8), 200.0, dtype=mx.float16)  # squares sum to 1.2e7
    ones = mx.ones((1, 1, 1, 8), dtype=mx.float16)
    with device():
        gradients = gelu_grn_gradient(x, ones, ones, mx.ones_like(x))
        assert all(mx.isfinite(gradient).all() for gradient in gradients)


def test_the_order_of_threads_shows_nowhere() -> None:
    proof.require_compiler()
    results = []
    for seed in range(3):
        with proof.executed(seed):
            arrays, cotangent = depthwise_arrays((2, 6, 5, 72), mx.float32), random(2, 6, 5, 72)
            gradients = depthwise_gradient(*arrays, cotangent)
            gradients += gelu_grn_gradient(*gelu_grn_arrays((2, 6, 5, 72), mx.float32), cotangent)
            results.append([np.array(gradient) for gradient in gradients])
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


@cache
def calls(shape: tuple[int, int, int, int], dtype: mx.Dtype = mx.float32) -> dict[str, Call]:
    """Every kernel of both gradients by its name: the launch, its inputs, and what it computes."""
    found = []

    def record(launch: proof.Launch, inputs: tuple[mx.array, ...]) -> list[mx.array]:
        outputs = proof.execute(launch, inputs)
        found.append((launch, inputs, outputs))
        return outputs

    cotangent = random(*shape, dtype=dtype, seed=9)
    with proof.executed(by=record):
        mx.eval(depthwise_gradient(*depthwise_arrays(shape, dtype), cotangent))
        mx.eval(gelu_grn_gradient(*gelu_grn_arrays(shape, dtype), cotangent))
    return {kernel: next(call for call in found if f"convnextv2_{kernel}_" in call[0].name) for kernel in KERNELS}


# The kernel, the fault, and what the proof says of it: nothing where only the numbers show it.
FAULTS = [
    ("depthwise_norm_gradient", "value < size ? value : size - 1", "value", "AddressSanitizer"),
    ("depthwise_norm_gradient", "y < height && x < width ? loaded", "true ? loaded", None),
    ("depthwise_norm_gradient", "- gradient_mean[pixel]", "", None),
    ("depthwise_norm_gradient", "product_mean[pixel], gradients", "0.0f, gradients", None),
    ("depthwise_norm_gradient", "product_mean, square_sums", "product_mean, sums", "no barrier"),
    ("depthwise_norm_gradient", "size_t(tile)) * 2;", "size_t(tile)) * 3;", "AddressSanitizer"),
    ("depthwise_norm_gradient", "wait_for_threadgroup();\n", "", "no barrier|before it is written"),
    ("depthwise_weight_gradient", "int(channel) >= channels", "false", "AddressSanitizer"),
    ("depthwise_weight_gradient", "seen >= 0 && seen < height", "seen >= 0", "AddressSanitizer"),
    ("depthwise_weight_gradient", "= x < width ? value : 0.0f;", "= value;", None),
    ("depthwise_weight_gradient", "x >= 0 && x < width ? value", "true ? value", None),
    ("depthwise_weight_gradient", "const int end = (int(part) + 1)", "const int end = (int(part) + 2)", None),
    ("depthwise_weight_gradient", "line[column + tap], gradient", "line[column], gradient", None),
    ("gelu_grn_sums", "pixel + i < end ? gradients[i][v] : 0.0f", "gradients[i][v]", None),
    ("gelu_grn_sums", "wait_for_threadgroup();\n", "", "no barrier|before it is written"),
    ("gelu_grn_sums", "other_parts[thread_index / LANES", "parts[thread_index / LANES", "before it is written"),
    ("grn_gradient", "own[1] / mean", "own[1] * mean", None),
    ("grn_gradient", "own[0] + 1e-6f", "own[0] + 1e-1f", None),
    ("grn_gradient", "square > 1.1754944e-38f ? 1.0f / norm : 0.0f", "1.0f", None),
    ("gelu_grn_gradient", "x < 0.0f ? tail : 1.0f - tail", "tail", None),
    ("gelu_grn_gradient", "channel >= channels", "false", "AddressSanitizer"),
    ("gelu_grn_gradient", "value * through_factor[v]", "value + through_factor[v]", None),
]


@pytest.mark.parametrize(("kernel", "old", "new", "says"), FAULTS)
def test_a_planted_fault_is_found(kernel: str, old: str, new: str, says: str | None) -> None:
    proof.require_compiler()
    launch, inputs, correct = calls((2, 9, 9, 40))[kernel]
    assert old in launch.text
    faulty = replace(launch, text=launch.text.replace(old, new))
    if says is not None:
        with pytest.raises(proof.FaultError, match=says):
            proof.execute(faulty, inputs)
        return
    outputs = proof.execute(faulty, inputs)
    assert not all(mx.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(outputs, correct, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_libclang_reads_every_kernel_with_its_address_spaces(dtype: mx.Dtype) -> None:
    if not opencl.can_read():
        pytest.skip("it needs libclang")
    for channels in (6, 40, 352, 704, 2816):
        for side in (28, 7):
            for launch in launches((1, side, side, channels), dtype):
                opencl.read(launch)


@pytest.mark.parametrize(
    ("kernel", "old", "new"),
    [
        ("depthwise_norm_gradient", "threadgroup type name[count]", "thread type name[count]"),
        ("gelu_grn_gradient", "LOCAL float& derivative", "float& derivative"),
        ("depthwise_weight_gradient", "CONSTANT constant constexpr", "CONSTANT constexpr"),
    ],
)
def test_a_fault_of_address_spaces_is_found(kernel: str, old: str, new: str) -> None:
    if not opencl.can_read():
        pytest.skip("it needs libclang")
    launch, _, _ = calls((2, 9, 9, 40))[kernel]
    assert old in launch.text
    with pytest.raises(proof.FaultError):
        opencl.read(replace(launch, text=launch.text.replace(old, new)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 6, 40), (1, 9, 3, 5), (1, 3, 7, 300)], ids=str)
def test_another_compiler_runs_the_kernels_in_real_work_groups(shape: tuple, dtype: mx.Dtype) -> None:
    if opencl.missing():
        pytest.skip(opencl.missing())

    def run() -> AbstractContextManager[None]:
        return proof.executed(by=opencl.execute)

    check_depthwise(shape, dtype, run)
    check_gelu_grn(shape, dtype, run)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_cuda_dialect_compiles(dtype: mx.Dtype) -> None:
    """By NVIDIA's compiler, without a GPU."""
    if not nvrtc.is_installed():
        pytest.skip("it needs nvidia-cuda-nvrtc-cu12 and nvidia-cuda-runtime-cu12")
    for launch in launches((1, 5, 6, 40), dtype):
        assert ".entry" in nvrtc.compile_to_ptx(nvrtc.cuda_text(launch))


def launches(shape: tuple[int, int, int, int], dtype: mx.Dtype) -> list[proof.Launch]:
    arrays = [*depthwise_arrays(shape, dtype), random(*shape, dtype=dtype)]
    found = proof.launches(depthwise_gradient, *arrays)
    found += proof.launches(gelu_grn_gradient, *gelu_grn_arrays(shape, dtype), random(*shape, dtype=dtype))
    assert {kernel for kernel in KERNELS if any(f"convnextv2_{kernel}_" in launch.name for launch in found)} == {
        *KERNELS
    }
    return found
