"""A block on a CPU, in numpy, in strips of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..model.convnextv2 import (
    ConvNextV2Layer,
)
from ..ops.activations import activate, scale_before
from ..ops.numpy_depthwise import RADIUS, depthwise_conv2d, repeat_kernel
from ..ops.numpy_parts import as_numpy
from ..ops.plain import FLOAT32_TINY
from ..runtime.threads import for_each, scratch
from .folds import bias_behind

Rows = tuple[int, int]  # first and one past the last


def dense_weight(layer: nn.Module) -> np.ndarray:
    """The weight of a linear layer in float32, (out, in). A quantized weight is copied, at 4 bytes a parameter."""
    if isinstance(layer, nn.QuantizedLinear):
        how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        return as_numpy(mx.dequantize(layer.weight, layer.scales, layer.biases, **how))
    return as_numpy(layer.weight)


def normalize(x: np.ndarray, eps: float) -> None:
    """LayerNorm over the last axis without its affine part, in place: (positions, C)."""
    channels = x.shape[1]
    mean = x @ np.full(channels, 1 / channels, np.float32)
    np.subtract(x, mean[:, None], out=x)
    variance = np.einsum("pc,pc->p", x, x) / channels
    np.multiply(x, 1 / np.sqrt(variance + eps, dtype=np.float32)[:, None], out=x)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    """(positions, in) -> (positions, out), weight (out, in)."""
    np.matmul(x, weight.T, out=out)
    np.add(out, bias, out=out)


def linear_channels_first(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    """(in, positions) -> (out, positions), weight (out, in)."""
    np.matmul(weight, x, out=out)
    np.add(out, bias[:, None], out=out)


@dataclass
class LayerNorm:
    weight: np.ndarray
    bias: np.ndarray
    eps: float

    @classmethod
    def of(cls, module: nn.LayerNorm) -> LayerNorm:
        return cls(as_numpy(module.weight), as_numpy(module.bias), module.eps)

    def __call__(self, x: np.ndarray) -> None:
        """In place, over the last axis: (positions, C)."""
        normalize(x, self.eps)
        np.multiply(x, self.weight, out=x)
        np.add(x, self.bias, out=x)


class PatchProjection:
    """A convolution whose stride is its kernel's size, as a product of matrices, with a LayerNorm before or after."""

    def __init__(
        self,
        convolution: nn.Conv2d,
        norm_before: nn.LayerNorm | None = None,
        norm_after: nn.LayerNorm | None = None,
    ):
        channels, self.height, self.width, _ = convolution.weight.shape
        self.weight = as_numpy(convolution.weight).reshape(channels, -1)
        self.bias = as_numpy(convolution.bias)
        self.norm_before = norm_before and LayerNorm.of(norm_before)
        self.norm_after = norm_after and LayerNorm.of(norm_after)

    def __call__(self, image: np.ndarray, out: np.ndarray) -> None:
        """(H, W, C) -> (H // height, W // width, C'). Rows and columns that do not fill a patch are left out."""
        rows, columns, channels = out.shape
        image = image[: rows * self.height, : columns * self.width]
        if self.norm_before:
            normed = scratch("normed", *image.shape)
            np.copyto(normed, image)
            self.norm_before(normed.reshape(-1, image.shape[2]))
            image = normed
        patches = scratch("patches", rows, columns, self.height, self.width, image.shape[2])
        split = image.reshape(rows, self.height, columns, self.width, -1)  # a view, even of a part of a wider image
        np.copyto(patches, split.transpose(0, 2, 1, 3, 4))
        projected = scratch("projected", rows * columns, channels)
        linear(patches.reshape(rows * columns, -1), self.weight, self.bias, out=projected)
        if self.norm_after:
            self.norm_after(projected)
        np.copyto(out, projected.reshape(out.shape))


class Block:
    """A ConvNextV2Layer. LayerNorm's and GRN's biases are folded into the biases of the linear layers after them.

    Where a stage has more channels than positions, the weights are the larger matrices. Then the activations are
    kept as (4C, positions) and not as (positions, 4C): the BLAS reads a weight faster from the left, and GRN's factors
    scale the activations instead of the weight.
    """

    def __init__(self, layer: ConvNextV2Layer, activation: str):
        self.activation = activation
        kernel = as_numpy(layer.dwconv.weight)[..., 0].transpose(1, 2, 0)  # (C, 7, 7, 1) -> (7, 7, C)
        self.kernel = repeat_kernel(kernel)
        self.kernel_bias = as_numpy(layer.dwconv.bias)
        scale = np.float32(scale_before(activation))
        self.norm_weight = as_numpy(layer.layernorm.weight) * scale
        self.eps = layer.layernorm.eps
        self.expand = dense_weight(layer.pwconv1)  # (4C, C)
        bias = bias_behind(self.expand, as_numpy(layer.pwconv1.bias), as_numpy(layer.layernorm.bias))
        self.expand_bias = bias * scale
        self.grn_weight = as_numpy(layer.grn.weight).reshape(-1)
        self.project = dense_weight(layer.pwconv2)  # (C, 4C)
        grn_bias = as_numpy(layer.grn.bias).reshape(-1)
        self.project_bias = bias_behind(self.project, as_numpy(layer.pwconv2.bias), grn_bias)

    def expand_rows(self, padded: np.ndarray, hidden: np.ndarray, rows: Rows, channels_first: bool) -> np.ndarray:
        """Compute some rows, from the depthwise convolution to the activation.

        padded (H + 6, W + 6, C) -> hidden (4C * positions,), and the sum of squares of each channel of hidden, (4C,).
        """
        first, last = rows
        height, width, channels = last - first, padded.shape[1] - 2 * RADIUS, padded.shape[2]
        convolved = scratch("convolved", height, width, channels)
        depthwise_conv2d(padded[first : last + 2 * RADIUS], self.kernel, out=convolved)
        positions = convolved.reshape(-1, channels)
        np.add(positions, self.kernel_bias, out=positions)
        normalize(positions, self.eps)
        np.multiply(positions, self.norm_weight, out=positions)
        if channels_first:
            part = hidden.reshape(len(self.expand), -1)
            linear_channels_first(positions.T, self.expand, self.expand_bias, out=part)
        else:
            part = hidden.reshape(-1, len(self.expand))
            linear(positions, self.expand, self.expand_bias, out=part)
        activate(hidden, self.activation)
        return np.einsum("cp,cp->c" if channels_first else "pc,pc->c", part, part)

    def global_response_norm(self, sum_of_squares: np.ndarray) -> np.ndarray:
        """GRN's factor for each channel: (4C,) -> (4C,)."""
        global_features = np.sqrt(np.maximum(sum_of_squares, FLOAT32_TINY))
        return self.grn_weight * (global_features / (global_features.mean() + np.float32(1e-6))) + np.float32(1)

    def project_rows(self, hidden: np.ndarray, weight: np.ndarray, padded: np.ndarray, rows: Rows) -> None:
        """pwconv2 and the residual connection, for some rows: hidden (4C * positions,), scaled by GRN or to be
        multiplied by a scaled weight."""
        residual = padded[RADIUS + rows[0] : RADIUS + rows[1], RADIUS:-RADIUS]
        projected = scratch("projected", residual.size // len(weight), len(weight))
        linear(hidden.reshape(-1, weight.shape[1]), weight, self.project_bias, out=projected)
        np.add(residual, projected.reshape(residual.shape), out=residual)

    def project_rows_channels_first(
        self, hidden: np.ndarray, factor: np.ndarray, padded: np.ndarray, rows: Rows
    ) -> None:
        """The same, with hidden to be multiplied by factor (4C,)."""
        residual = padded[RADIUS + rows[0] : RADIUS + rows[1], RADIUS:-RADIUS].transpose(2, 0, 1)  # (C, h, W)
        part = hidden.reshape(len(factor), -1)
        np.multiply(part, factor[:, None], out=part)
        projected = scratch("projected", len(residual), part.shape[1])
        linear_channels_first(part, self.project, self.project_bias, out=projected)
        np.add(residual, projected.reshape(residual.shape), out=residual)

    def __call__(self, padded: np.ndarray, strips: list[Rows], workers: int) -> None:
        """Compute in place. padded (H + 6, W + 6, C) is the image in a border of zeros."""
        height, width, channels = padded.shape[0] - 2 * RADIUS, padded.shape[1] - 2 * RADIUS, padded.shape[2]
        channels_first = height * width <= channels
        hidden = scratch("hidden", height, width * len(self.expand))
        parts = [hidden[first:last].reshape(-1) for first, last in strips]
        sums = np.empty((len(strips), len(self.expand)), np.float32)

        def expand(i: int) -> None:
            sums[i] = self.expand_rows(padded, parts[i], strips[i], channels_first)

        for_each(expand, range(len(strips)), workers)
        factor = self.global_response_norm(sums.sum(axis=0))
        project: Callable[[np.ndarray, np.ndarray, np.ndarray, Rows], None] = self.project_rows_channels_first
        scaled = factor
        if not channels_first:
            project = self.project_rows
            scaled = np.multiply(self.project, factor, out=scratch("weight", *self.project.shape))
        for_each(lambda i: project(parts[i], scaled, padded, strips[i]), range(len(strips)), workers)
