"""What a Mac's owner runs to see whether the kernels are right and fast there."""

from __future__ import annotations

import json
from unittest import mock

import mlx.core as mx
import proof
import pytest

from mlx_convnextv2 import ConvNextV2ForImageClassification, benchmark, load
from mlx_convnextv2.benchmarking import kernels, time_operations
from mlx_convnextv2.benchmarking.findings import KernelCheck
from mlx_convnextv2.benchmarking.report import Report
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.ops import gpu


@pytest.fixture(scope="module")
def demo() -> ConvNextV2ForImageClassification:
    return load(DEMO)[0]


def table(checks: list[KernelCheck]) -> str:
    return str(Report("self-check", "digits", results=checks))


def test_right_kernels_pass_for_every_shape_and_dtype_of_the_model(demo) -> None:
    proof.require_compiler()
    with proof.executed():
        checks = list(kernels.check_kernels(demo, 32))
    stages = len(demo.config.hidden_sizes)
    names = {check.kernel for check in checks}
    assert {"depthwise_layer_norm_residual", "gelu_sum_of_squares", "grn_scale", "gelu_scaled"} <= names
    assert {"depthwise_norm_gradient", "depthwise_weight_gradient", "gelu_grn_gradient"} <= names
    assert len(checks) == stages * 3 * len(names)
    assert all(check.passed for check in checks)
    assert "WRONG" not in table(checks)


def test_a_wrong_kernel_is_named(demo) -> None:
    proof.require_compiler()
    scaled = gpu.gelu_scaled
    with proof.executed(), mock.patch.object(gpu, "gelu_scaled", lambda *inputs: scaled(*inputs) * 1.02):
        checks = list(kernels.check_kernels(demo, 32))
    assert {check.kernel for check in checks if not check.passed} == {"gelu_scaled"}
    (line,) = [line for line in table(checks).splitlines() if "WRONG" in line]
    assert line.split()[0] == "gelu_scaled"


def test_a_result_that_is_no_number_is_wrong(demo) -> None:
    check = KernelCheck("gelu_scaled", (1, 2, 2, 8), "float32", float("nan"))
    assert not check.passed
    assert "1 of 1 WRONG" in table([check])


class TestCommand:
    @pytest.fixture(autouse=True)
    def _as_if_on_a_gpu(self, monkeypatch) -> None:
        proof.require_compiler()
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
        monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "the proof"})

    def test_right_kernels(self, capsys, tmp_path) -> None:
        with proof.executed():
            status = benchmark.main(["self-check", "--model", str(DEMO), "--json", str(tmp_path / "checks.json")])
        assert status == 0
        assert "Kernels on the proof" in capsys.readouterr().out
        assert all(check["passed"] for check in json.loads((tmp_path / "checks.json").read_text())["results"])

    def test_a_wrong_kernel(self, capsys, monkeypatch) -> None:
        scaled = gpu.gelu_scaled
        monkeypatch.setattr(gpu, "gelu_scaled", lambda *inputs: scaled(*inputs) * 1.02)
        with proof.executed():
            assert benchmark.main(["self-check", "--model", str(DEMO)]) == 1
        output = capsys.readouterr()
        assert "WRONG" in output.out
        assert "gelu_scaled is wrong on this device: set MLX_CONVNEXTV2_OPS=plain" in output.err


@pytest.mark.skipif(mx.metal.is_available() or mx.cuda.is_available(), reason="MLX has a GPU here")
def test_without_a_gpu_the_command_says_so(capsys) -> None:
    assert benchmark.main(["self-check", "--model", str(DEMO)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "MLX has none here" in output.err


@pytest.mark.slow  # mx.compile runs a C++ compiler on a CPU
def test_operations_are_timed_for_every_stage(demo) -> None:
    report = time_operations(model=str(DEMO), batch_size=[1, 2], runs=2)
    assert len(report.results) == 2 * 3 * len(demo.config.hidden_sizes)
    on_gpu = mx.default_device().type == mx.gpu
    assert all((timing.kernel is not None) == on_gpu for timing in report.results)
    assert all(min(timing.plain, timing.compiled) > 0 for timing in report.results)
    assert len(str(report).splitlines()) == 2 * (2 + 3 * len(demo.config.hidden_sizes))  # two tables
