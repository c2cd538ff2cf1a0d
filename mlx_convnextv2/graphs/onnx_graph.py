"""ONNX graphs of the architecture.

Feature maps are (N, H, W, C), as in MLX: linear layers and norms work on the last axis, which suits ONNX Runtime. A
convolution transposes to channels first and back. N is free; H and W are free if the graph's input leaves them free.
Sums are computed in float32, in float16 graphs too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .._version import __version__
from ..images.processor import ImageProcessor
from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model, body_and_classifier
from .compression import quantize
from .walk import GRN_EPS, Convolution, Linear, Norm, classifier, pooled_output

OPSET = 21  # ONNX 1.16 of 2024, which ONNX Runtime reads from 1.18 on
IR_VERSION = 10  # of the same release
MAX_WEIGHT_BYTES = 2**31 - 2**24  # protobuf's limit for a file, less room for everything but weights
_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}

Input = tuple[str, str, Sequence[int | str]]  # name, type and shape


def classifying_graph(
    model: ConvNextV2ForImageClassification,
    processor: ImageProcessor,
    shape: tuple[int, int],
    *,
    input: str = "uint8",
    features: bool = False,
    dtype: str = "float32",
    quantized: bool = False,
) -> onnx.ModelProto:
    """A graph from `pixels` of 0 to 255 (N, *shape, C), of type `input`, to `probabilities` (N, num_labels) in float32.

    With `features` it also returns `embedding` (N, hidden_size) in float32. `quantized` stores linear layers in 8 bits.
    """
    add = ONNXOperations(dtype, quantized)
    pooled = pooled_output(model, add, add.normalized("pixels", processor))
    logits = add.cast(add.linear(pooled, classifier(model)), "float32")
    outputs = [(add.node("Softmax", [logits], "probabilities", axis=-1), model.config.num_labels)]
    if features:
        outputs.append((add.cast(pooled, "float32", "embedding"), model.config.hidden_sizes[-1]))
    return add.model(("pixels", input, ("batch", *shape, model.config.num_channels)), outputs)


def inference_graph(
    model: ConvNextV2ForImageClassification | ConvNextV2Model, *, pooled: bool = False
) -> onnx.ModelProto:
    """A graph from normalised `pixel_values` (N, H, W, C), all free but C, to `logits` or `pooler_output`."""
    body, head = body_and_classifier(model, pooled)
    add = ONNXOperations("float32")
    result = pooled_output(model, add, "pixel_values")
    name, width = "pooler_output", body.config.hidden_sizes[-1]
    if head is not None:
        name, width = "logits", model.config.num_labels
        result = add.linear(result, classifier(model))  # type: ignore[arg-type]
    result = add.node("Identity", [result], name)
    shape = ("batch", "height", "width", body.config.num_channels)
    return add.model(("pixel_values", "float32", shape), [(result, width)])


def write(graph: onnx.ModelProto, file: Path, metadata: dict[str, str]) -> None:
    """Write the file and check it. Weights too large for protobuf go to a second file beside it."""
    helper.set_model_props(graph, metadata)
    external = sum(len(tensor.raw_data) for tensor in graph.graph.initializer) > MAX_WEIGHT_BYTES
    onnx.save_model(
        graph, str(file), save_as_external_data=external, all_tensors_to_one_file=True, location=f"{file.name}_data"
    )
    onnx.checker.check_model(str(file), full_check=not external)  # full_check fails on a large file


class ONNXOperations:
    """`walk.Operations` on the names of ONNX values. They are added to a graph.

    Args:
        dtype: "float32" or "float16".
        quantized: whether the weights of linear layers are stored as int8, with a scale for each output.
    """

    def __init__(self, dtype: str, quantized: bool = False):
        self._dtype = dtype
        self._quantized = quantized
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def model(self, takes: Input, outputs: Sequence[tuple[str, int]]) -> onnx.ModelProto:
        """The finished model, from the input to the outputs. Each output has a name, and is (N, width) in float32."""
        name, dtype, shape = takes
        returns = [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["batch", width]) for out, width in outputs]
        graph = helper.make_graph(
            self._nodes,
            "convnextv2",
            [helper.make_tensor_value_info(name, _TYPES[dtype], list(shape))],
            returns,
            self._weights,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="mlx_convnextv2",
            producer_version=__version__,
        )

    def node(self, operation: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operation, inputs, [output], name=output, **attributes))
        return output

    def convolution(self, x: str, layer: Convolution) -> str:
        height, width = layer.padding
        weight = self._weight(layer.weight, f"{layer.name}.weight")
        bias = self._weight(layer.bias, f"{layer.name}.bias")
        first = self.node("Transpose", [x], f"{layer.name}.channels_first", perm=(0, 3, 1, 2))
        options = {"strides": layer.stride, "pads": (height, width, height, width), "group": layer.groups}
        kernel = layer.weight.shape[2:]
        convolved = self.node("Conv", [first, weight, bias], f"{layer.name}.convolved", kernel_shape=kernel, **options)
        return self.node("Transpose", [convolved], layer.name, perm=(0, 2, 3, 1))

    def linear(self, x: str, layer: Linear) -> str:
        bias = self._weight(layer.bias, f"{layer.name}.bias")
        if self._quantized:
            stored = quantize(layer.weight)
            integers = self._initializer(np.ascontiguousarray(stored.integers.T), f"{layer.name}.integers")
            scale = self._weight(stored.scale, f"{layer.name}.scale")
            weight = self.node("DequantizeLinear", [integers, scale], f"{layer.name}.weight", axis=1)
        else:
            weight = self._weight(np.ascontiguousarray(layer.weight.T), f"{layer.name}.weight")  # -> (in, out)
        product = self.node("MatMul", [x, weight], f"{layer.name}.product")
        return self.node("Add", [product, bias], layer.name)

    def layer_norm(self, x: str, layer: Norm) -> str:
        weight = self._weight(layer.weight, f"{layer.name}.weight")
        bias = self._weight(layer.bias, f"{layer.name}.bias")
        return self.node("LayerNormalization", [x, weight, bias], layer.name, axis=-1, epsilon=layer.eps)

    def activation(self, x: str, name: str, hidden_act: str) -> str:
        if hidden_act == "gelu":
            return self.node("Gelu", [x], name)
        if hidden_act in ("gelu_new", "gelu_pytorch_tanh"):
            return self.node("Gelu", [x], name, approximate="tanh")
        if hidden_act in ("silu", "swish"):
            return self.node("Mul", [x, self.node("Sigmoid", [x], f"{name}.sigmoid")], name)
        return self.node({"relu": "Relu", "selu": "Selu"}[hidden_act], [x], name)

    def response_norm(self, x: str, name: str, weight: np.ndarray, hidden_act: str) -> str:
        """GRN. Squares and their sums overflow float16, so both are computed in float32."""
        axes = self._axes(1, 2)
        norm = self.node("ReduceL2", [self.cast(x, "float32"), axes], f"{name}.norm")  # (N, H, W, D) -> (N, 1, 1, D)
        mean = self.node("ReduceMean", [norm, self._axes(3)], f"{name}.mean")
        divisor = self.node("Add", [mean, self._constant(GRN_EPS)], f"{name}.divisor")
        norms = self.node("Div", [norm, divisor], f"{name}.norms")
        weighted = self.node("Mul", [norms, self._weight(weight, f"{name}.weight", "float32")], f"{name}.weighted")
        factor = self.node("Add", [weighted, self._constant(1)], f"{name}.factor")
        return self.node("Mul", [x, self.cast(factor, self._dtype)], name)

    def add(self, x: str, y: str, name: str) -> str:
        return self.node("Add", [x, y], name)

    def pool(self, x: str, name: str) -> str:
        """(N, H, W, C) -> (N, C)."""
        mean = self.node("ReduceMean", [self.cast(x, "float32"), self._axes(1, 2)], f"{name}.mean", keepdims=0)
        return self.cast(mean, self._dtype)

    def normalized(self, pixels: str, processor: ImageProcessor) -> str:
        """Rescale and normalise pixels of 0 to 255 as the processor does."""
        x = self.node("Cast", [pixels], f"{pixels}.float32", to=TensorProto.FLOAT)
        if processor.do_rescale:
            x = self.node("Mul", [x, self._constant(processor.rescale_factor)], "rescaled")
        if processor.do_normalize:
            mean = self._weight(np.array(processor.image_mean), "image_mean", "float32")
            std = self._weight(np.array(processor.image_std), "image_std", "float32")
            x = self.node("Div", [self.node("Sub", [x, mean], "centred"), std], "pixel_values")
        return self.cast(x, self._dtype)

    def cast(self, x: str, dtype: str, name: str | None = None) -> str:
        """`x` in another type. It is `x` itself if everything is float32 and no name is given."""
        if self._dtype == "float32":
            return x if name is None else self.node("Identity", [x], name)
        return self.node("Cast", [x], name or f"{x}.{dtype}", to=_TYPES[dtype])

    def _axes(self, *axes: int) -> str:
        return self._once("axes." + ".".join(map(str, axes)), lambda: np.array(axes, np.int64))

    def _constant(self, value: float) -> str:
        return self._once(f"constant.{value:g}", lambda: np.array(value, np.float32))

    def _once(self, name: str, make: Callable[[], np.ndarray]) -> str:
        if all(tensor.name != name for tensor in self._weights):
            self._weights.append(numpy_helper.from_array(make(), name))
        return name

    def _weight(self, values: np.ndarray, name: str, dtype: str | None = None) -> str:
        with np.errstate(over="ignore"):
            cast = values.astype(dtype or self._dtype)
        if not np.isfinite(cast).all():
            what = "are no finite numbers" if not np.isfinite(values).all() else "are too large for float16"
            raise ValueError(f"weights of this model {what}: no graph of it would answer")
        return self._initializer(cast, name)

    def _initializer(self, values: np.ndarray, name: str) -> str:
        self._weights.append(numpy_helper.from_array(values, name))
        return name
