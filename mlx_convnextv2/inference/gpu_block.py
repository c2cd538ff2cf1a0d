"""A block on a GPU: six launches when kernels compute everything but the matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..model.convnextv2 import ConvNextV2Layer
from ..ops import candidates, dispatch, gpu
from ..ops.plain import gelu
from .folds import bias_behind, scale_weight


@dataclass(frozen=True)
class BlockChoice:
    """The candidates, of `ops.candidates`, that compute the parts of a block."""

    depthwise: str
    gelu_grn: str


@dataclass(frozen=True)
class FoldedBlock:
    """A block's weights as its kernels take them. The linear layers' weights are the model's own, not copies.

    Args:
        taps: the depthwise convolution's weight (7, 7, C).
        bias, norm_weight, norm_bias: of the convolution and the LayerNorm, (C,); eps is the LayerNorm's.
        pwconv1: the expanding linear layer, quantized or not.
        grn_weight: (4C,).
        pwconv2: the projecting linear layer, quantized or not.
        residual_bias: (C,) in float32. GRN's bias folded through pwconv2, plus pwconv2's own bias unless pwconv2 is
            quantized.
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
        mx.eval(taps, residual_bias)  # as constants, which no graph computes again
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

    def rule(self, shape: tuple[int, ...]) -> BlockChoice:
        """The static rule for hidden states of the shape (N, H, W, C): kernels, in the form that should be fastest."""
        batch, height, width, channels = shape
        on_weight = not self.is_quantized and scale_weight(batch, height * width, channels)
        return BlockChoice(
            candidates.tile_name(*gpu.tile_of(*shape)[2:]), candidates.ON_WEIGHT if on_weight else candidates.ON_INPUT
        )

    @property
    def is_quantized(self) -> bool:
        """Whether pwconv2 is quantized. Its weight cannot be scaled then."""
        return not isinstance(self.pwconv2, nn.Linear)

    def __call__(self, hidden_states: mx.array, choice: BlockChoice | None = None) -> mx.array:
        """(N, H, W, C) -> (N, H, W, C), by the rule unless a choice is given."""
        batch, _, _, channels = hidden_states.shape
        choice = choice or self.rule(hidden_states.shape)
        normed, residual = candidates.depthwise(choice.depthwise)(
            hidden_states, self.taps, self.bias, self.norm_weight, self.norm_bias, self.eps, self.residual_bias
        )
        normed, residual = (array.reshape(batch, -1, channels) for array in (normed, residual))  # (N, H * W, C)
        hidden = self.pwconv1(normed)  # (N, H * W, C) -> (N, H * W, 4C)
        output = self.project(hidden, residual, choice.gelu_grn)  # (N, H * W, 4C) -> (N, H * W, C)
        return output.reshape(hidden_states.shape)  # (N, H * W, C) -> (N, H, W, C)

    def project(self, hidden: mx.array, residual: mx.array, gelu_grn: str) -> mx.array:
        """GELU, GRN, pwconv2 and the sum with the residual: (N, H * W, 4C) and (N, H * W, C) -> (N, H * W, C)."""
        activations, factors = candidates.gelu_grn(gelu_grn)(hidden, self.grn_weight)  # (N, H * W, 4C), (N, 4C)
        if self.is_quantized:
            return residual + self.pwconv2(activations)
        weight = self.pwconv2.weight
        if factors is not None:
            weight = (weight * factors[:, None]).astype(hidden.dtype)  # (C, 4C) -> (N, C, 4C)
        return mx.addmm(residual, activations, weight.swapaxes(-1, -2))


def is_foldable(layer: ConvNextV2Layer, path: str | None = None) -> bool:
    """Whether our kernels can compute a block, and `dispatch.choose` wants them to."""
    bias = layer.dwconv.bias
    return layer.act is gelu and dispatch.choose(bias.dtype, bias.size, path) == "kernel"
