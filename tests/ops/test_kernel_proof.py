"""The proof of the kernels can fail: faults of every kind, planted in their text, are found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from importlib import metadata

import mlx.core as mx
import numpy as np
import proof
import pytest
from conftest import ROOT
from kernel_cases import (
    DTYPES,
    Shape,
    check_depthwise,
    check_gelu_grn,
    check_gradients,
    depthwise_arrays,
    depthwise_gradient,
    gelu_grn_arrays,
    gelu_grn_gradient,
    random,
)
from proof import nvrtc, opencl

from mlx_convnextv2.ops import gpu

Call = tuple[proof.Launch, tuple[mx.array, ...]]
KERNELS = {
    *("depthwise", "depthwise_layer_norm", "depthwise_layer_norm_residual"),
    *("gelu_sum_of_squares", "sum_of_squares_of_gelu", "grn_scale", "gelu_scaled"),
    *("depthwise_norm_gradient", "depthwise_weight_gradient", "gelu_grn_sums", "grn_gradient", "gelu_grn_gradient"),
}


@pytest.fixture(autouse=True)
def _compiler() -> None:
    proof.require_compiler()


@cache
def calls(shape: Shape = (2, 9, 9, 40), dtype: mx.Dtype = mx.float32) -> dict[str, Call]:
    """Every kernel by its name: a launch with its inputs, and random numbers for what other kernels computed."""
    found: dict[str, Call] = {}

    def record(launch: proof.Launch, inputs: tuple[mx.array, ...]) -> list[mx.array]:
        name = max((k for k in KERNELS if launch.name.startswith(f"custom_kernel_convnextv2_{k}_")), key=len)
        found.setdefault(name, (launch, inputs))
        return [mx.abs(random(*shape, dtype=dtype)) for shape, dtype in launch.outputs]

    x, weight, bias, norm_weight, norm_bias = depthwise_arrays(shape, dtype)
    taps, residual_bias, cotangent = gpu.tap_major(weight), random(shape[-1]), random(*shape, dtype=dtype, seed=9)
    hidden = random(shape[0], 20, shape[-1], dtype=dtype)
    with proof.executed(by=record):
        gpu.depthwise_conv2d(x, taps, bias)
        gpu.depthwise_layer_norm(x, taps, bias, norm_weight, norm_bias, 1e-6)
        gpu.depthwise_layer_norm_residual(x, taps, bias, norm_weight, norm_bias, 1e-6, residual_bias)
        gpu.gelu_scaled(hidden, gpu.grn_scale(gpu.gelu_sum_of_squares(hidden)[1], bias))
        depthwise_gradient(x, weight, bias, norm_weight, norm_bias, cotangent)
        x, weight, bias = gelu_grn_arrays(shape, dtype)
        gelu_grn_gradient(x, weight, bias, cotangent)
    assert found.keys() == KERNELS
    return found


def found_by(execute: Callable[..., list[mx.array]], kernel: str, old: str, new: str, says: str = "") -> bool:
    """Whether executing a kernel with a fault in its text fails with these words, or differs from the right one."""
    launch, inputs = calls()[kernel]
    assert old in launch.text
    faulty = replace(launch, text=launch.text.replace(old, new))
    if says:
        with pytest.raises(proof.FaultError, match=says):
            execute(faulty, inputs)
        return True
    pairs = zip(execute(faulty, inputs), proof.execute(launch, inputs), strict=True)
    return not all(mx.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)


BARRIER = "wait_for_threadgroup();\n"
NORM, GELU, GRN = "depthwise_layer_norm_residual", "gelu_sum_of_squares", "grn_scale"
ONE_LANE = "if (lane < uint(COUNT))"
OWN_SUM = "sums[thread_index / LANES * uint(COUNT) + lane"
ADDRESS = "AddressSanitizer"
# The kernel, a piece of its text, the fault in its place, and what is said of it: nothing where the numbers differ.
FAULTS = {  # one of each kind
    "read before the image": (NORM, "value < 0 ? 0 : ", "", ADDRESS),
    "overlapping strips": (GELU, "part + 1, strips", "part + 2, strips", ""),
    "missing barrier": (NORM, BARRIER, "", "no barrier|before it is written"),
    "unwritten sums": (NORM, ONE_LANE, "if (thread_index < uint(COUNT))", "before it is written"),
    "past threadgroup memory": (GRN, f"{OWN_SUM}] = own", f"{OWN_SUM} + 8] = own", "out of bounds"),
    "early return": (NORM, "if (channel < channels) {\ndepth", "if (channel < 3) {\n return; depth", "do not reach"),
    "a name of C++": (GELU, "exponential(-0.5f", "std::exp(-0.5f", "std"),
    "a type that Metal lacks": (GELU, "const float u =", "const double u =", "DOUBLE_IS_NOT"),
    "a double literal": (GELU, "multiply_add(0.35f", "multiply_add(0.35", "conversion|Wdouble|float"),
    "overflow": (GELU, "int length = (pixels", "int length = 2147483647 + (pixels", "overflow"),
    "norm gradient": ("depthwise_norm_gradient", "product_mean, square_sums", "product_mean, sums", "no barrier"),
    "weight gradient": ("depthwise_weight_gradient", "int(channel) >= channels", "false", ADDRESS),
    "sums": ("gelu_grn_sums", "pixel + i < end ? gradients[i][v] : 0.0f", "gradients[i][v]", ""),
    "GRN's gradient": ("grn_gradient", "own[1] / mean", "own[1] * mean", ""),
    "gradient": ("gelu_grn_gradient", "value * through_factor[v]", "value + through_factor[v]", ""),
}
MORE_FAULTS = [
    (NORM, "value < size ? value : size - 1", "value", ADDRESS),
    (NORM, "x >= 0 && x < width ? value", "x >= -1 && x < width ? value", ""),
    (GELU, "channel < channels ? first_pixel", "true ? first_pixel", ADDRESS),
    (NORM, ONE_LANE, "if (true)", "no barrier|out of bounds"),
    (NORM, BARRIER, f"if (thread_index != 3) {BARRIER}", "others do not reach|before it is written|no barrier"),
    (GELU, "exponential(-0.5f", "expf(-0.5f", "expf"),
    (GELU, "const int end =", "const short end =", "conversion"),
    ("depthwise_norm_gradient", "value < size ? value : size - 1", "value", ADDRESS),
    ("depthwise_norm_gradient", "y < height && x < width ? loaded", "true ? loaded", ""),
    ("depthwise_norm_gradient", "- gradient_mean[pixel]", "", ""),
    ("depthwise_norm_gradient", "product_mean[pixel], gradients", "0.0f, gradients", ""),
    ("depthwise_norm_gradient", "size_t(tile)) * 2;", "size_t(tile)) * 3;", ADDRESS),
    ("depthwise_norm_gradient", BARRIER, "", "no barrier|before it is written"),
    ("depthwise_weight_gradient", "seen >= 0 && seen < height", "seen >= 0", ADDRESS),
    ("depthwise_weight_gradient", "= x < width ? value : 0.0f;", "= value;", ""),
    ("depthwise_weight_gradient", "x >= 0 && x < width ? value", "true ? value", ""),
    ("depthwise_weight_gradient", "const int end = (int(part) + 1)", "const int end = (int(part) + 2)", ""),
    ("depthwise_weight_gradient", "line[column + tap], gradient", "line[column], gradient", ""),
    ("gelu_grn_sums", BARRIER, "", "no barrier|before it is written"),
    ("gelu_grn_sums", "other_parts[thread_index / LANES", "parts[thread_index / LANES", "before it is written"),
    ("grn_gradient", "own[0] + 1e-6f", "own[0] + 1e-1f", ""),
    ("grn_gradient", "square > 1.1754944e-38f ? 1.0f / norm : 0.0f", "1.0f", ""),
    ("gelu_grn_gradient", "x < 0.0f ? tail : 1.0f - tail", "tail", ""),
    ("gelu_grn_gradient", "channel >= channels", "false", ADDRESS),
]


@pytest.mark.parametrize(
    "fault", [*FAULTS.values(), *(pytest.param(fault, marks=pytest.mark.slow) for fault in MORE_FAULTS)]
)
def test_a_planted_fault_is_found(fault: tuple[str, str, str, str]) -> None:
    assert found_by(proof.execute, *fault)


def test_an_output_that_is_not_written_is_nan() -> None:
    launch, inputs = calls()[GELU]
    text = launch.text.replace("store(output, first,", "if (channel + v != 7) store(output, first,")
    output, _ = proof.execute(replace(launch, text=text), inputs)
    assert np.isnan(np.array(output)[..., 7]).all()
    assert np.isfinite(np.array(output)[..., :7]).all()


def test_a_result_that_depends_on_the_order_of_threads_shows() -> None:
    """A race in device memory, which no barrier guards: threads add to one number."""
    racing = "sums[0] = float(channel) + (channel == 0 ? 0.0f : 0.0f); sums[(size_t(image)"
    launch, inputs = calls()[GELU]
    launch = replace(launch, text=launch.text.replace("sums[(size_t(image)", racing))
    results = {proof.execute(launch, inputs, seed)[1].reshape(-1)[0].item() for seed in range(4)}
    assert len(results) > 1


# In every line of the Metal dialect, and in bodies what only address spaces show: what libclang says of the fault.
SAID_FAULTS = {
    "LOCAL": (NORM, "#define LOCAL thread", "#define LOCAL", "values names no address space"),
    "CONSTANT": (NORM, "CONSTANT constant constexpr", "CONSTANT constexpr", "constant address"),
    "SHARED": (NORM, "threadgroup type name[count]", "thread type name[count]", "sums does not"),
    "UNROLL": (NORM, "unroll(full)", "unroll(whole)", "expected 'enable'"),
    "a name that Metal lacks": (NORM, "metal::fma(", "metal::fmadd(", "fmadd"),
    "a reference": (NORM, "LOCAL float (&values)", "float (&values)", "values names no"),
    "another address space": (NORM, "const uint lane", "const device float* p = values; const uint lane", "initialize"),
    "shared by a gradient": (
        "depthwise_norm_gradient",
        "threadgroup type name[count]",
        "thread type name[count]",
        "sums does not",
    ),
    "a gradient's reference": ("gelu_grn_gradient", "LOCAL float& derivative", "float& derivative", "derivative"),
    "a gradient's constant": (
        "depthwise_weight_gradient",
        "CONSTANT constant constexpr",
        "CONSTANT constexpr",
        "constant address",
    ),
}
# Where it can say nothing, executing the text shows the fault.
EXECUTED_FAULTS = {
    "wait_for_threadgroup": (NORM, "threadgroup_barrier(metal::mem_flags::mem_threadgroup);", "", "barrier|written"),
    "mem_flags": (NORM, "mem_flags::mem_threadgroup", "mem_flags::mem_none", "leaves threadgroup memory out"),
    "sum": (NORM, "return metal::simd_sum(value)", "return 0.5f * metal::simd_sum(value)", ""),
    "no sum_of_lanes": (NORM, "metal::simd_sum(value)", "value", ""),
    "multiply_add": (NORM, "metal::fma(a, b, c)", "metal::fma(c, b, a)", ""),
    "inverse_square_root": (NORM, "precise::rsqrt", "precise::sqrt", ""),
    "square_root": (GRN, "precise::sqrt", "precise::rsqrt", ""),
    "exponential": (GELU, "return metal::precise::exp(value)", "return value", ""),
    "magnitude": (GELU, "metal::fabs(value)", "value", ""),
    "larger": (GELU, "metal::fmax(a, b)", "metal::fmax(b, b)", ""),
}


@pytest.mark.parametrize(("kernel", "old", "new", "says"), SAID_FAULTS.values(), ids=SAID_FAULTS)
def test_a_fault_in_the_dialect_is_read(kernel: str, old: str, new: str, says: str) -> None:
    if not opencl.can_read():
        pytest.skip("it needs libclang")
    launch, _ = calls()[kernel]
    assert old in launch.text
    with pytest.raises(proof.FaultError, match=says):
        opencl.read(replace(launch, text=launch.text.replace(old, new)))


@pytest.mark.parametrize(
    "name",
    [name if name == "mem_flags" else pytest.param(name, marks=pytest.mark.slow) for name in EXECUTED_FAULTS],
)
def test_a_fault_in_the_dialect_is_found_by_both_proofs(name: str) -> None:
    kernel, old, new, says = EXECUTED_FAULTS[name]
    assert found_by(proof.execute, kernel, old, new, says)
    if name != "mem_flags" and not opencl.missing():  # PoCL's barriers are for all memory
        assert found_by(opencl.execute, kernel, old, new)


@pytest.mark.parametrize(
    "dtype", [mx.bfloat16, *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES[:2])], ids=str
)
def test_libclang_reads_every_kernel_with_its_address_spaces(dtype: mx.Dtype) -> None:
    """The text word for word but for MLX's template line: every tile of the eight sizes."""
    if not opencl.can_read():
        pytest.skip("it needs libclang")
    shapes = [(1, side, side, channels) for side in (28, 7) for channels in (6, 40, 352, 704, 2816)]
    texts = {launch.text: launch for shape in shapes for launch, _ in calls(shape, dtype).values()}
    assert len(texts) > 30
    for launch in texts.values():
        opencl.read(launch)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 6, 40), (1, 9, 3, 5), (1, 3, 7, 300)], ids=str)
def test_another_compiler_runs_the_kernels_in_real_work_groups(shape: Shape, dtype: mx.Dtype) -> None:
    if opencl.missing():
        pytest.skip(opencl.missing())

    def run() -> AbstractContextManager[None]:
        return proof.executed(by=opencl.execute)

    batch, height, width, channels = shape
    check_depthwise(shape, dtype, run)
    check_gelu_grn((batch, height * width, 4 * channels), dtype, run)
    check_gradients(shape, dtype, run)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_the_cuda_dialect_compiles(kernel: str, dtype: mx.Dtype) -> None:
    """By NVIDIA's compiler, without a GPU."""
    if not nvrtc.is_installed():
        pytest.skip("it needs nvidia-cuda-nvrtc-cu12 and nvidia-cuda-runtime-cu12")
    text = nvrtc.cuda_text(calls((1, 5, 6, 40), dtype)[kernel][0])
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
    command = [sys.executable, str(ROOT / "figures" / "kernel_counts.py")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    assert f"<!-- counts -->\n{output}\n<!-- end -->" in (ROOT / "docs" / "metal.md").read_text(encoding="utf-8")
