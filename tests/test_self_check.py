"""What a Mac's owner runs to see whether the kernels are right and fast there."""

from __future__ import annotations

from unittest import mock

import mlx.core as mx
import proof
import pytest

from mlx_convnextv2 import ConvNextV2ForImageClassification, load
from mlx_convnextv2.classify import DEMO
from mlx_convnextv2.ops import gpu, self_check


@pytest.fixture(scope="module")
def demo() -> ConvNextV2ForImageClassification:
    return load(DEMO)[0]


def test_right_kernels_pass_for_every_shape_and_dtype_of_the_model(demo) -> None:
    proof.require_compiler()
    with proof.executed():
        checks = list(self_check.check_kernels(demo, 32))
    stages = len(demo.config.hidden_sizes)
    kernels = {check.kernel for check in checks}
    assert {"depthwise_layer_norm_residual", "gelu_sum_of_squares", "grn_scale", "gelu_scaled"} <= kernels
    assert len(checks) == stages * 3 * len(kernels)
    assert all(check.passed for check in checks)
    assert "WRONG" not in self_check.check_report(checks)


def test_a_wrong_kernel_is_named(demo) -> None:
    proof.require_compiler()
    scaled = gpu.gelu_scaled
    with proof.executed(), mock.patch.object(gpu, "gelu_scaled", lambda *inputs: scaled(*inputs) * 1.02):
        checks = list(self_check.check_kernels(demo, 32))
    assert {check.kernel for check in checks if not check.passed} == {"gelu_scaled"}
    report = self_check.check_report(checks)
    (line,) = [line for line in report.splitlines() if "WRONG" in line]
    assert line.split()[0] == "gelu_scaled"


def test_a_result_that_is_no_number_is_wrong(demo) -> None:
    check = self_check.Check("gelu_scaled", (1, 2, 2, 8), "float32", float("nan"))
    assert not check.passed
    assert "1 of 1 WRONG" in self_check.check_report([check])


@pytest.mark.slow  # mx.compile runs a C++ compiler on a CPU
def test_operations_are_timed_for_every_stage(demo) -> None:
    timings = list(self_check.time_operations(demo, 32, batch=2, dtype="float32", runs=2))
    assert len(timings) == 3 * len(demo.config.hidden_sizes)
    on_gpu = mx.default_device().type == mx.gpu
    assert all((timing.kernel is not None) == on_gpu for timing in timings)
    assert all(min(timing.plain, timing.compiled) > 0 for timing in timings)
    table = self_check.timing_report(timings).splitlines()
    assert len(table) == 1 + len(timings)
