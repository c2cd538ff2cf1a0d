"""The inference-time form of a model: the same numbers, computed by the device's fastest path."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model, body_and_classifier
from ..ops import dispatch
from ..runtime.forks import check_not_forked
from .composition import compiled, compose, plain_block


def fuse(
    model: ConvNextV2ForImageClassification | ConvNextV2Model, path: str | None = None, *, pooled: bool = False
) -> Callable[[mx.array], mx.array]:
    """The model in inference mode as a function from pixel_values (N, H, W, C) to logits (N, num_labels).

    A ConvNextV2Model has no classifier; its function returns the pooled output (N, hidden_size).

    The function keeps the weights that the model has now. After changing them, call `fuse` again.

    On a GPU, each part of a block is computed by the fastest candidate that is correct there. It is chosen when
    pixel_values of a new shape first arrive (see `ops.tuning`), and MLX compiles the graph. On a CPU the graph is not
    compiled: `mx.compile` would run a C++ compiler for seconds, and the result is no faster. On a Linux CPU, numpy
    computes the model, and after the first images ONNX Runtime if it is installed (see `onnxruntime_classifier`).

    Args:
        model: what to run.
        path: "plain", "kernel", "numpy" or "onnxruntime" to force that path; "auto", the default, takes the fastest.
        pooled: return the pooled output (N, hidden_size), the classifier's input, instead of logits.

    Raises:
        ImportError: the path is "onnxruntime", and it is not installed or does not work.
        OSError: this process was forked from one that used MLX.
        TypeError: the model is neither a ConvNextV2ForImageClassification nor a ConvNextV2Model.
        ValueError: the path does not exist, or it is "numpy" or "onnxruntime" and the model has layers of another class
            or form.
    """
    check_not_forked()
    if not isinstance(model, ConvNextV2ForImageClassification | ConvNextV2Model):
        names = f"{ConvNextV2ForImageClassification.__name__} or a {ConvNextV2Model.__name__}"
        raise TypeError(f"fuse takes a {names}, not a {type(model).__name__}")
    body, _ = body_and_classifier(model, pooled)
    weight = body.embeddings.patch_embeddings.weight
    on_gpu = mx.default_device().type == mx.gpu
    if dispatch.asked(path) is None and (on_gpu or os.environ.get("MLX_CONVNEXTV2_TUNE")):
        from ..ops import tuning
        from .tuned import tuned_on_cpu, tuned_on_gpu

        if on_gpu:
            return tuned_on_gpu(model, tuning.shared(), pooled)
        if tuning.measuring():
            return tuned_on_cpu(model, tuning.shared(), pooled)
    if dispatch.choose(weight.dtype, len(weight), path) == "numpy":
        from . import numpy_classifier

        if numpy_classifier.supports(model):
            return _without_mlx(model, dispatch.asked(path), pooled)
        if path in ("numpy", "onnxruntime"):
            raise ValueError(f'{path} does not know every layer of this model: leave the path "{path}" out')
    from .gpu_block import FoldedBlock, is_foldable

    blocks = [
        [FoldedBlock.of(layer) if is_foldable(layer, path) else plain_block(layer) for layer in stage.layers]
        for stage in body.encoder.stages
    ]
    predict = compose(model, blocks, pooled)
    return compiled(predict) if on_gpu else predict


def _without_mlx(
    model: ConvNextV2ForImageClassification | ConvNextV2Model, path: str | None, pooled: bool
) -> Callable[[mx.array], mx.array]:
    """The model in numpy, and in ONNX Runtime if the path leaves that open and it is installed."""
    from . import numpy_classifier, onnxruntime_classifier

    if path == "numpy" or not (path or onnxruntime_classifier.is_installed()):
        return numpy_classifier.NumpyClassifier(model, pooled)
    predict = onnxruntime_classifier.ONNXRuntimeClassifier(model, pooled)
    if path == "onnxruntime":
        predict.start()
        if predict.problem:
            advice = 'pip install -U "mlx-convnextv2[onnxruntime]"'
            raise ImportError(f"ONNX Runtime cannot be used here ({predict.problem}): {advice}")
    return predict


def make_ready(predict: Callable[[mx.array], mx.array]) -> None:
    """Let a fused model take from the first image on what is fastest in the long run."""
    from .onnxruntime_classifier import ONNXRuntimeClassifier

    if isinstance(predict, ONNXRuntimeClassifier):
        predict.start()


def describe(model: ConvNextV2ForImageClassification, predict: Callable[[mx.array], mx.array]) -> str:
    """What computes a fused model: MLX's version and device, the path of the blocks, and the BLAS on a CPU."""
    from ..runtime import mlx_blas
    from .numpy_classifier import NumpyClassifier
    from .onnxruntime_classifier import ONNXRuntimeClassifier, in_numpy
    from .tuned import Tuned

    device = mx.default_device().type
    if isinstance(predict, ONNXRuntimeClassifier):
        how = str(predict)
    elif isinstance(predict, NumpyClassifier):
        how = in_numpy(predict)
    elif isinstance(predict, Tuned):
        how = "by what is right and fastest here for each shape"
    elif device == mx.cpu:
        how = f"by MLX's operations, its BLAS {mlx_blas.load()}"
    else:
        weight = model.convnextv2.embeddings.patch_embeddings.weight
        how = "by our kernels" if dispatch.choose(weight.dtype, len(weight)) == "kernel" else "by MLX's operations"
    version = mx.__version__  # type: ignore[attr-defined]
    return f"MLX {version} on the {device.name.upper()}, blocks {how}"


def chosen_operations(predict: Callable[[mx.array], mx.array]) -> list[dict[str, Any]]:
    """The choices for the shapes seen so far: "operation", "shape", "dtype", "computed_by" and "because".

    Each operation is listed once, whatever the number of blocks. The list is empty if there was nothing to choose.
    """
    from .tuned import Tuned

    if not isinstance(predict, Tuned):
        return []
    verdicts = {trial.operation: verdict for shape in predict.shapes for trial, verdict in predict.verdicts(shape)}
    return [
        {
            **{"operation": operation.name, "shape": list(operation.shape), "dtype": operation.dtype},
            **{"computed_by": verdict.choice, "because": verdict.reason},
        }
        for operation, verdict in verdicts.items()
    ]
