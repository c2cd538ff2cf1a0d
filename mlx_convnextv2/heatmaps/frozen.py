"""The model with frozen LayerNorms, where a gradient says what a position contributes.

A LayerNorm ignores the scale of its input, so its gradient is orthogonal to the input. Hidden state times gradient is
then zero: at every position before a downsampling layer, and in the sum over positions before the last norm. With their
means and deviations frozen, the norms are affine, and the products add up to about the score. Ali et al. 2022
(arXiv:2202.07304) call this the LN-rule.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Layer, ConvNextV2Model


class FrozenNorms:
    """LayerNorms over the last axis, in float32. Each keeps the mean and deviation of its first input."""

    def __init__(self) -> None:
        self._statistics: dict[int, tuple[mx.array, mx.array]] = {}

    def __call__(self, norm: nn.LayerNorm, x: mx.array) -> mx.array:
        """(..., C) -> (..., C)."""
        x = x.astype(mx.float32)
        if id(norm) not in self._statistics:
            deviation = mx.sqrt(x.var(axis=-1, keepdims=True) + norm.eps)
            self._statistics[id(norm)] = x.mean(axis=-1, keepdims=True), deviation
        mean, deviation = self._statistics[id(norm)]
        return (x - mean) / deviation * norm.weight.astype(mx.float32) + norm.bias.astype(mx.float32)


def frozen_stages(body: ConvNextV2Model, hidden_states: mx.array, stage: int, norms: FrozenNorms) -> mx.array:
    """From a stage's hidden states (the stem's for stage 0) to the last stage's, both (N, H, W, C)."""
    for following in body.encoder.stages[stage:]:
        for layer in following.downsampling_layer:
            hidden_states = norms(layer, hidden_states) if isinstance(layer, nn.LayerNorm) else layer(hidden_states)
        for block in following.layers:
            hidden_states = hidden_states + _frozen_branch(block, hidden_states, norms)
    return hidden_states


def frozen_head(model: ConvNextV2ForImageClassification, last_hidden_state: mx.array, norms: FrozenNorms) -> mx.array:
    """Each position's own logits, (N, h, w, C) -> (N, h, w, num_labels) in float32.

    Their mean over the positions is the model's logits, because the frozen norm and the classifier are affine.
    """
    norm = model.convnextv2.layernorm
    norms(norm, last_hidden_state.astype(mx.float32).mean(axis=(1, 2), keepdims=True))  # sees the pooled output first
    return model.classifier(norms(norm, last_hidden_state)).astype(mx.float32)


def _frozen_branch(block: ConvNextV2Layer, hidden_states: mx.array, norms: FrozenNorms) -> mx.array:
    hidden_states = norms(block.layernorm, block.dwconv(hidden_states))
    hidden_states = block.grn(block.act(block.pwconv1(hidden_states)))  # (N, H, W, C) -> (N, H, W, 4C)
    return block.pwconv2(hidden_states)  # (N, H, W, 4C) -> (N, H, W, C)
