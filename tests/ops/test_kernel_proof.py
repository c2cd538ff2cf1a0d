"""The proof of the kernels can fail: faults of every kind, planted in their text, are found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import metadata

import mlx.core as mx
import numpy as np
import proof
import pytest
from conftest import ROOT
from proof import nvrtc, opencl
from test_kernels import check_depthwise, check_gelu_grn

from mlx_convnextv2.ops import gpu


@pytest.fixture(autouse=True)
def _compiler() -> None:
    proof.require_compiler()


def random(*shape: int) -> mx.array:
    return mx.array(np.random.RandomState(sum(shape)).standard_normal(shape).astype(np.float32))


DEPTHWISE = (random(1, 5, 6, 40), random(7, 7, 40), *(random(40) for _ in range(3)), mx.array([1e-6]), random(40))
GELU = (random(1, 20, 40),)
GRN = (random(1, 3, 40), random(40))


def depthwise(x, taps, bias, norm_weight, norm_bias, eps, residual_bias):
    return gpu.depthwise_layer_norm_residual(x, taps, bias, norm_weight, norm_bias, 1e-6, residual_bias)


CALLS = {
    "depthwise": (depthwise, DEPTHWISE),
    "gelu": (gpu.gelu_sum_of_squares, GELU),
    "grn_scale": (gpu.grn_scale, GRN),
}


def planted(call: str, old: str, new: str) -> tuple[proof.Launch, tuple[mx.array, ...]]:
    """A launch with a fault in its text, and its inputs."""
    function, inputs = CALLS[call]
    (launch,) = proof.launches(function, *inputs)
    assert old in launch.text
    return replace(launch, text=launch.text.replace(old, new)), inputs


# The call, a piece of its text, the fault in its place, and what is said of it; nothing where the result differs.
FAULTS = {
    "read-before-the-image": ("depthwise", "value < 0 ? 0 : ", "", "AddressSanitizer"),
    "read-past-the-image": ("depthwise", "value < size ? value : size - 1", "value", "AddressSanitizer"),
    "the-nearest-value-is-taken": ("depthwise", "x >= 0 && x < width ? value", "x >= -1 && x < width ? value", ""),
    "write-past-the-end": ("gelu", "channel < channels ? first_pixel", "true ? first_pixel", "AddressSanitizer"),
    "overlapping-strips": ("gelu", "part + 1, strips", "part + 2, strips", ""),
    "missing-barrier": ("depthwise", "wait_for_threadgroup();\n", "", "no barrier|before it is written"),
    "unwritten-sums": (
        "depthwise",
        "if (lane < uint(COUNT))",
        "if (thread_index < uint(COUNT))",
        "before it is written",
    ),
    "threads-write-one-place": ("depthwise", "if (lane < uint(COUNT))", "if (true)", "no barrier|out of bounds"),
    "past-threadgroup-memory": (
        "grn_scale",
        "sums[thread_index / LANES * uint(COUNT) + lane] = own",
        "sums[thread_index / LANES * uint(COUNT) + lane + 8] = own",
        "out of bounds",
    ),
    "barrier-not-reached-by-all": (
        "depthwise",
        "wait_for_threadgroup();\n",
        "  if (thread_index != 3) wait_for_threadgroup();\n",
        "others do not reach|before it is written|no barrier",
    ),
    "early-return": (
        "depthwise",
        "if (channel < channels) {\ndepth",
        "if (channel < 3) {\n      return; depth",
        "others do not reach",
    ),
    "a-name-of-c++": ("gelu", "exponential(-0.5f", "std::exp(-0.5f", "std"),
    "a-name-of-c": ("gelu", "exponential(-0.5f", "expf(-0.5f", "expf"),
    "a-type-that-metal-lacks": ("gelu", "const float u =", "const double u =", "DOUBLE_IS_NOT"),
    "a-double-literal": ("gelu", "multiply_add(0.35f", "multiply_add(0.35", "conversion|Wdouble|float"),
    "a-narrowing": ("gelu", "const int end =", "const short end =", "conversion"),
    "overflow": ("gelu", "int length = (pixels", "int length = 2147483647 + (pixels", "overflow"),
}


@pytest.mark.parametrize(("call", "old", "new", "found"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(call: str, old: str, new: str, found: str) -> None:
    launch, inputs = planted(call, old, new)
    if found:
        with pytest.raises(proof.FaultError, match=found):
            proof.execute(launch, inputs)
        return
    outputs = proof.execute(launch, inputs)
    correct = proof.execute(proof.launches(CALLS[call][0], *inputs)[0], inputs)
    assert not all(mx.allclose(a, b) for a, b in zip(outputs, correct, strict=True))


def test_an_output_that_is_not_written_is_nan() -> None:
    launch, inputs = planted("gelu", "store(output, first,", "if (channel + v != 7) store(output, first,")
    output, _ = proof.execute(launch, inputs)
    assert np.isnan(np.array(output)[..., 7]).all()
    assert np.isfinite(np.array(output)[..., :7]).all()


def test_a_result_that_depends_on_the_order_of_threads_shows() -> None:
    """A race in device memory, which no barrier guards: threads add to one number."""
    racing = "sums[0] = float(channel) + (channel == 0 ? 0.0f : 0.0f); sums[(size_t(image)"
    launch, inputs = planted("gelu", "sums[(size_t(image)", racing)
    results = {proof.execute(launch, inputs, seed)[1].reshape(-1)[0].item() for seed in range(4)}
    assert len(results) > 1


# In every line of the Metal dialect, and in bodies what only address spaces show: the call, the fault, and what
# libclang says of it. Where it can say nothing, executing the text shows the fault.
DIALECT_FAULTS = {
    "LOCAL": ("depthwise", "#define LOCAL thread", "#define LOCAL", "values names no address space"),
    "CONSTANT": ("depthwise", "CONSTANT constant constexpr", "CONSTANT constexpr", "constant address"),
    "SHARED": ("depthwise", "threadgroup type name[count]", "thread type name[count]", "sums does not"),
    "UNROLL": ("depthwise", "unroll(full)", "unroll(whole)", "expected 'enable'"),
    "a-name-that-metal-lacks": ("depthwise", "metal::fma(", "metal::fmadd(", "fmadd"),
    "a-reference": ("depthwise", "LOCAL float (&values)", "float (&values)", "values names no"),
    "another-address-space": (
        "depthwise",
        "const uint lane",
        "const device float* p = values; const uint lane",
        "cannot initialize",
    ),
    "wait_for_threadgroup": ("depthwise", "threadgroup_barrier(metal::mem_flags::mem_threadgroup);", "", None),
    "mem_flags": ("depthwise", "mem_flags::mem_threadgroup", "mem_flags::mem_none", None),
    "sum": ("depthwise", "return metal::simd_sum(value)", "return 0.5f * metal::simd_sum(value)", None),
    "no-sum_of_lanes": ("depthwise", "metal::simd_sum(value)", "value", None),
    "multiply_add": ("depthwise", "metal::fma(a, b, c)", "metal::fma(c, b, a)", None),
    "inverse_square_root": ("depthwise", "precise::rsqrt", "precise::sqrt", None),
    "square_root": ("grn_scale", "precise::sqrt", "precise::rsqrt", None),
    "exponential": ("gelu", "return metal::precise::exp(value)", "return value", None),
    "magnitude": ("gelu", "metal::fabs(value)", "value", None),
    "larger": ("gelu", "metal::fmax(a, b)", "metal::fmax(b, b)", None),
}


def found_by(execute: Callable, launch: proof.Launch, right: proof.Launch, inputs: tuple[mx.array, ...]) -> bool:
    """Whether executing a launch fails, or differs from the right one."""
    try:
        outputs = execute(launch, inputs)
    except proof.FaultError:
        return True
    pairs = zip(outputs, proof.execute(right, inputs), strict=True)
    return not all(mx.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize(("call", "old", "new", "says"), DIALECT_FAULTS.values(), ids=DIALECT_FAULTS)
def test_a_fault_in_the_dialect_is_found(call: str, old: str, new: str, says: str | None) -> None:
    launch, inputs = planted(call, old, new)
    if says is None:
        assert found_by(proof.execute, launch, planted(call, old, old)[0], inputs)
        return
    if not opencl.can_read():
        pytest.skip("it needs libclang")
    with pytest.raises(proof.FaultError, match=says):
        opencl.read(launch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",  # PoCL's barriers are for all memory
    [name for name, fault in DIALECT_FAULTS.items() if not fault[3] and name != "mem_flags"],
)
def test_the_second_proof_finds_it_too(name: str) -> None:
    if opencl.missing():
        pytest.skip(opencl.missing())
    call, old, new, _ = DIALECT_FAULTS[name]
    launch, inputs = planted(call, old, new)
    assert found_by(opencl.execute, launch, planted(call, old, old)[0], inputs)


def test_libclang_reads_every_kernel_with_its_address_spaces() -> None:
    """The text word for word but for MLX's template line: every tile of the eight sizes, every dtype."""
    if not opencl.can_read():
        pytest.skip("it needs libclang")
    found = {}
    for dtype in (mx.float32, mx.float16, mx.bfloat16):
        for channels in (6, 40, 352, 704, 2816):
            vectors = [mx.zeros(channels, dtype) for _ in range(3)]
            taps, hidden = mx.zeros((7, 7, channels), dtype), mx.zeros((2, 49, 4 * channels), dtype)
            scale = mx.zeros((2, 4 * channels))
            for side in (56, 28, 14):
                x = mx.zeros((1, side, side, channels), dtype)
                for function, inputs in (
                    (gpu.depthwise_conv2d, (x, taps, vectors[0])),
                    (lambda *a: gpu.depthwise_layer_norm(*a, 1e-6), (x, taps, *vectors)),
                    (lambda *a: gpu.depthwise_layer_norm_residual(*a[:-1], 1e-6, a[-1]), (x, taps, *vectors, scale[0])),
                    (gpu.gelu_sum_of_squares, (hidden,)),
                    (gpu.sum_of_squares_of_gelu, (hidden,)),
                    (lambda h, w: gpu.grn_scale(gpu.sum_of_squares_of_gelu(h), w), (hidden, hidden[0, 0])),
                    (gpu.gelu_scaled, (hidden, scale)),
                ):
                    found.update({launch.text: launch for launch in proof.launches(function, *inputs)})
    assert len(found) > 60
    for launch in found.values():
        opencl.read(launch)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 6, 40), (1, 9, 3, 5), (1, 3, 7, 300), (3, 14, 14, 64)], ids=str)
def test_another_compiler_runs_the_kernels_in_real_work_groups(shape: tuple, dtype: mx.Dtype) -> None:
    if opencl.missing():
        pytest.skip(opencl.missing())
    batch, height, width, channels = shape

    def run() -> AbstractContextManager[None]:
        return proof.executed(by=opencl.execute)

    check_depthwise(shape, dtype, run)
    check_gelu_grn((batch, height * width, 4 * channels), dtype, run)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_the_cuda_dialect_compiles(call: str, dtype: mx.Dtype) -> None:
    """By NVIDIA's compiler, without a GPU."""
    if not nvrtc.is_installed():
        pytest.skip("it needs nvidia-cuda-nvrtc-cu12 and nvidia-cuda-runtime-cu12")
    function, inputs = CALLS[call]
    sums = inputs[:1] if call == "grn_scale" else ()  # float32 always
    (launch,) = proof.launches(function, *sums, *(array.astype(dtype) for array in inputs[len(sums) :]))
    text = nvrtc.cuda_text(launch)
    assert ".entry" in nvrtc.compile_to_ptx(text)
    with pytest.raises(proof.FaultError, match="undefined"):
        nvrtc.compile_to_ptx(text.replace("fmaf(a, b, c)", "fused(a, b, c)"))


@pytest.mark.slow
def test_the_counts_in_the_docs_are_the_scripts() -> None:
    """By the compiler that made them: another counts otherwise."""
    for name in ("nvrtc", "nvcc"):
        package = f"nvidia-cuda-{name}-cu12"
        if not any(d.name == package and d.version == "12.9.86" for d in metadata.distributions()):
            pytest.skip(f"it needs {package} 12.9.86")
    command = [sys.executable, next(ROOT.glob("*/kernel_counts.py"))]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    assert f"<!-- counts -->\n{output}\n<!-- end -->" in (ROOT / "docs" / "metal.md").read_text(encoding="utf-8")
