"""A model in inference mode as a function, with any implementation of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from ..model.convnextv2 import (
    ConvNextV2ForImageClassification,
    ConvNextV2Layer,
    ConvNextV2Model,
    body_and_classifier,
)
from ..ops import dispatch
from ..runtime.forks import check_not_forked

Function = Callable[[mx.array], mx.array]


def compose(
    model: ConvNextV2ForImageClassification | ConvNextV2Model, blocks: Sequence[Sequence[Function]], pooled: bool
) -> Function:
    """A function from pixel_values (N, H, W, C) to logits (N, num_labels), or to the pooled output.

    `blocks` holds the blocks of each stage. Everything between them is plain MLX.
    """
    body, classifier = body_and_classifier(model, pooled)
    stages = [(stage.downsampling_layer, own) for stage, own in zip(body.encoder.stages, blocks, strict=True)]

    def predict(pixel_values: mx.array) -> mx.array:
        hidden_states = body.embeddings(pixel_values)
        for downsampling, blocks in stages:
            for layer in downsampling:
                hidden_states = layer(hidden_states)  # the convolution: (N, H, W, C) -> (N, H // 2, W // 2, C')
            for block in blocks:
                hidden_states = block(hidden_states)
        pooler_output = body.pool(hidden_states)  # (N, H, W, C) -> (N, C)
        return pooler_output if classifier is None else classifier(pooler_output)  # (N, C) -> (N, num_labels)

    return in_plain_mlx(predict)


def in_plain_mlx(function: Function) -> Function:
    """The function, with all operations of `ops.dispatch` computed by MLX's own."""

    def run(x: mx.array) -> mx.array:
        with dispatch.path("plain"):
            return function(x)

    return run


def compiled(predict: Function) -> Function:
    """`predict` as a graph that MLX compiles, once for each shape."""
    graph = mx.compile(predict)

    def run(pixel_values: mx.array) -> mx.array:
        check_not_forked()  # the compiled graph does not check
        return graph(pixel_values)

    return run


def plain_block(layer: ConvNextV2Layer) -> Function:
    """The block in MLX's own operations, (N, H, W, C) -> (N, H, W, C), without drop path even in training mode."""

    return in_plain_mlx(lambda hidden_states: hidden_states + layer.branch(hidden_states))
