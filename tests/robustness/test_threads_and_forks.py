"""Models in threads, threads that load models, and processes forked from one that has used them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT, SMALL, parameters

from mlx_convnextv2 import (
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    ImageClassifier,
    fuse,
    load,
    save,
)
from mlx_convnextv2.inference.onnxruntime_classifier import ONNXRuntimeClassifier
from mlx_convnextv2.model.layers import no_init_weights
from mlx_convnextv2.model.quantization import quantize
from mlx_convnextv2.runtime.numpy_blas import find_blas
from mlx_convnextv2.runtime.threads import for_each

PIXELS = np.random.RandomState(0).randint(0, 256, (40, 50, 3)).astype(np.uint8)
forks = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="processes are not forked here")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX classifies, which cannot be forked")


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises in a thread of its own, which has ended."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def in_fork(work: Callable[[], Any]) -> str:
    """What `work` returns in a forked process, or its error, in words; one that hangs is killed after a minute."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            answer = str(work())
        except OSError as error:
            answer = f"OSError: {error}"
        except BaseException:
            answer = traceback.format_exc()
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answers:
        answer = answers.read().decode()
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the child ended with {status}"
    return answer


def features(model: Any, pixel_values: mx.array) -> np.ndarray:
    """All that the model returns, flat, in float32."""
    outputs = model(pixel_values).to_tuple()
    arrays = [array for value in outputs for array in (value if isinstance(value, tuple) else (value,))]
    return np.concatenate([np.array(array.astype(mx.float32)).ravel() for array in arrays])


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [ConvNextV2ForImageClassification, ConvNextV2Model, ConvNextV2Backbone])
def test_a_model_that_was_loaded_or_made_in_one_thread_runs_in_others(hf_folder, model_class):
    model, processor = in_thread(lambda: load(hf_folder, dtype="float16", model_class=model_class))
    pixel_values = in_thread(lambda: processor(PIXELS))
    np.testing.assert_array_equal(in_thread(lambda: features(model, pixel_values)), features(model, pixel_values))
    made = in_thread(lambda: model_class(ConvNextV2Config(**SMALL)))
    assert np.isfinite(features(made, pixel_values)).all()
    ours = model_class(ConvNextV2Config(**SMALL))
    assert np.isfinite(in_thread(lambda: features(ours, pixel_values))).all()


def test_weights_drawn_in_a_thread_are_random_and_of_the_right_deviation():
    config = ConvNextV2Config(**SMALL, initializer_range=0.05)
    one, other = (in_thread(lambda: ConvNextV2Model(config)) for _ in range(2))
    weights = [model.encoder.stages[3].layers[0].pwconv1.weight for model in (one, other)]
    assert (np.array(weights[0]) != np.array(weights[1])).any()
    assert np.array(weights[0]).std() == pytest.approx(0.05, rel=0.1)


def test_a_lazy_array_is_an_image(small_model, small_processor):
    classifier = ImageClassifier(small_model, small_processor)
    expected = classifier(PIXELS)
    lazy = [mx.array(PIXELS // 2) * 2 + mx.array(PIXELS % 2) for _ in range(3)]
    assert classifier(lazy[0]) == expected
    assert [predictions[0]["index"] for predictions in classifier(lazy)] == [expected[0]["index"]] * 3


def test_a_lazy_array_of_another_thread_is_an_error_that_says_what_to_do(small_model, small_processor):
    classifier = ImageClassifier(small_model, small_processor)
    lazy = in_thread(lambda: mx.array(PIXELS) + 0)
    good, bad = classifier.stream([PIXELS, lazy])
    assert good.error is None
    assert "mx.eval" in str(bad.error)


def test_a_classifier_is_used_by_many_threads_at_once(mlx_folder):
    classifier = in_thread(lambda: ImageClassifier(mlx_folder))
    expected = classifier(PIXELS)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(classifier, [PIXELS] * 20)) == [expected] * 20


def test_a_model_without_weights_has_zeros_and_the_shapes_of_one_with():
    config = ConvNextV2Config(**SMALL)
    with no_init_weights():
        bare = ConvNextV2ForImageClassification(config)
        in_thread(lambda: ConvNextV2Model(config))  # the context is this thread's alone
    full = ConvNextV2ForImageClassification(config)
    shapes = [{name: array.shape for name, array in parameters(model).items()} for model in (bare, full)]
    assert shapes[0] == shapes[1]
    assert str(bare) == str(full)
    assert not np.array(bare.classifier.weight).any()
    assert np.array(full.classifier.weight).any()


WORKERS = {
    "load": "load(sys.argv[1])",
    "load quantized": "load(sys.argv[2])",
    "make": "ConvNextV2ForImageClassification(ConvNextV2Config(hidden_sizes=[8, 12, 20, 33], depths=[1, 1, 1, 1]))",
    "quantize": "quantize(load(sys.argv[1])[0], group_size=32)",
    "classify": "ImageClassifier(sys.argv[1])(np.zeros((40, 40, 3), np.uint8))",
    "compute": "[mx.eval(m(p(np.zeros((40, 40, 3), np.uint8))).logits) for m, p in [load(sys.argv[1])]]",
}
PROCESS = """
import sys, threading
import numpy as np
from mlx_convnextv2 import *
from mlx_convnextv2.model.quantization import quantize
import mlx.core as mx
thread = threading.Thread(target=lambda: {work})
thread.start()
thread.join()
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, small_processor) -> list[str]:
    """A checkpoint that can be quantized, and the same quantized."""
    root = tmp_path_factory.mktemp("checkpoints")
    config = ConvNextV2Config(hidden_sizes=[32, 32], depths=[1, 1], num_stages=2, num_labels=3)
    model = ConvNextV2ForImageClassification(config)
    save(model, root / "full", small_processor)
    quantize(model)
    save(model, root / "quantized", small_processor)
    return [str(root / "full"), str(root / "quantized")]


def ends_well(work: str, folders: list[str]) -> None:
    command = [sys.executable, "-c", PROCESS.format(work=work), *folders]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(work, id=name, marks=() if name in ("quantize", "classify") else pytest.mark.slow)
        for name, work in WORKERS.items()
    ],
)
def test_a_process_whose_thread_did_the_work_ends_well(folders, work):
    ends_well(work, folders)


# --- forks ----------------------------------------------------------------------------------------------------------


@forks
@on_linux
def test_an_array_of_mlx_is_refused_in_a_forked_process_because_it_may_be_lazy(mlx_folder):
    classifier = ImageClassifier(mlx_folder)
    classifier(PIXELS)
    lazy = mx.zeros(PIXELS.shape, mx.uint8)
    for use in (classifier, classifier.processor):
        assert "MLX was used before this process was forked" in in_fork(partial(use, lazy))


@forks
@on_linux
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_used_classifier_answers_in_forked_processes(mlx_folder, dtype):
    classifier = ImageClassifier(mlx_folder, dtype=dtype)
    expected = classifier([PIXELS] * 3)
    for _ in range(2):
        assert in_fork(lambda: classifier([PIXELS] * 3) == expected) == "True"


@forks
@pytest.mark.parametrize("kind", ["load", "model", "plain", "fuse", "make", "half pixels"])
def test_what_needs_mlx_in_a_forked_process_is_an_error_that_says_what_to_do(mlx_folder, kind):
    model, processor = load(mlx_folder)
    pixel_values = processor(PIXELS)
    mx.eval(model(pixel_values).logits)
    plain, fast = fuse(model, "plain"), fuse(model, "numpy")
    half = pixel_values.astype(mx.float16)
    work = {
        "load": lambda: load(mlx_folder),
        "model": lambda: model(pixel_values),
        "plain": lambda: plain(pixel_values),
        "fuse": lambda: fuse(model),
        "make": lambda: ConvNextV2Model(ConvNextV2Config(**SMALL)),
        "half pixels": lambda: fast(half),
    }
    answer = in_fork(work[kind])
    assert answer.startswith("OSError: MLX was used before this process was forked")
    assert "spawn" in answer


@forks
def test_a_process_forked_before_mlx_is_used_may_use_it(mlx_folder):
    code = """
import os, sys
from mlx_convnextv2 import load
import mlx.core as mx
child = os.fork()
if child == 0:
    model, processor = load(sys.argv[1])
    print(model(mx.zeros((1, 32, 32, 3))).logits.shape)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
"""
    command = [sys.executable, "-c", code, str(mlx_folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("(1, 7)", "")


@forks
@on_linux
def test_a_fork_while_another_thread_classifies_leaves_a_child_that_does_so_too(mlx_folder):
    classifier = ImageClassifier(mlx_folder)
    expected = classifier(PIXELS)
    stop = threading.Event()

    def keep_on() -> None:
        while not stop.is_set():
            classifier(PIXELS)

    thread = threading.Thread(target=keep_on)
    thread.start()
    try:
        for _ in range(5):
            assert in_fork(lambda: classifier(PIXELS) == expected) == "True"
    finally:
        stop.set()
        thread.join()


@forks
@on_linux
def test_a_forked_process_has_threads_of_its_own():
    def names() -> set[str]:
        found = set()
        barrier = threading.Barrier(2, timeout=30)

        def note(_: int) -> None:
            barrier.wait()  # so that two threads have to be there
            found.add(threading.current_thread().name)

        for_each(note, range(2), workers=2)
        return found

    assert len(names()) == 2
    assert in_fork(lambda: len(names())) == "2"


@forks
@on_linux
def test_a_lock_that_another_thread_held_is_free_in_the_child():
    blas = find_blas()
    if blas is None:
        pytest.skip("numpy has another BLAS")

    def use() -> str:
        with blas.one_thread():
            return "done"

    with blas.one_thread(), blas._lock:
        assert in_fork(use) == "done"


# --- a thousand times -----------------------------------------------------------------------------------------------


@forks
@on_linux
@pytest.mark.slow
def test_a_hundred_threads_and_forks_never_fail(folders, mlx_folder):
    """60 processes whose thread loads, makes, quantizes, classifies or computes, 20 threads, 20 forks.

    REPEATS=10 makes it a thousand, which takes about twenty minutes.
    """
    times = int(os.environ.get("REPEATS", "1"))
    for number in range(60 * times):
        ends_well(list(WORKERS.values())[number % len(WORKERS)], folders)
    for _ in range(20 * times):
        model, processor = in_thread(lambda: load(mlx_folder))
        in_thread(partial(features, model, processor(PIXELS)))
    classifier = ImageClassifier(mlx_folder)
    expected = classifier(PIXELS)
    for _ in range(20 * times):
        assert in_fork(lambda: classifier(PIXELS) == expected) == "True"


@forks
@on_linux
def test_where_onnx_runtime_computed_numpy_does_in_a_forked_process_which_can_free_what_it_has(mlx_folder):
    pytest.importorskip("onnxruntime", reason="needs the extra onnxruntime")
    classifier = ImageClassifier(mlx_folder)
    classifier.predict = fuse(classifier.model, "onnxruntime")
    (expected, *_) = classifier(PIXELS)

    def work() -> bool:
        (answer, *_) = classifier(PIXELS)
        del classifier.predict
        gc.collect()
        return answer["label"] == expected["label"] and abs(answer["score"] - expected["score"]) <= 1e-5

    assert in_fork(work) == "True"


@forks
@on_linux
def test_a_forked_process_does_not_start_onnx_runtime(mlx_folder):
    pytest.importorskip("onnxruntime", reason="needs the extra onnxruntime")
    predict = ONNXRuntimeClassifier(load(mlx_folder)[0])

    def work() -> bool:
        predict.start()
        return predict.session is None

    assert in_fork(work) == "True"


@forks
@on_linux
@pytest.mark.parametrize("chosen", [None, "true"])
def test_onnx_runtime_reports_nothing_so_that_a_forked_process_can_end(chosen, mlx_folder):
    pytest.importorskip("onnxruntime", reason="needs the extra onnxruntime")
    code = (
        "import os, signal, sys; from mlx_convnextv2 import ImageClassifier, fuse\n"
        "predict = fuse(ImageClassifier(sys.argv[1]).model, 'onnxruntime'); child = os.fork()\n"
        "if child == 0: signal.alarm(20); sys.exit(0)\n"
        "print(os.waitpid(child, 0)[1], os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    # ONNX Runtime is silent in CI anyway.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    if chosen:
        environment["ORT_DISABLE_TELEMETRY"] = chosen
    command = [sys.executable, "-c", code, str(mlx_folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", chosen or "1"]
