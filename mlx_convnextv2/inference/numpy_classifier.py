"""The inference-time form on a CPU, in numpy.

Without Accelerate, MLX's own CPU operations are scalar. numpy's wheels carry OpenBLAS and SIMD loops, release Python's
lock in them, and can read the memory of an MLX array. An image goes through a block in strips of rows, which all cores
share. A strip is small enough to stay in the cache from the depthwise convolution to the activation, and large enough
that threads do not wait for the lock. GRN needs the whole image, so the strips wait for each other there.

All arrays are float32. One image is (H, W, C).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from math import ceil
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..model.convnextv2 import (
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
from ..model.layers import Linear, PatchConv2d, projects_patches
from ..runtime.numpy_blas import find_blas
from ..runtime.threads import MAX_WORKERS, available_cpus, for_each, scratch
from .numpy_block import RADIUS, Block, LayerNorm, PatchProjection, Rows, as_numpy, dense_weight

STRIP = 1_048_576  # elements of the widest array, (rows, W, 4C), that a strip of rows aims at


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

    float32 weights are read in place. float16, bfloat16 and quantized weights are converted to float32 once, which
    takes 4 more bytes a parameter. Several threads may call it at once, and so may a forked process.
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
        """pixel_values (N, H, W, num_channels) -> logits (N, num_labels), or the pooled output (N, C) without a
        classifier."""
        self._check(pixel_values)
        images = as_numpy(pixel_values)
        pooled = np.empty((len(images), self.norm.weight.size), np.float32)

        def pool(i: int, workers: int) -> None:
            pooled[i] = self.run_stages(images[i], workers).mean(axis=(0, 1))  # (h, w, C) -> (C,)

        with self._one_blas_thread():
            self._for_each_image(pool, len(images))
            with np.errstate(all="ignore"):
                self.norm(pooled)
                logits = pooled if self.head is None else pooled @ self.head[0].T + self.head[1]
        return mx.array(logits, self.dtype)  # MLX computes this at once, unlike astype

    def last_hidden_state(self, pixel_values: mx.array) -> mx.array:
        """pixel_values (N, H, W, num_channels) -> the last stage's output (N, h, w, C) in float32."""
        self._check(pixel_values)
        images = as_numpy(pixel_values)
        states: list[np.ndarray] = [images] * len(images)

        def run(i: int, workers: int) -> None:
            states[i] = self.run_stages(images[i], workers).copy()  # the scratch array is used again

        with self._one_blas_thread():
            self._for_each_image(run, len(images))
        return mx.array(np.stack(states))

    def _for_each_image(self, function: Callable[[int, int], None], count: int) -> None:
        """Call function(i, workers) for each image: one worker an image while there are enough images to occupy all
        workers, then all workers on each image that is left."""
        together = count // self.workers * self.workers
        for_each(lambda i: function(i, 1), range(together), self.workers)
        with np.errstate(all="ignore"):
            for i in range(together, count):
                function(i, self.workers)

    def _one_blas_thread(self) -> AbstractContextManager[None]:
        return self.blas.one_thread() if self.blas else nullcontext()

    def run_stages(self, image: np.ndarray, workers: int) -> np.ndarray:
        """One image (H, W, num_channels) -> the last stage's output (h, w, C), in a scratch array of this thread."""
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
        return image


def supports(model: nn.Module) -> bool:
    """Whether `NumpyClassifier` can compute this model: every layer is of a class and form that it knows."""
    modules = model.modules()
    blocks = [module for module in modules if isinstance(module, ConvNextV2Layer)]
    depthwise = [block.dwconv for block in blocks]
    return (
        all(type(module) in _KNOWN for module in modules)
        and all({"weight", "bias"} <= module.keys() for module in modules if isinstance(module, _AFFINE))
        and all(block.act is ACT2FN[model.config.hidden_act] for block in blocks)
        and all(
            projects_patches(module)
            for module in modules
            if isinstance(module, nn.Conv2d) and not any(module is other for other in depthwise)
        )
    )


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
    Linear,
    PatchConv2d,
    nn.QuantizedLinear,
    nn.Identity,
}
