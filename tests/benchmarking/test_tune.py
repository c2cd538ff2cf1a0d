"""What a user runs to have the fastest kernels found out ahead of the first use."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import pytest

from mlx_convnextv2 import benchmark, fuse, load
from mlx_convnextv2.benchmarking import tune
from mlx_convnextv2.benchmarking.findings import TunedOperation
from mlx_convnextv2.benchmarking.report import Report
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.inference.fuse import chosen_operations
from mlx_convnextv2.ops import gpu, trials

pytestmark = pytest.mark.usefixtures("nothing_tuned")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))


@pytest.mark.usefixtures("on_cpu")
def test_on_a_cpu_numpy_and_plain_mlx_are_measured_and_later_uses_know_it(monkeypatch, capsys, tmp_path) -> None:
    json_file = tmp_path / "tuned.json"
    arguments = ["tune", "--model", str(DEMO), "--batch-size", "1,2", "--json", str(json_file)]
    assert benchmark.main(arguments) == 0
    results = json.loads(json_file.read_text())["results"]
    assert [result["shape"] for result in results] == [[1, 32, 32, 3], [2, 32, 32, 3]]
    for result in results:
        times = result["milliseconds"]
        assert times.keys() == {"numpy", "plain"}
        assert times[result["chosen"]] <= min(times.values()) * (1 + trials.TIE)
    assert capsys.readouterr().out.count("computed by") == 2
    monkeypatch.setenv("MLX_CONVNEXTV2_TUNE", "1")
    predict = fuse(load(DEMO)[0])
    predict(mx.zeros((2, 32, 32, 3)))
    (found,) = chosen_operations(predict)
    assert (found["computed_by"], found["because"]) == (results[1]["chosen"], "measured")


def _raises(*_: Any, **__: Any) -> Any:
    raise RuntimeError("[metal::Device] Unable to build metal library from source")


def test_on_a_gpu_whose_kernels_fail_plain_mlx_wins_and_each_failure_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "compile", lambda function: function)
    monkeypatch.setattr(gpu.Kernel, "__call__", _raises)
    assert benchmark.main(["tune", "--model", str(DEMO), "--batch-size", "1"]) == 1
    output = capsys.readouterr()
    rows = [line.split() for line in output.out.splitlines()[2:]]
    assert len(rows) == 2 * len(load(DEMO)[0].config.depths)
    assert {row[2] for row in rows} <= {"compiled", "plain"}
    assert "gelu_grn of 1x64x96 in float32 by kernel, scaled weight: [metal::Device] Unable" in output.err
    assert "warning" not in output.err


@pytest.mark.usefixtures("on_cpu")
def test_a_folder_that_cannot_be_written_is_said(monkeypatch, tmp_path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLX_CONVNEXTV2_CACHE", str(tmp_path / "file" / "below"))
    report = tune(model=str(DEMO), dtype=["float32"])
    assert len(report.results) == 1
    assert report.left_out == [f"nothing could be kept in {tmp_path}/file/below: set MLX_CONVNEXTV2_CACHE to a folder"]


def test_the_table_says_what_won_by_how_much() -> None:
    times = {"kernel 4x4": 2.0, "kernel 1x2": 1.0, "plain": 3.5}
    one = TunedOperation("depthwise", 1, (1, 7, 7, 8), "float16", times, {}, "kernel 4x4", "kernel 1x2", "measured")
    two = TunedOperation("depthwise", 1, (1, 3, 3, 8), "float16", {}, {}, "kernel 4x4", "kernel 4x4", "the rule")
    lines = str(Report("tune", "tiny", results=[one, two], device="Apple M3")).splitlines()
    assert lines[0] == "On Apple M3 in float16, batch 1, and what others take:"
    assert lines[2].split() == ["depthwise", "1x7x7x8", "kernel", "1x2", "1.00", "2.00", "3.50"]
    assert lines[3].split() == ["depthwise", "1x3x3x8", "kernel", "4x4", "-", "-", "-"]
