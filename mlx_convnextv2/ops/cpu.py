"""The inference-time form on a CPU, in numpy.

MLX's own CPU operations are scalar outside of Accelerate, while numpy's wheels carry OpenBLAS and SIMD loops, release
Python's lock in them, and can read the memory of an MLX array. An image goes through a block in strips of rows, dealt
to all cores: small, to stay in the cache from the depthwise convolution to the activation, but not so small that the
threads wait for the lock. GRN needs the whole image, so it is where the strips wait for each other.

All arrays are float32. One image is (H, W, C).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..forks import check_not_forked
from ..model import (
    ACT2FN,
    ConvNextV2DropPath,
    ConvNextV2Embeddings,
    ConvNextV2Encoder,
    ConvNextV2ForImageClassification,
    ConvNextV2GRN,
    ConvNextV2Layer,
    ConvNextV2LayerNorm,
    ConvNextV2Model,
    ConvNextV2Stage,
    body_and_classifier,
)
from ..prefetch import available_cpus
from .activations import activate
from .folds import bias_behind
from .plain import FLOAT32_TINY
from .threads import MAX_WORKERS, find_blas, for_each, scratch

RADIUS = 3  # of the depthwise convolution
KERNEL = 2 * RADIUS + 1
STRIP = 1_048_576  # elements of the widest array, (rows, W, 4C), that a strip of rows aims at
LOOP = 512  # elements that an inner loop should have to be worth its start

Rows = tuple[int, int]  # first and one past the last


def as_numpy(array: mx.array) -> np.ndarray:
    """The values in float32: the array's own memory where they are float32 already, else a copy."""
    if array.dtype != mx.float32:
        check_not_forked()
    return np.ascontiguousarray(np.array(array.astype(mx.float32), copy=False))


def dense_weight(layer: nn.Module) -> np.ndarray:
    """The weight of a linear layer in float32, (out, in); that of a quantized one is a copy, 4 bytes a parameter."""
    if isinstance(layer, nn.QuantizedLinear):
        how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        return as_numpy(mx.dequantize(layer.weight, layer.scales, layer.biases, **how))
    return as_numpy(layer.weight)


def depthwise_conv2d(padded: np.ndarray, kernel: np.ndarray, out: np.ndarray) -> None:
    """(H + 6, W + 6, C), the image in a border of zeros -> (H, W, C); kernel (7, 7, C)."""
    height, width, channels = out.shape
    # A loop runs over the channels of `columns` neighbouring positions, with the kernel repeated for each.
    columns = min(width, ceil(LOOP / channels))
    repeated = np.tile(kernel, columns)  # (7, 7, columns * C)
    whole = width - width % columns
    row, column, element = padded.strides
    for first, last, step in ((0, whole, columns), (whole, width, width - whole)):
        if first == last:
            continue
        # The axes: rows and columns of the kernel, rows of the image, steps along a row, step * C elements.
        shape = (height, (last - first) // step, step * channels)
        windows = as_strided(padded[:, first:], (KERNEL, KERNEL, *shape), (row, column, row, step * column, element))
        part = as_strided(out[:, first:], shape, (out.strides[0], step * out.strides[1], element))
        np.einsum("yxhwc,yxc->hwc", windows, repeated[:, :, : step * channels], out=part)


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
        """(H, W, C) -> (H // height, W // width, C'); the rows and columns that fill no patch are left out."""
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
    """A ConvNextV2Layer, with LayerNorm's and GRN's biases folded into those of the linear layers after them."""

    def __init__(self, layer: ConvNextV2Layer, activation: str):
        self.activation = activation
        self.kernel = np.ascontiguousarray(as_numpy(layer.dwconv.weight)[..., 0].transpose(1, 2, 0))  # (7, 7, C)
        self.kernel_bias = as_numpy(layer.dwconv.bias)
        self.norm_weight = as_numpy(layer.layernorm.weight)
        self.eps = layer.layernorm.eps
        self.expand = dense_weight(layer.pwconv1)  # (4C, C)
        self.expand_bias = bias_behind(self.expand, as_numpy(layer.pwconv1.bias), as_numpy(layer.layernorm.bias))
        self.grn_weight = as_numpy(layer.grn.weight).reshape(-1)
        self.project = dense_weight(layer.pwconv2)  # (C, 4C)
        grn_bias = as_numpy(layer.grn.bias).reshape(-1)
        self.project_bias = bias_behind(self.project, as_numpy(layer.pwconv2.bias), grn_bias)

    def expand_rows(self, padded: np.ndarray, hidden: np.ndarray, rows: Rows) -> np.ndarray:
        """From the depthwise convolution to the activation, for some rows.

        padded (H + 6, W + 6, C) -> hidden (H, W, 4C), and the sum of squares of each channel of hidden, (4C,).
        """
        first, last = rows
        height, width, channels = last - first, hidden.shape[1], padded.shape[2]
        convolved = scratch("convolved", height, width, channels)
        depthwise_conv2d(padded[first : last + 2 * RADIUS], self.kernel, out=convolved)
        positions = convolved.reshape(-1, channels)
        np.add(positions, self.kernel_bias, out=positions)
        normalize(positions, self.eps)
        np.multiply(positions, self.norm_weight, out=positions)
        part = hidden[first:last].reshape(height * width, -1)
        linear(positions, self.expand, self.expand_bias, out=part)
        activate(part, self.activation)
        return np.einsum("pc,pc->c", part, part)

    def global_response_norm(self, sum_of_squares: np.ndarray) -> np.ndarray:
        """The factor by which GRN multiplies each channel: (4C,) -> (4C,)."""
        global_features = np.sqrt(np.maximum(sum_of_squares, FLOAT32_TINY))
        return self.grn_weight * (global_features / (global_features.mean() + np.float32(1e-6))) + np.float32(1)

    def project_rows(
        self, hidden: np.ndarray, weight: np.ndarray, factor: np.ndarray | None, padded: np.ndarray, rows: Rows
    ) -> None:
        """pwconv2 and the residual connection, for some rows. hidden (H, W, 4C) is multiplied by factor (4C,)."""
        first, last = rows
        width, channels = hidden.shape[1], padded.shape[2]
        part = hidden[first:last].reshape(-1, hidden.shape[2])
        if factor is not None:
            np.multiply(part, factor, out=part)
        projected = scratch("projected", part.shape[0], channels)
        linear(part, weight, self.project_bias, out=projected)
        residual = padded[RADIUS + first : RADIUS + last, RADIUS : RADIUS + width]
        np.add(residual, projected.reshape(residual.shape), out=residual)

    def __call__(self, padded: np.ndarray, strips: list[Rows], workers: int) -> None:
        """(H + 6, W + 6, C), the image in a border of zeros, in place."""
        height, width, channels = padded.shape[0] - 2 * RADIUS, padded.shape[1] - 2 * RADIUS, padded.shape[2]
        hidden = scratch("hidden", height, width, self.expand.shape[0])
        sums = np.empty((len(strips), hidden.shape[2]), np.float32)

        def expand(i: int) -> None:
            sums[i] = self.expand_rows(padded, hidden, strips[i])

        for_each(expand, range(len(strips)), workers)
        factor = self.global_response_norm(sums.sum(axis=0))
        weight = self.project
        scale_weight = height * width > channels  # whichever has fewer elements, the weight or the activations
        if scale_weight:
            weight = np.multiply(weight, factor, out=scratch("weight", *weight.shape))
        left = None if scale_weight else factor
        for_each(lambda rows: self.project_rows(hidden, weight, left, padded, rows), strips, workers)


def strips_of(height: int, elements: int, workers: int) -> list[Rows]:
    """Rows 0 to height in strips of about the same height, for arrays of this many elements."""
    count = min(height, workers * ceil(elements / STRIP / workers))
    edges = [height * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def zero_border(padded: np.ndarray) -> None:
    padded[:RADIUS] = padded[-RADIUS:] = 0
    padded[:, :RADIUS] = padded[:, -RADIUS:] = 0


class NumpyClassifier:
    """A ConvNextV2ForImageClassification or ConvNextV2Model in inference mode, with the weights that it has now.

    float32 weights are read where they are. float16, bfloat16 and quantized weights are converted to float32
    once, which takes 4 more bytes a parameter. Several threads may call it at once, and a forked process.
    """

    def __init__(self, model: ConvNextV2ForImageClassification | ConvNextV2Model, pooled: bool = False):
        body, classifier = body_and_classifier(model, pooled)
        embeddings, encoder = body.embeddings, body.encoder
        self._check = embeddings.check
        self.blas = find_blas()
        self.dtype = embeddings.patch_embeddings.weight.dtype
        self.stages: list[tuple[PatchProjection, list[Block]]] = []
        for i, stage in enumerate(encoder.stages):
            if i == 0:
                entry = PatchProjection(embeddings.patch_embeddings, norm_after=embeddings.layernorm)
            else:
                norm, convolution = stage.downsampling_layer
                entry = PatchProjection(cast(nn.Conv2d, convolution), norm_before=cast(nn.LayerNorm, norm))
            with self._one_blas_thread():
                self.stages.append((entry, [Block(layer, model.config.hidden_act) for layer in stage.layers]))
        self.norm = LayerNorm.of(body.layernorm)
        self.head = None
        if classifier is not None and not isinstance(classifier, nn.Identity):
            self.head = dense_weight(classifier), as_numpy(classifier.bias)
        self.workers = min(available_cpus(), MAX_WORKERS) if self.blas else 1

    def __call__(self, pixel_values: mx.array) -> mx.array:
        """pixel_values (N, H, W, num_channels) -> logits (N, num_labels); without a classifier the pooled output
        (N, C)."""
        self._check(pixel_values)
        images = as_numpy(pixel_values)
        pooled = np.empty((len(images), self.norm.weight.size), np.float32)
        with self._one_blas_thread():
            # As many images at a time as there are workers, one for each, and all workers for each of those left.
            together = len(images) // self.workers * self.workers

            def pool(i: int, workers: int = 1) -> None:
                pooled[i] = self.pool(images[i], workers)

            for_each(pool, range(together), self.workers)
            with np.errstate(all="ignore"):
                for i in range(together, len(images)):
                    pool(i, self.workers)
                self.norm(pooled)
                logits = pooled if self.head is None else pooled @ self.head[0].T + self.head[1]
        return mx.array(logits, self.dtype)  # which, unlike astype, MLX computes at once

    def _one_blas_thread(self) -> AbstractContextManager[None]:
        return self.blas.one_thread() if self.blas else nullcontext()

    def pool(self, image: np.ndarray, workers: int) -> np.ndarray:
        """One image (H, W, num_channels) -> the last stage's mean over all positions, (C,)."""
        for i, (entry, blocks) in enumerate(self.stages):
            height, width = image.shape[0] // entry.height, image.shape[1] // entry.width
            channels = len(entry.bias)
            padded = scratch(f"padded {i % 2}", height + 2 * RADIUS, width + 2 * RADIUS, channels)
            zero_border(padded)
            inner = padded[RADIUS:-RADIUS, RADIUS:-RADIUS]
            strips = strips_of(height, 4 * height * width * channels, workers)

            def enter(rows: Rows, image: np.ndarray = image, inner: np.ndarray = inner, entry: Any = entry) -> None:
                first, last = rows
                entry(image[first * entry.height : last * entry.height], out=inner[first:last])

            for_each(enter, strips, workers)
            for block in blocks:
                block(padded, strips, workers)
            image = inner
        return image.mean(axis=(0, 1))


def supports(model: nn.Module) -> bool:
    """Whether `NumpyClassifier` computes this model: no layer is of a class or a form of one's own."""
    modules = model.modules()
    blocks = [module for module in modules if isinstance(module, ConvNextV2Layer)]
    depthwise = [block.dwconv for block in blocks]
    return (
        all(type(module) in _KNOWN for module in modules)
        and all({"weight", "bias"} <= module.keys() for module in modules if isinstance(module, _AFFINE))
        and all(block.act is ACT2FN[model.config.hidden_act] for block in blocks)
        and all(
            _projects_patches(module)
            for module in modules
            if isinstance(module, nn.Conv2d) and not any(module is other for other in depthwise)
        )
    )


def _projects_patches(convolution: nn.Conv2d) -> bool:
    form = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    return form == (convolution.weight.shape[1:3], (0, 0), 1, 1)


_AFFINE = (nn.LayerNorm, nn.Conv2d, nn.Linear, nn.QuantizedLinear)
_KNOWN = {
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    ConvNextV2Embeddings,
    ConvNextV2Encoder,
    ConvNextV2Stage,
    ConvNextV2Layer,
    ConvNextV2LayerNorm,
    ConvNextV2GRN,
    ConvNextV2DropPath,
    nn.LayerNorm,
    nn.Conv2d,
    nn.Linear,
    nn.QuantizedLinear,
    nn.Identity,
}
