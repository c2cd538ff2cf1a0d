"""What a Mac's owner runs to see whether the kernels are right and fast there."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import proof
import pytest

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, benchmark, load, save
from mlx_convnextv2.benchmarking import kernels, time_operations
from mlx_convnextv2.benchmarking.findings import KernelCheck
from mlx_convnextv2.benchmarking.report import Report
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.ops import gpu


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    proof.require_compiler()
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "the proof"})


@pytest.fixture(scope="module")
def one_block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ConvNextV2Config(hidden_sizes=[8], depths=[1], num_stages=1, image_size=16)
    folder = tmp_path_factory.mktemp("one") / "block"
    save(ConvNextV2ForImageClassification(config), folder)
    return folder


@pytest.mark.parametrize("wrong", [False, True])
def test_the_command_checks_every_kernel_and_names_a_wrong_one(
    wrong: bool, one_block: Path, on_gpu, monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernels, "DTYPES", {"float32": mx.float32})  # a compiler takes long for each
    if wrong:
        scaled = gpu.gelu_scaled
        monkeypatch.setattr(gpu, "gelu_scaled", lambda *inputs: scaled(*inputs) * 1.02)
    with proof.executed():
        status = benchmark.main(["self-check", "--model", str(one_block), "--json", str(tmp_path / "checks.json")])
    output = capsys.readouterr()
    checks = json.loads((tmp_path / "checks.json").read_text())["results"]
    names = {check["kernel"] for check in checks}
    assert {"depthwise_layer_norm_residual", "gelu_sum_of_squares", "grn_scale", "gelu_scaled"} <= names
    assert {"depthwise_norm_gradient", "depthwise_weight_gradient", "gelu_grn_gradient"} <= names
    assert {check["kernel"] for check in checks if not check["passed"]} == ({"gelu_scaled"} if wrong else set())
    assert "Kernels on the proof" in output.out
    assert [line.split()[0] for line in output.out.splitlines() if "WRONG" in line] == ["gelu_scaled"] * wrong
    said = "gelu_scaled is wrong on this device: set MLX_CONVNEXTV2_OPS=plain"
    assert (status, said in output.err) == (int(wrong), wrong)


@pytest.mark.slow
def test_right_kernels_pass_for_every_shape_and_dtype_of_a_model() -> None:
    proof.require_compiler()
    model, _ = load(DEMO)
    with proof.executed():
        checks = list(kernels.check_kernels(model, 32))
    assert len(checks) == len(model.config.depths) * 3 * len({check.kernel for check in checks})
    assert all(check.passed for check in checks)


def test_a_result_that_is_no_number_is_wrong() -> None:
    check = KernelCheck("gelu_scaled", (1, 2, 2, 8), "float32", float("nan"))
    assert not check.passed
    assert "1 of 1 WRONG" in str(Report("self-check", "digits", results=[check]))


@pytest.mark.skipif(mx.metal.is_available() or mx.cuda.is_available(), reason="MLX has a GPU here")
def test_without_a_gpu_the_command_says_so(capsys) -> None:
    assert benchmark.main(["self-check", "--model", str(DEMO)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "MLX has none here" in output.err


@pytest.mark.slow  # mx.compile runs a C++ compiler on a CPU
def test_operations_are_timed_for_every_stage() -> None:
    report = time_operations(model=str(DEMO), batch_size=[1, 2], runs=2)
    stages = len(load(DEMO)[0].config.depths)
    assert len(report.results) == 2 * 3 * stages
    on_gpu = mx.default_device().type == mx.gpu
    assert all((timing.kernel is not None) == on_gpu for timing in report.results)
    assert all(min(timing.plain, timing.compiled) > 0 for timing in report.results)
    assert len(str(report).splitlines()) == 2 * (2 + 3 * stages)  # two tables
