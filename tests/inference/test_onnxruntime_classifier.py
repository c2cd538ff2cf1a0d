"""The whole model in ONNX Runtime: when it computes, and that its numbers are those of plain MLX."""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_files import assert_close
from conftest import small_classifier

from mlx_convnextv2 import ConvNextV2ForImageClassification, ImageClassifier, fuse, load
from mlx_convnextv2.inference import onnxruntime_classifier
from mlx_convnextv2.inference.fuse import describe, make_ready
from mlx_convnextv2.inference.numpy_classifier import NumpyClassifier
from mlx_convnextv2.inference.onnxruntime_classifier import IMAGES_BEFORE, ONNXRuntimeClassifier
from mlx_convnextv2.inference.tuned import Tuned
from mlx_convnextv2.model.config import ACTIVATIONS
from mlx_convnextv2.model.quantization import quantize
from mlx_convnextv2.ops import dispatch
from mlx_convnextv2.ops.tolerances import KERNEL
from mlx_convnextv2.runtime import threads

pytest.importorskip("onnxruntime", reason="needs the extra onnxruntime")

if mx.default_device() != mx.Device(mx.cpu) or sys.platform != "linux":
    pytest.skip("for a CPU under Linux", allow_module_level=True)


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_classifier, "is_installed", lambda: True)
    monkeypatch.delenv("MLX_CONVNEXTV2_OPS", raising=False)


def build(**config: Any) -> ConvNextV2ForImageClassification:
    return small_classifier(**{"num_labels": 5, **config})


def pixels(*shape: int, seed: int = 1) -> mx.array:
    return mx.array(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def plain(model: ConvNextV2ForImageClassification, pixel_values: mx.array, pooled: bool = False) -> mx.array:
    with dispatch.path("plain"):
        return model.convnextv2(pixel_values).pooler_output if pooled else model(pixel_values).logits


def started(model: ConvNextV2ForImageClassification, **options: bool) -> ONNXRuntimeClassifier:
    predict = ONNXRuntimeClassifier(model, **options)
    predict.start()
    assert predict.problem is None
    return predict


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
def test_logits_and_features_are_plain_mlx_s(hidden_act: str) -> None:
    model, images = build(hidden_act=hidden_act), pixels(2, 40, 33, 3)
    assert_close(started(model)(images), plain(model, images))
    assert_close(started(model, pooled=True)(images), plain(model, images, pooled=True))


def test_images_of_any_size_and_number(small_model) -> None:
    predict = started(small_model)
    for shape in ((3, 67, 53, 3), (2, 230, 230, 3), (60, 32, 32, 3)):
        assert_close(predict(pixels(*shape)), plain(small_model, pixels(*shape)))
    assert predict(pixels(0, 32, 32, 3)).shape == (0, 7)


@pytest.mark.parametrize(
    "config", [{"patch_size": 3}, {"num_channels": 1}, {"num_labels": 0}, {"depths": [0, 1, 0, 2]}], ids=str
)
def test_other_architectures_too(config: dict[str, object]) -> None:
    model = build(**config)
    shape = (2, 64, 70, model.config.num_channels)
    assert_close(started(model)(pixels(*shape)), plain(model, pixels(*shape)))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_types_are_computed_in_float32_and_rounded_once(dtype: mx.Dtype) -> None:
    model = build()
    model.set_dtype(dtype)
    predict, in_numpy = started(model), NumpyClassifier(model)
    answer, expected = predict(pixels(2, 64, 64, 3)), in_numpy(pixels(2, 64, 64, 3))
    assert answer.dtype == expected.dtype == dtype
    assert_close(answer, expected, KERNEL[str(dtype).removeprefix("mlx.core.")])


def test_quantized_layers_are_computed_with_the_weights_that_they_stand_for() -> None:
    model = build(hidden_sizes=[32, 64, 64, 96])
    quantize(model, bits=4, group_size=32)
    assert_close(started(model)(pixels(1, 64, 64, 3)), NumpyClassifier(model)(pixels(1, 64, 64, 3)))


class TestWhoComputes:
    def test_numpy_has_the_first_images_and_onnx_runtime_the_others(self, small_model) -> None:
        predict = fuse(small_model)
        assert isinstance(predict, ONNXRuntimeClassifier)
        predict(pixels(IMAGES_BEFORE, 32, 32, 3))
        assert predict.session is None
        assert f"in ONNX Runtime after {IMAGES_BEFORE} images" in describe(small_model, predict)
        predict(pixels(1, 32, 32, 3))
        assert predict.session is not None
        assert "blocks in ONNX Runtime 1." in describe(small_model, predict)

    def test_a_process_that_lives_long_starts_it_at_once(self, small_model) -> None:
        predict = fuse(small_model)
        make_ready(predict)
        assert "blocks in ONNX Runtime 1." in describe(small_model, predict)

    def test_where_measuring_is_asked_for_it_is_measured(self, small_model, monkeypatch) -> None:
        monkeypatch.setenv("MLX_CONVNEXTV2_TUNE", "1")
        predict = fuse(small_model)
        assert isinstance(predict, Tuned)
        assert_close(predict(pixels(1, 32, 32, 3)), plain(small_model, pixels(1, 32, 32, 3)))
        ((trial, verdict),) = predict.verdicts((1, 32, 32, 3))
        assert trial.candidates == ("onnxruntime", "numpy", "plain")
        assert "onnxruntime" in verdict.proven

    @pytest.mark.parametrize("path", ["numpy", "plain"])
    def test_other_paths_leave_it_out(self, path: str, small_model, monkeypatch) -> None:
        assert not isinstance(fuse(small_model, path), ONNXRuntimeClassifier)
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", path)
        assert not isinstance(fuse(small_model), ONNXRuntimeClassifier)

    def test_its_own_path_starts_it_at_once(self, small_model, monkeypatch) -> None:
        asked = [fuse(small_model, "onnxruntime")]
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "onnxruntime")
        asked.append(fuse(small_model))
        assert [isinstance(one, ONNXRuntimeClassifier) and one.session is not None for one in asked] == [True, True]
        with dispatch.path("onnxruntime"):  # single operations are numpy's
            assert dispatch.choose(mx.float32, 8) == "numpy"

    @pytest.mark.parametrize("broken", ["missing", "old", "wrong"])
    def test_where_it_does_not_work_numpy_goes_on_and_describe_says_why(self, broken: str, small_model, monkeypatch):
        ours = "mlx_convnextv2.inference.onnxruntime_session"
        if broken == "wrong":
            session = SimpleNamespace(Session=lambda model, pooled: lambda images: np.ones((len(images), 7)))
            monkeypatch.setitem(sys.modules, ours, session)
        else:
            monkeypatch.delitem(sys.modules, ours, raising=False)
            old = SimpleNamespace(__version__="1.2.0")
            monkeypatch.setitem(sys.modules, "onnxruntime", None if broken == "missing" else old)
        predict = fuse(small_model)
        answer = predict(pixels(IMAGES_BEFORE + 1, 32, 32, 3))
        assert_close(answer, plain(small_model, pixels(IMAGES_BEFORE + 1, 32, 32, 3)))
        assert "in numpy" in describe(small_model, predict)
        assert "because ONNX Runtime cannot be used here (" in describe(small_model, predict)
        with pytest.raises(ImportError, match=r"cannot be used here .* pip install"):
            fuse(small_model, "onnxruntime")


def test_it_reads_the_weights_where_mlx_has_them(hf_folder: Path) -> None:
    model, _ = load(hf_folder)
    session = started(model).session
    assert session is not None
    arrays = session._arrays
    block = model.convnextv2.encoder.stages[1].layers[1]
    for name, weight in (("pwconv1", block.pwconv1.weight), ("pwconv2", block.pwconv2.weight)):
        assert np.shares_memory(arrays[f"stage2.block2.{name}.weight"], np.array(weight, copy=False))
    assert np.array(model.convnextv2.embeddings.patch_embeddings.weight, copy=False).flags.c_contiguous


def test_numpy_gives_its_memory_back_when_it_has_done_its_part(small_model) -> None:
    predict = fuse(small_model)
    predict(pixels(2, 32, 32, 3))
    assert any(threads._of_threads.values())
    predict(pixels(IMAGES_BEFORE, 32, 32, 3))
    assert not any(threads._of_threads.values())


def test_weights_set_after_fuse_do_not_change_its_answers() -> None:
    model = build()
    expected = plain(model, pixels(1, 32, 32, 3))
    predict = fuse(model)
    model.classifier.weight = model.classifier.weight * 2
    model.convnextv2.encoder.stages[0].layers[0].pwconv1.weight *= 0
    make_ready(predict)
    assert_close(predict(pixels(1, 32, 32, 3)), expected)


def test_the_same_images_give_the_same_bits_in_every_thread_and_batch(small_model) -> None:
    predict = started(small_model)
    images = pixels(4, 224, 224, 3)
    first = np.array(predict(images))
    answers: list[np.ndarray] = []
    callers = [threading.Thread(target=lambda: answers.append(np.array(predict(images)))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(np.array_equal(answer, first) for answer in answers)
    assert len(answers) == 4
    assert np.array_equal(np.concatenate([np.array(predict(images[i : i + 1])) for i in range(4)]), first)


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_damaged_weights_get_the_sentence_that_they_get_without_it(
    damage: float, small_model, small_processor, tmp_path: Path
) -> None:
    model = build()
    weight = model.convnextv2.encoder.stages[3].layers[0].pwconv2.weight
    weight[0, 0] = damage
    classifier = ImageClassifier(model, small_processor)
    assert isinstance(classifier.predict, ONNXRuntimeClassifier)
    make_ready(classifier.predict)
    assert classifier.predict.problem is None  # which is not ONNX Runtime's
    with pytest.raises(ValueError, match="its scores are not finite: the model's weights are damaged"):
        classifier(np.zeros((40, 40, 3), np.uint8))


def test_an_image_with_nan_does_not_end_the_search(small_model) -> None:
    predict = ONNXRuntimeClassifier(small_model)
    images = pixels(IMAGES_BEFORE + 1, 32, 32, 3)
    predict(images * float("nan"))
    assert (predict.session, predict.problem) == (None, None)
    predict(images)
    assert predict.session is not None


def test_a_session_is_made_where_no_signal_arrives(small_model, monkeypatch) -> None:
    """ONNX Runtime loses what a Ctrl-C raises within it, so it starts in a thread."""
    # Not the package's attribute: other tests replace the module.
    onnxruntime_session = import_module("mlx_convnextv2.inference.onnxruntime_session")
    session, threads = onnxruntime_session.Session, []

    def made(*arguments):
        threads.append(threading.current_thread())
        return session(*arguments)

    monkeypatch.setattr(onnxruntime_session, "Session", made)
    ONNXRuntimeClassifier(small_model).start()
    assert len(threads) == 1
    assert threading.main_thread() not in threads
