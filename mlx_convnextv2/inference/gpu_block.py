"""A block on a GPU, in six launches."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..model.convnextv2 import (
    ConvNextV2Layer,
)
from ..ops import gpu
from .folds import bias_behind, scale_weight


@dataclass(frozen=True)
class FoldedBlock:
    """A block's weights as its kernels take them. The linear layers' weights are the model's own, not copies.

    Args:
        taps: the depthwise convolution's weight (7, 7, C).
        bias, norm_weight, norm_bias: of the convolution and the LayerNorm, (C,); eps is the LayerNorm's.
        pwconv1: the expanding linear layer, quantized or not.
        grn_weight: (4C,).
        pwconv2: the projecting linear layer, quantized or not.
        residual_bias: what becomes of GRN's bias, and pwconv2's own unless it is quantized, (C,) in float32.
    """

    taps: mx.array
    bias: mx.array
    norm_weight: mx.array
    norm_bias: mx.array
    eps: float
    pwconv1: nn.Module
    grn_weight: mx.array
    pwconv2: nn.Module
    residual_bias: mx.array

    @classmethod
    def of(cls, layer: ConvNextV2Layer) -> FoldedBlock:
        beta = layer.grn.bias.reshape(-1)  # (1, 1, 1, 4C) -> (4C,)
        if isinstance(layer.pwconv2, nn.Linear):
            weight, bias = layer.pwconv2.weight.astype(mx.float32), layer.pwconv2.bias.astype(mx.float32)
            residual_bias = bias_behind(weight, bias, beta.astype(mx.float32))
        else:
            residual_bias = (layer.pwconv2(beta[None])[0] - layer.pwconv2.bias).astype(mx.float32)
        taps = mx.contiguous(gpu.tap_major(layer.dwconv.weight))  # (C, 7, 7, 1) -> (7, 7, C)
        mx.eval(taps, residual_bias)  # constants, so that no graph computes them again
        return cls(
            taps,
            layer.dwconv.bias,
            layer.layernorm.weight,
            layer.layernorm.bias,
            layer.layernorm.eps,
            layer.pwconv1,
            layer.grn.weight.reshape(-1),  # (1, 1, 1, 4C) -> (4C,)
            layer.pwconv2,
            residual_bias,
        )

    def __call__(self, hidden_states: mx.array) -> mx.array:
        """(N, H, W, C) -> (N, H, W, C) in six kernels, two of them matrix products."""
        batch, _, _, channels = hidden_states.shape
        normed, residual = gpu.depthwise_layer_norm_residual(
            hidden_states, self.taps, self.bias, self.norm_weight, self.norm_bias, self.eps, self.residual_bias
        )
        normed, residual = (array.reshape(batch, -1, channels) for array in (normed, residual))  # (N, H * W, C)
        output = self.project(self.pwconv1(normed), residual)  # (N, H * W, C) -> (N, H * W, 4C) -> (N, H * W, C)
        return output.reshape(hidden_states.shape)  # (N, H * W, C) -> (N, H, W, C)

    def project(self, hidden: mx.array, residual: mx.array) -> mx.array:
        """GELU, GRN, pwconv2 and the sum with the residual: (N, H * W, 4C) and (N, H * W, C) -> (N, H * W, C)."""
        foldable = isinstance(self.pwconv2, nn.Linear)
        if foldable and scale_weight(*residual.shape):
            activations, sums = gpu.gelu_sum_of_squares(hidden)
            scale = gpu.grn_scale(sums, self.grn_weight)  # (N, 4C)
            weight = (self.pwconv2.weight * scale[:, None]).astype(hidden.dtype)  # (C, 4C) -> (N, C, 4C)
        else:
            scale = gpu.grn_scale(gpu.sum_of_squares_of_gelu(hidden), self.grn_weight)
            activations = gpu.gelu_scaled(hidden, scale)
            weight = self.pwconv2.weight
        if not foldable:
            return residual + self.pwconv2(activations)
        return mx.addmm(residual, activations, weight.swapaxes(-1, -2))
