"""The proof of the kernels can fail: faults of every kind, planted in their text, are found."""

from __future__ import annotations

import re
from dataclasses import replace

import mlx.core as mx
import numpy as np
import proof
import pytest
from proof import nvrtc

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


@pytest.mark.parametrize(
    ("call", "old", "new", "found"),
    [
        pytest.param("depthwise", "x >= 0 && x < width", "x < width", "AddressSanitizer", id="read-before-the-image"),
        pytest.param("depthwise", "y >= 0 && y < height", "y >= 0", "AddressSanitizer", id="read-past-the-image"),
        pytest.param(
            "gelu", "if (int(channel) >= channels)", "if (false)", "AddressSanitizer", id="write-past-the-end"
        ),
        pytest.param("gelu", "strip + 1, strips)", "strip + 2, strips)", "", id="overlapping-strips"),
        pytest.param(
            "depthwise",
            "  wait_for_threadgroup();\n",
            "",
            "no barrier|before it is written",
            id="missing-barrier",
        ),
        pytest.param(
            "depthwise",
            "if (thread_index % LANES == 0)",
            "if (thread_index == 0)",
            "before it is written",
            id="unwritten-sums",
        ),
        pytest.param(
            "depthwise", "if (thread_index % LANES == 0)", "if (true)", "no barrier", id="threads-write-one-place"
        ),
        pytest.param(
            "grn_scale",
            "sums[uint(i) * MOST_SIMDGROUPS + simdgroup] = sum",
            "sums[uint(i) * MOST_SIMDGROUPS + simdgroup + 8] = sum",
            "out of bounds",
            id="past-threadgroup-memory",
        ),
        pytest.param(
            "depthwise",
            "  wait_for_threadgroup();\n",
            "  if (thread_index != 3) wait_for_threadgroup();\n",
            "others do not reach|before it is written|no barrier",
            id="barrier-not-reached-by-all",
        ),
        pytest.param(
            "depthwise",
            "if (channel < channels) {\n      depth",
            "if (channel < 3) {\n      return; depth",
            "others do not reach",
            id="early-return",
        ),
        pytest.param("gelu", "exponential(-0.5f", "std::exp(-0.5f", "std", id="a-name-of-c++"),
        pytest.param("gelu", "exponential(-0.5f", "expf(-0.5f", "expf", id="a-name-of-c"),
        pytest.param("gelu", "const float u =", "const double u =", "DOUBLE_IS_NOT", id="a-type-that-metal-lacks"),
        pytest.param(
            "gelu", "multiply_add(0.35f", "multiply_add(0.35", "conversion|Wdouble|float", id="a-double-literal"
        ),
        pytest.param("gelu", "const int end =", "const short end =", "conversion", id="a-narrowing"),
        pytest.param("gelu", "int length = (pixels", "int length = 2147483647 + (pixels", "overflow", id="overflow"),
    ],
)
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
    launch, inputs = planted("gelu", "output[place] = value;", "if (channel != 7) output[place] = value;")
    output, _ = proof.execute(launch, inputs)
    assert np.isnan(np.array(output)[..., 7]).all()
    assert np.isfinite(np.array(output)[..., :7]).all()


def test_a_result_that_depends_on_the_order_of_threads_shows() -> None:
    """A race in device memory, which no barrier guards: threads add to one number."""
    racing = "sums[0] = float(channel) + (channel == 0 ? 0.0f : 0.0f); sums[(size_t(image)"
    launch, inputs = planted("gelu", "sums[(size_t(image)", racing)
    results = {proof.execute(launch, inputs, seed)[1].reshape(-1)[0].item() for seed in range(4)}
    assert len(results) > 1


@pytest.mark.parametrize("call", CALLS)
def test_the_metal_dialect_compiles(call: str) -> None:
    """The text word for word, against declarations of what Metal has."""
    function, inputs = CALLS[call]
    (launch,) = proof.launches(function, *inputs)
    proof.check_metal_syntax(launch.text)
    for old, new in (("metal::fma(", "metal::fmadd("), ("simd_sum(value)", "simd_total(value)")):
        with pytest.raises(proof.FaultError):
            proof.check_metal_syntax(launch.text.replace(old, new))


def test_references_and_constants_name_their_address_space() -> None:
    """Metal wants one on every array reference, pointer and constant outside of functions; C++ has none."""
    source = gpu.source("metal", tuple(dict.fromkeys(gpu.DEPTHWISE_HEADERS + gpu.GELU_HEADERS + gpu.GRN_HEADERS)))
    assert len(re.findall(r"LOCAL float \(&", source)) == source.count("(&") > 0
    assert not re.search(r"\w\s*\*\s*\w+\s*[,)]\s*\{?$", source, re.MULTILINE)
    assert not re.search(r"^(static )?(const|constexpr) ", source, re.MULTILINE)


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
