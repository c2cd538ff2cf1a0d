"""A fused model chooses what computes it: on a device that looks like a GPU, and on a CPU with a real clock."""

from __future__ import annotations

import csv
import gc
import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import proof
import pytest
from conftest import randomize, small_classifier

from mlx_convnextv2 import (
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    classify,
    fuse,
    load,
)
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.graphs.trace import export_model
from mlx_convnextv2.inference import tuned as tuned_module
from mlx_convnextv2.inference.fuse import chosen_operations
from mlx_convnextv2.inference.tuned import Tuned, feature_shapes, model_trial, tuned_on_cpu, tuned_on_gpu
from mlx_convnextv2.model.quantization import quantize
from mlx_convnextv2.ops import candidates, gpu, tuning
from mlx_convnextv2.ops.tolerances import CONTENDER
from mlx_convnextv2.ops.tuning import Tuner, WrongKernelWarning

SMALL: dict[str, Any] = {"hidden_sizes": [4, 6], "depths": [1, 2], "num_stages": 2}
BLOCKS = 3
SHAPE = (2, 24, 20, 3)  # features 2x6x5x4 and 2x3x2x6


pytestmark = pytest.mark.usefixtures("nothing_tuned")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX says that it has a GPU, and compiles nothing, as it would with a compiler of the system's on a CPU."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "compile", lambda function: function)


@pytest.fixture
def model() -> ConvNextV2ForImageClassification:
    return small_classifier(**SMALL, num_labels=7)


def pixels(shape: tuple[int, ...] = SHAPE) -> mx.array:
    return mx.array(np.random.RandomState(0).standard_normal(shape).astype(np.float32))


def assert_close(result: mx.array, expected: mx.array) -> None:
    assert float(mx.abs(result - expected).max()) <= 1e-5 * float(mx.abs(expected).max())


class Ticking:
    """Candidates that compute what plain MLX computes, each in its own time by a clock of theirs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.time = 0.0
        self.seconds: dict[str, float] = {}
        self.ran: list[str] = []
        for part in ("depthwise", "gelu_grn"):
            plain = getattr(candidates, part)("plain")
            monkeypatch.setattr(
                candidates, part, lambda name, plain=plain: lambda *inputs: self.run(name, plain, inputs)
            )

    def run(self, name: str, plain: Callable[..., Any], inputs: Any) -> Any:
        self.ran.append(name)
        self.time += self.seconds.get(name, 1.0) * 1e-3
        return plain(*inputs)

    def tuner(self, **options: Any) -> Tuner:
        return Tuner({"device": "Fake M9"}, clock=lambda: self.time, say=lambda _: None, **{"budget": 1e9, **options})


def choices(tuned: Tuned, shape: tuple[int, ...] = SHAPE) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for trial, verdict in tuned.verdicts(shape):
        found.setdefault(trial.operation.name, set()).add(verdict.choice)
    return found


@pytest.mark.usefixtures("on_gpu")
class TestOnAGpu:
    @pytest.mark.parametrize("fastest", ["kernel 4x4", "kernel 1x4", "kernel 1x1", "compiled", "plain"])
    def test_each_depthwise_candidate_wins_where_it_is_fastest(self, fastest: str, model, monkeypatch) -> None:
        expected = fuse(model, "plain")(pixels())
        device = Ticking(monkeypatch)
        device.seconds[fastest] = 0.5
        tuned = tuned_on_gpu(model, device.tuner())
        assert_close(tuned(pixels()), expected)
        assert choices(tuned)["depthwise_layer_norm"] == {fastest}
        device.ran.clear()
        tuned(pixels())
        assert device.ran.count(fastest) >= BLOCKS

    @pytest.mark.parametrize("fastest", [candidates.ON_WEIGHT, candidates.ON_INPUT, "compiled", "plain"])
    def test_each_candidate_for_gelu_and_grn_wins_where_it_is_fastest(self, fastest: str, model, monkeypatch) -> None:
        device = Ticking(monkeypatch)
        device.seconds[fastest] = 0.5
        tuned = tuned_on_gpu(model, device.tuner())
        tuned(pixels())
        assert choices(tuned)["gelu_grn"] == {fastest}

    def test_shapes_have_winners_of_their_own(self, model, monkeypatch) -> None:
        device = Ticking(monkeypatch)
        tuned = tuned_on_gpu(model, device.tuner())
        device.seconds = {"kernel 1x4": 0.5}
        tuned(pixels())
        device.seconds = {"kernel 2x4": 0.5}
        tuned(pixels((1, 16, 16, 3)))
        assert choices(tuned)["depthwise_layer_norm"] == {"kernel 1x4"}
        assert choices(tuned, (1, 16, 16, 3))["depthwise_layer_norm"] == {"kernel 2x4"}
        assert tuned.shapes == [SHAPE, (1, 16, 16, 3)]
        found = chosen_operations(tuned)
        assert found[0] == {
            **{"operation": "depthwise_layer_norm", "shape": [2, 6, 5, 4], "dtype": "float32"},
            **{"computed_by": "kernel 1x4", "because": "measured"},
        }
        assert len(found) == 2 * 2 * 2  # shapes, operations, stages: not each block

    def test_plain_mlx_is_not_compiled_against_its_choice(self, model, monkeypatch) -> None:
        """Where it was measured to be faster than compiled, or compiling is broken, nothing compiles the whole."""
        compiled: list[Any] = []

        def compile_nothing(function):
            compiled.append(function)
            return function

        device = Ticking(monkeypatch)
        for fastest, count in (("kernel 1x2", 1), ("plain", 0)):
            device.seconds = {fastest: 0.5}
            tuned = tuned_on_gpu(model, device.tuner(again=True))
            tuned.prepare(SHAPE)
            monkeypatch.setattr(mx, "compile", compile_nothing)
            tuned._compose([verdict.choice for _, verdict in tuned.verdicts(SHAPE)])
            monkeypatch.setattr(mx, "compile", lambda function: function)
            assert len(compiled) == count
            compiled.clear()

    def test_the_next_process_tries_nothing(self, model, monkeypatch) -> None:
        device = Ticking(monkeypatch)
        device.seconds["kernel 1x4"] = 0.5
        tuned_on_gpu(model, device.tuner())(pixels())
        device.ran.clear()
        tuned = tuned_on_gpu(model, device.tuner())
        tuned(pixels())
        assert device.ran == ["kernel 1x4", candidates.ON_WEIGHT, *["kernel 1x4", candidates.ON_INPUT] * 2]

    def test_a_trace_uses_what_is_known_and_tries_nothing(self, model, monkeypatch, tmp_path) -> None:
        device = Ticking(monkeypatch)
        device.seconds["kernel 1x4"] = 0.5
        tuned = tuned_on_gpu(model, device.tuner())
        mx.export_function(str(tmp_path / "rule.mlxfn"), tuned, pixels())
        assert len(device.ran) == 2 * BLOCKS
        assert tuned.shapes == []
        assert "kernel 1x4" not in device.ran
        expected = tuned(pixels())
        device.ran.clear()
        mx.export_function(str(tmp_path / "tuned.mlxfn"), tuned, pixels())
        assert device.ran.count("kernel 1x4") == BLOCKS
        for name in ("rule", "tuned"):
            imported: Any = mx.import_function(str(tmp_path / f"{name}.mlxfn"))  # MLX says that it is a tuple
            (result,) = imported(pixels())
            assert_close(result, expected)

    def test_an_exported_graph_is_of_what_was_found_and_says_so(self, model, monkeypatch, tmp_path) -> None:
        device = Ticking(monkeypatch)
        device.seconds["kernel 1x4"] = 0.5
        monkeypatch.setattr(tuning, "shared", device.tuner)
        monkeypatch.setattr(mx.metal, "is_available", lambda: True)
        monkeypatch.setattr(mx, "default_stream", lambda _: "Stream(Device(gpu, 0), 0)")
        processor = ConvNextImageProcessor(size=24, crop_pct=1.0)
        description = export_model(model, processor, tmp_path / "graph", batches=[1, 2])
        assert json.loads((tmp_path / "graph" / "model.json").read_text()) == description
        found = [one for one in description["operations"] if one["operation"].startswith("depthwise")]
        assert [one["shape"] for one in found] == [[n, side, side, c] for n in (1, 2) for side, c in ((6, 4), (3, 6))]
        assert {(one["computed_by"], one["because"]) for one in found} == {("kernel 1x4", "measured")}

    @pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
    def test_half_types(self, dtype: mx.Dtype, model, monkeypatch) -> None:
        device = Ticking(monkeypatch)
        model.set_dtype(dtype)
        tuned = tuned_on_gpu(model, device.tuner())
        assert tuned(pixels()).dtype == dtype
        assert {trial.operation.dtype for trial, _ in tuned.verdicts(SHAPE)} == {str(dtype).split(".")[-1]}

    def test_a_quantized_model_is_measured_as_such_and_takes_no_factors_on_its_weight(self, monkeypatch) -> None:
        config = ConvNextV2Config(hidden_sizes=[32, 64], depths=[1, 1], num_stages=2, num_labels=3)
        model = ConvNextV2ForImageClassification(config)
        randomize(model)
        quantize(model.eval(), 4, 32)
        device = Ticking(monkeypatch)
        tuned = tuned_on_gpu(model, device.tuner())
        tuned(pixels())
        for trial, _ in tuned.verdicts(SHAPE):
            assert trial.operation.form == "4-bit affine, 32 a group, 4-bit affine, 32 a group"
            assert candidates.ON_WEIGHT not in trial.candidates

    def test_a_path_that_is_asked_for_is_taken_untried(self, model, monkeypatch) -> None:
        assert not isinstance(fuse(model, "kernel"), Tuned)
        assert not isinstance(fuse(model, "plain"), Tuned)
        assert isinstance(fuse(model, "auto"), Tuned)
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "kernel")
        assert not isinstance(fuse(model), Tuned)

    def test_pixel_values_of_a_wrong_shape_are_an_error_before_anything_is_tried(self, model, monkeypatch) -> None:
        device = Ticking(monkeypatch)
        tuned = tuned_on_gpu(model, device.tuner())
        with pytest.raises(ValueError, match="channels-first"):
            tuned(pixels((1, 3, 24, 24)))
        assert device.ran == []

    def test_damaged_weights_do_not_condemn_a_kernel(self, model, monkeypatch) -> None:
        model.convnextv2.encoder.stages[0].layers[0].pwconv1.weight *= mx.nan
        device = Ticking(monkeypatch)
        tuned = tuned_on_gpu(model, device.tuner())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tuned(pixels())
        assert all(not verdict.failures for _, verdict in tuned.verdicts(SHAPE))

    def test_what_was_tried_holds_no_memory(self, model, monkeypatch) -> None:
        tuned = tuned_on_gpu(model, Ticking(monkeypatch).tuner())
        gc.collect()
        gc.disable()  # nor does it wait for that
        try:
            before = mx.get_active_memory()
            tuned.prepare((64, 24, 20, 3))
            assert mx.get_active_memory() - before < 64 * 6 * 5 * 4 * 4  # the smallest array of the first stage
        finally:
            gc.enable()

    @pytest.mark.slow
    def test_with_the_real_kernels(self, model) -> None:
        proof.require_compiler()
        expected = fuse(model, "plain")(pixels())
        with proof.executed(), warnings.catch_warnings():
            warnings.simplefilter("error")
            tuned = tuned_on_gpu(model, Tuner({"device": "the proof"}, measures=False))
            assert_close(tuned(pixels()), expected)
        rules = {verdict.choice for _, verdict in tuned.verdicts(SHAPE)}
        assert all(name.startswith("kernel") for name in rules)


def _raises(*_: Any, **__: Any) -> Any:
    raise RuntimeError("[metal::Device] Unable to build metal library from source")


def _nan(kernel: gpu.Kernel, *_: Any, outputs: Any, **__: Any) -> list[mx.array]:
    return [mx.full(shape, mx.nan, dtype) for shape, dtype in outputs]


def _wrong(kernel: gpu.Kernel, *_: Any, outputs: Any, **__: Any) -> list[mx.array]:
    return [mx.full(shape, 0.5, dtype) for shape, dtype in outputs]


@pytest.mark.usefixtures("on_gpu")
class TestEverythingButPlainBroken:
    @pytest.mark.parametrize("tune", ["", "0"], ids=["tuned", "not tuned"])
    @pytest.mark.parametrize("fault", [_raises, _nan, _wrong])
    def test_the_demo_is_right_with_one_warning(self, fault: Callable, tune: str, monkeypatch, capsys) -> None:
        monkeypatch.setenv("MLX_CONVNEXTV2_TUNE", tune)
        monkeypatch.setattr(gpu.Kernel, "__call__", fault)
        monkeypatch.setattr(mx, "compile", lambda function: _raises)
        for run in ("first", "second"):
            tuning.shared.cache_clear()
            assert classify.main(["--demo", "--top-k", "1", "--format", "csv", "--verbose"]) == 0
            output = capsys.readouterr()
            rows = list(csv.DictReader(io.StringIO(output.out)))
            assert [row["label"] for row in rows] == [str(digit) for digit in range(10)]
            warned = [line for line in output.err.splitlines() if "warning" in line]
            assert len(warned) == (run == "first")  # what failed is remembered, and not tried again
            assert output.err.count(": plain, ") == 2 * 2 * len(load(DEMO)[0].config.depths)  # operations, batches

    def test_one_broken_kernel_leaves_the_others(self, model, monkeypatch) -> None:
        device = Ticking(monkeypatch)
        depthwise = candidates.depthwise
        monkeypatch.setattr(candidates, "depthwise", lambda name: _raises if "kernel" in name else depthwise(name))
        tuned = tuned_on_gpu(model, device.tuner(measures=False))
        with pytest.warns(WrongKernelWarning):
            tuned(pixels())
        assert choices(tuned)["depthwise_layer_norm"] == {"plain"}
        assert choices(tuned)["gelu_grn"] == {candidates.ON_WEIGHT, candidates.ON_INPUT}


class TestOnACpu:
    """numpy is a candidate here, so that what is measured is real."""

    @pytest.fixture(autouse=True)
    def _on_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))

    def test_a_model_is_measured_where_that_is_asked_for(self, model, monkeypatch) -> None:
        monkeypatch.setenv("MLX_CONVNEXTV2_TUNE", "1")
        predict = fuse(model)
        assert isinstance(predict, Tuned)
        assert_close(predict(pixels()), fuse(model, "plain")(pixels()))
        ((trial, verdict),) = predict.verdicts(SHAPE)
        assert trial.candidates == ("numpy", "plain")
        assert verdict.proven == ["numpy"]
        assert set(verdict.seconds) == {"numpy", "plain"}
        assert min(verdict.seconds.values()) > 0
        (found,) = chosen_operations(predict)
        assert found["computed_by"] == verdict.choice
        assert found["because"] == "measured"

    @pytest.mark.parametrize("fastest", ["numpy", "plain"])
    def test_the_faster_one_wins(self, fastest: str, model, monkeypatch) -> None:
        time = 0.0

        def slowed(name: str, function: Callable) -> Callable:
            def run(x: mx.array) -> mx.array:
                nonlocal time
                time += 1.0 if name == fastest else 2.0
                return function(x)

            return run

        tuner = Tuner({"device": "Fake"}, clock=lambda: time, say=lambda _: None, budget=1e9)
        monkeypatch.setattr(
            tuned_module,
            "model_trial",
            lambda functions, *others: model_trial({n: slowed(n, f) for n, f in functions.items()}, *others),
        )
        tuned = tuned_on_cpu(model, tuner)
        tuned(pixels())
        assert choices(tuned) == {"model": {fastest}}

    def test_unless_it_is_asked_for_the_rule_stays_and_nothing_is_read(self, model, monkeypatch) -> None:
        for value in ("", "0"):
            monkeypatch.setenv("MLX_CONVNEXTV2_TUNE", value)
            assert not isinstance(fuse(model), Tuned)

    def test_a_model_that_numpy_does_not_know_is_plain(self, model, monkeypatch) -> None:
        monkeypatch.setenv("MLX_CONVNEXTV2_TUNE", "1")
        model.convnextv2.encoder.stages[0].layers[0].act = mx.tanh
        predict = fuse(model)
        assert isinstance(predict, Tuned)
        assert_close(predict(pixels()), fuse(model, "plain")(pixels()))
        assert choices(predict) == {"model": {"plain"}}


@pytest.mark.gpu
def test_on_a_real_gpu_every_candidate_is_right_and_something_is_chosen(model) -> None:
    if not (mx.metal.is_available() or mx.cuda.is_available()):
        pytest.skip("MLX has no GPU here")
    tuner = Tuner(again=True, budget=1e9, say=lambda _: None)
    before = mx.default_device()
    mx.set_default_device(mx.gpu)
    try:
        for dtype in (mx.float32, mx.float16, mx.bfloat16):
            model.set_dtype(dtype)
            expected = fuse(model, "plain")(pixels()).astype(mx.float32)
            tuned = tuned_on_gpu(model, tuner)
            difference = float(mx.abs(tuned(pixels()).astype(mx.float32) - expected).max())
            assert difference <= CONTENDER[str(dtype).split(".")[-1]] * float(mx.abs(expected).max())
            for trial, verdict in tuned.verdicts(SHAPE):
                assert verdict.failures == {}
                assert set(verdict.seconds) == set(trial.candidates)
    finally:
        mx.set_default_device(before)


def test_features_have_the_shapes_that_the_model_computes(model) -> None:
    outputs = model(pixels(), output_hidden_states=True)
    assert [state.shape for state in outputs.hidden_states[1:]] == list(feature_shapes(model.config, SHAPE))
