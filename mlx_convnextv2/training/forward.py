"""The forward pass of training. It takes drop-path masks as input, and may compute activations twice."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Layer


def draw_drop_path(blocks: int, rate: float, batch: int, random: np.random.Generator) -> np.ndarray:
    """The factor of each block's branch for each image, (blocks, N) float32: 0, or 1 / (1 - the block's rate).

    Rates rise linearly from 0 to `rate` over the blocks (Huang et al. 2016, arXiv:1603.09382). Factors are drawn
    outside the step: `mx.checkpoint` runs a block twice and would draw twice, and a compiled step would draw only once.
    """
    rates = np.linspace(0, rate, blocks)[:, None]
    kept = random.random((blocks, batch)) >= rates
    return (kept / (1 - rates)).astype(np.float32)


def forward(
    model: ConvNextV2ForImageClassification, pixel_values: mx.array, keep: mx.array, checkpoint: bool = False
) -> mx.array:
    """pixel_values (N, H, W, C) -> logits (N, num_labels), as the model computes them in training mode.

    Args:
        keep: (blocks, N) from `draw_drop_path`, or ones for no drop path.
        checkpoint: keep only each block's input, and compute the block again in the backward pass.
    """
    body = model.convnextv2
    hidden_states = body.embeddings(pixel_values)
    index = 0
    for stage in body.encoder.stages:
        for layer in stage.downsampling_layer:
            hidden_states = layer(hidden_states)  # the convolution: (N, H, W, C) -> (N, H // 2, W // 2, C')
        for layer in stage.layers:
            block = nn.utils.checkpoint(layer, _Block(layer)) if checkpoint else _Block(layer)
            hidden_states = block(hidden_states, keep[index])
            index += 1
    return model.classifier(body.pool(hidden_states))  # (N, H, W, C) -> (N, C) -> (N, num_labels)


class _Block:
    """A block with its mask as an input."""

    def __init__(self, layer: ConvNextV2Layer):
        self._layer = layer

    def __call__(self, hidden_states: mx.array, keep: mx.array) -> mx.array:
        """(N, H, W, C) and (N,) -> (N, H, W, C)."""
        scale = keep.astype(hidden_states.dtype)[:, None, None, None]
        return hidden_states + self._layer.branch(hidden_states) * scale
