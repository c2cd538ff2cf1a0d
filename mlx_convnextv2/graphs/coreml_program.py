"""Core ML programs in MIL, Core ML's own language, laid out for the Neural Engine.

Feature maps are channels first, (N, C, H, W), and stay so: linear layers are 1x1 convolutions, LayerNorm runs over
axis 1, and nothing is transposed. Everything is computed in one type, "float16" or "float32". The Neural Engine
supports only float16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb  # noqa: N813 - its name in all of Core ML's documentation
from coremltools.converters.mil.mil import Function, Program, get_new_symbol, types

from ..images.processor import ImageProcessor
from ..inference.walk import GRN_EPS, Convolution, Linear, Norm, classifier, pooled_output
from ..model.convnextv2 import ConvNextV2ForImageClassification
from .compression import Compression, Palette

TARGET = ct.target.iOS17  # and macOS 14, of the same year

# A bound on how far an activation goes below 0. This or a channel's maximum bounds the channel's magnitude.
_LOWEST = {
    "gelu": 0.25,
    "gelu_new": 0.25,
    "gelu_pytorch_tanh": 0.25,
    "relu": 0.25,
    "silu": 0.5,
    "swish": 0.5,
    "selu": 2,
}
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def classifying_program(
    model: ConvNextV2ForImageClassification,
    processor: ImageProcessor,
    name: str,
    batches: Sequence[int],
    shape: tuple[int, int],
    *,
    features: bool = False,
    dtype: str = "float16",
    compress: Compression | None = None,
) -> Program:
    """A program from the input `name`, pixels of 0 to 255 (N, C, *shape), to `probabilities` (N, num_labels).

    With `features` it also returns `embedding` (N, hidden_size). Outputs are float32. `compress` says how to store
    linear layers.
    """
    mil = MILOperations(dtype, compress)

    def body(pixels: Any) -> list[Any]:
        pooled = pooled_output(model, mil, mil.normalized(pixels, processor))
        logits = mil.vector(mil.linear(pooled, classifier(model)), "logits")
        # in float32, as `classify` computes scores; 1000 values cost nothing
        outputs = [mb.softmax(x=mb.cast(x=logits, dtype="fp32"), axis=1, name="probabilities")]
        if features:
            outputs.append(mb.cast(x=mil.vector(pooled, "pooler_output"), dtype="fp32", name="embedding"))
        return outputs

    batch = batches[0] if len(batches) == 1 else get_new_symbol()
    return _program(name, (batch, model.config.num_channels, *shape), body)


def logits_program(model: ConvNextV2ForImageClassification, shape: Sequence[int], dtype: str = "float16") -> Program:
    """A program from normalised `pixel_values` of this shape (N, C, H, W) to `logits` (N, num_labels) in float32."""
    mil = MILOperations(dtype)

    def body(pixel_values: Any) -> list[Any]:
        pooled = pooled_output(model, mil, mil.cast(pixel_values))
        logits = mil.vector(mil.linear(pooled, classifier(model)), "classified")
        return [mb.cast(x=logits, dtype="fp32", name="logits")]

    return _program("pixel_values", tuple(shape), body)


def _program(name: str, shape: tuple[Any, ...], body: Callable[[Any], list[Any]]) -> Program:
    with Function({name: mb.placeholder(shape, types.fp32)}, opset_version=TARGET) as function:
        function.set_outputs(body(function.inputs[name]))
    program = Program()
    program.add_function("main", function)
    return program


class MILOperations:
    """`walk.Operations` on MIL variables. They are added to the function that is being built.

    Args:
        dtype: "float16" or "float32".
        compress: how to store the weights of linear layers; None stores them as they are.
    """

    def __init__(self, dtype: str, compress: Compression | None = None):
        self._dtype: Any = np.dtype(dtype).type
        self._compress = compress

    def convolution(self, x: Any, layer: Convolution) -> Any:
        height, width = layer.padding
        return mb.conv(
            x=x,
            weight=self._const(layer.weight),
            bias=self._const(layer.bias),
            strides=layer.stride,
            pad_type="custom",
            pad=(height, height, width, width),
            groups=layer.groups,
            name=_name(layer.name),
        )

    def linear(self, x: Any, layer: Linear) -> Any:
        weight = layer.weight[:, :, None, None]  # (out, in) -> (out, in, 1, 1)
        name = _name(layer.name)
        return mb.conv(x=x, weight=self._weight(weight, f"{name}_weight"), bias=self._const(layer.bias), name=name)

    def layer_norm(self, x: Any, layer: Norm) -> Any:
        gamma, beta, epsilon = self._const(layer.weight), self._const(layer.bias), self._positive(layer.eps)
        return mb.layer_norm(x=x, axes=[1], gamma=gamma, beta=beta, epsilon=epsilon, name=_name(layer.name))

    def activation(self, x: Any, name: str, hidden_act: str) -> Any:
        name = _name(name)
        if hidden_act == "gelu":
            return mb.gelu(x=x, mode="EXACT", name=name)
        if hidden_act in ("gelu_new", "gelu_pytorch_tanh"):
            return mb.gelu(x=x, mode="TANH_APPROXIMATION", name=name)
        if hidden_act in ("silu", "swish"):
            return mb.silu(x=x, name=name)
        if hidden_act == "selu":
            return mb.mul(x=mb.elu(x=x, alpha=self._dtype(_SELU_ALPHA)), y=self._dtype(_SELU_SCALE), name=name)
        return mb.relu(x=x, name=name)

    def response_norm(self, x: Any, name: str, weight: np.ndarray, hidden_act: str) -> Any:
        """GRN that does not overflow in any type or order of summation if its input and output do not.

        GRN divides each channel's norm by the mean of all norms. A common factor cancels, so the root mean square can
        replace the norm. Each channel is divided by a bound of its magnitude before it is squared. No square exceeds 1
        then, and the mean of a channel that matters is not much less than 1 / (H * W). The roots can again take the
        type's whole range, so they are divided by the largest of them before they are summed.

        x (N, D, H, W) is read three times. All other steps work on (N, D, 1, 1) or (N, 1, 1, 1).
        """
        name = _name(name)
        height, width = x.shape[2:]
        most = mb.reduce_max(x=x, axes=[2, 3], keep_dims=True, name=f"{name}_max")
        bound = mb.maximum(x=most, y=self._dtype(_LOWEST[hidden_act]), name=f"{name}_bound")
        factor = mb.real_div(x=self._dtype(1), y=bound, name=f"{name}_reciprocal")
        scaled = mb.mul(x=x, y=factor, name=f"{name}_scaled")  # from -1 to 1
        square = mb.mul(x=scaled, y=scaled, name=f"{name}_square")
        mean_square = mb.reduce_mean(x=square, axes=[2, 3], keep_dims=True, name=f"{name}_mean_square")
        root = mb.mul(x=mb.sqrt(x=mean_square, name=f"{name}_sqrt"), y=bound, name=f"{name}_root")
        largest = mb.reduce_max(x=root, axes=[1], keep_dims=True, name=f"{name}_root_max")
        largest = mb.maximum(x=largest, y=np.finfo(self._dtype).smallest_normal, name=f"{name}_root_bound")
        ratio = mb.real_div(x=root, y=largest, name=f"{name}_ratio")  # from 0 to 1
        mean = mb.reduce_mean(x=ratio, axes=[1], keep_dims=True, name=f"{name}_mean")
        eps = mb.real_div(x=self._positive(GRN_EPS / sqrt(height * width)), y=largest, name=f"{name}_eps")
        norms = mb.real_div(x=ratio, y=mb.add(x=mean, y=eps, name=f"{name}_divisor"), name=f"{name}_norms")
        weighted = mb.mul(x=norms, y=self._const(weight[None, :, None, None]), name=f"{name}_weighted")
        return mb.mul(x=x, y=mb.add(x=weighted, y=self._dtype(1), name=f"{name}_factor"), name=name)

    def add(self, x: Any, y: Any, name: str) -> Any:
        return mb.add(x=x, y=y, name=_name(name))

    def pool(self, x: Any, name: str) -> Any:
        """(N, C, H, W) -> (N, C, 1, 1). Values are divided before they are summed, so that the sum cannot overflow."""
        height, width = x.shape[2:]
        parts = mb.mul(x=x, y=self._dtype(1 / (height * width)), name=f"{name}_parts")
        return mb.reduce_sum(x=parts, axes=[2, 3], keep_dims=True, name=name)

    def cast(self, x: Any) -> Any:
        """Cast to the type of computation."""
        return mb.cast(x=x, dtype="fp16") if self._dtype is np.float16 else x

    def normalized(self, pixels: Any, processor: ImageProcessor) -> Any:
        """Rescale and normalise pixels of 0 to 255 (N, C, H, W) as the processor does."""
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        mean = np.array(processor.image_mean if processor.do_normalize else [0.0])
        std = np.array(processor.image_std if processor.do_normalize else [1.0])
        scale, shift = ((values)[None, :, None, None] for values in (factor / std, -mean / std))
        scaled = mb.mul(x=self.cast(pixels), y=self._const(scale), name="rescaled")
        return mb.add(x=scaled, y=self._const(shift), name="pixel_values")

    def vector(self, x: Any, name: str) -> Any:
        """(N, C, 1, 1) -> (N, C)."""
        return mb.squeeze(x=x, axes=[2, 3], name=name)

    def _weight(self, weight: np.ndarray, name: str) -> Any:
        if self._compress is None:
            return self._const(weight)
        stored = self._compress(weight)
        if isinstance(stored, Palette):
            lut, shape = self._const(stored.values), np.array(stored.shape, np.uint32)
            return mb.constexpr_lut_to_dense(indices=stored.packed, lut=lut, shape=shape, name=name)
        return mb.constexpr_affine_dequantize(
            quantized_data=stored.integers, zero_point=np.int8(0), scale=self._const(stored.scale), axis=0, name=name
        )

    def _const(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            cast = values.astype(self._dtype)
        if not np.isfinite(cast).all():
            what = "are no finite numbers" if not np.isfinite(values).all() else "are too large for float16"
            raise ValueError(f"weights of this model {what}: no program of it would answer")
        return cast

    def _positive(self, value: float) -> Any:
        """A positive number as a constant that stays above 0 in this type."""
        return max(self._dtype(value), np.finfo(self._dtype).smallest_subnormal)


def _name(name: str) -> str:
    return name.replace(".", "_")
