"""The inference-time form of a model: the same numbers, by the fastest path of the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from . import ops
from .forks import check_not_forked
from .model import ConvNextV2ForImageClassification, ConvNextV2Layer, ConvNextV2Model, body_and_classifier, gelu
from .ops import gpu
from .ops.folds import bias_behind, scale_weight


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
        path: "plain", "kernel", "numpy" or "auto" for how to compute; `ops.choose` has the rule.
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
    if ops.choose(weight.dtype, len(weight), path) == "numpy":
        from .ops import cpu  # here, so that it costs nothing where it is not used

        if cpu.supports(model):
            return cpu.NumpyClassifier(model, pooled)
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
    from . import blas
    from .ops.cpu import NumpyClassifier
    from .ops.threads import blas_name

    device = mx.default_device().type
    weight = model.convnextv2.embeddings.patch_embeddings.weight
    if isinstance(predict, NumpyClassifier):
        how = f"in numpy on {predict.workers} cores, its BLAS {blas_name()}"
    elif device == mx.cpu:
        how = f"by MLX's operations, its BLAS {blas.load()}"
    else:
        how = "by our kernels" if ops.choose(weight.dtype, len(weight)) == "kernel" else "by MLX's operations"
    version = mx.__version__  # type: ignore[attr-defined]
    return f"MLX {version} on the {device.name.upper()}, blocks {how}"


def _inference_block(layer: ConvNextV2Layer, path: str | None) -> Callable[[mx.array], mx.array]:
    """The block as a function, (N, H, W, C) -> (N, H, W, C)."""
    bias = layer.dwconv.bias
    if layer.act is gelu and ops.choose(bias.dtype, bias.size, path) == "kernel":
        return FoldedBlock.of(layer)
    return lambda hidden_states: hidden_states + layer.branch(hidden_states, "plain")


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
