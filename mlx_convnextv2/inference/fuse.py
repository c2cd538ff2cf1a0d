"""The inference-time form of a model: the same numbers, by the fastest path of the device."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from ..model.convnextv2 import (
    ConvNextV2ForImageClassification,
    ConvNextV2Layer,
    ConvNextV2Model,
    body_and_classifier,
)
from ..ops import dispatch
from ..ops.plain import gelu
from ..runtime.forks import check_not_forked
from .gpu_block import FoldedBlock


def fuse(
    model: ConvNextV2ForImageClassification | ConvNextV2Model, path: str | None = None, *, pooled: bool = False
) -> Callable[[mx.array], mx.array]:
    """A function from pixel_values (N, H, W, C) to logits (N, num_labels): the model in inference mode, and no more.

    Of a ConvNextV2Model, which has no classifier, it is one to the pooled output (N, hidden_size).

    It has the weights that the model has now: change them, and call `fuse` again. On a GPU the graph is compiled, once
    for each shape of pixel_values. On a CPU it is not, because `mx.compile` would run a C++ compiler for seconds and
    the result is no faster; under Linux the model is computed in numpy there.

    Args:
        model: what to run.
        path: "plain", "kernel", "numpy" or "auto" for how to compute; `dispatch.choose` has the rule.
        pooled: return the pooled output (N, hidden_size), which the classifier takes, instead of logits.

    Raises:
        OSError: this process was forked from one that used MLX.
        TypeError: the model is neither a ConvNextV2ForImageClassification nor a ConvNextV2Model.
        ValueError: a path that does not exist, or "numpy" for a model with layers of another class or form.
    """
    check_not_forked()
    if not isinstance(model, ConvNextV2ForImageClassification | ConvNextV2Model):
        names = f"{ConvNextV2ForImageClassification.__name__} or a {ConvNextV2Model.__name__}"
        raise TypeError(f"fuse takes a {names}, not a {type(model).__name__}")
    body, classifier = body_and_classifier(model, pooled)
    weight = body.embeddings.patch_embeddings.weight
    if dispatch.choose(weight.dtype, len(weight), path) == "numpy":
        from . import numpy_classifier  # here, so that it costs nothing where it is not used

        if numpy_classifier.supports(model):
            return numpy_classifier.NumpyClassifier(model, pooled)
        if path == "numpy":
            raise ValueError('numpy does not know every layer of this model: leave the path "numpy" out')

    stages = [
        (stage.downsampling_layer, [_inference_block(layer, path) for layer in stage.layers])
        for stage in body.encoder.stages
    ]

    def predict(pixel_values: mx.array) -> mx.array:
        hidden_states = body.embeddings(pixel_values)
        for downsampling, blocks in stages:
            for layer in downsampling:
                hidden_states = layer(hidden_states)  # the convolution: (N, H, W, C) -> (N, H // 2, W // 2, C')
            for block in blocks:
                hidden_states = block(hidden_states)
        pooler_output = body.pool(hidden_states)  # (N, H, W, C) -> (N, C)
        return pooler_output if classifier is None else classifier(pooler_output)  # (N, C) -> (N, num_labels)

    if mx.default_device() == mx.Device(mx.cpu):
        return predict
    compiled = mx.compile(predict)

    def run(pixel_values: mx.array) -> mx.array:
        check_not_forked()  # of which the compiled graph knows nothing
        return compiled(pixel_values)

    return run


def describe(model: ConvNextV2ForImageClassification, predict: Callable[[mx.array], mx.array]) -> str:
    """What computes a fused model: MLX's version and device, the path of the blocks, and the BLAS on a CPU."""
    from ..runtime import mlx_blas
    from ..runtime.numpy_blas import blas_name
    from .numpy_classifier import NumpyClassifier

    device = mx.default_device().type
    weight = model.convnextv2.embeddings.patch_embeddings.weight
    if isinstance(predict, NumpyClassifier):
        how = f"in numpy on {predict.workers} cores, its BLAS {blas_name()}"
    elif device == mx.cpu:
        how = f"by MLX's operations, its BLAS {mlx_blas.load()}"
    else:
        how = "by our kernels" if dispatch.choose(weight.dtype, len(weight)) == "kernel" else "by MLX's operations"
    version = mx.__version__  # type: ignore[attr-defined]
    return f"MLX {version} on the {device.name.upper()}, blocks {how}"


def _inference_block(layer: ConvNextV2Layer, path: str | None) -> Callable[[mx.array], mx.array]:
    """The block as a function, (N, H, W, C) -> (N, H, W, C)."""
    bias = layer.dwconv.bias
    if layer.act is gelu and dispatch.choose(bias.dtype, bias.size, path) == "kernel":
        return FoldedBlock.of(layer)
    return plain_block(layer)


def plain_block(layer: ConvNextV2Layer) -> Callable[[mx.array], mx.array]:
    """The block in MLX's own operations, (N, H, W, C) -> (N, H, W, C), without drop path in training mode too."""

    def block(hidden_states: mx.array) -> mx.array:
        with dispatch.path("plain"):
            return hidden_states + layer.branch(hidden_states)

    return block
