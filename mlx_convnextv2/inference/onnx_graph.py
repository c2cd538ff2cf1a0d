"""ONNX graphs of the architecture, from normalised pixels on.

Feature maps are (N, H, W, C), as in MLX: linear layers and norms work on the last axis, which suits ONNX Runtime. A
convolution transposes to channels first and back. N is free; H and W are free if the graph's input leaves them free.
Sums are computed in float32, in float16 graphs too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.nn as nn
import numpy as np

from ..files.onnx_file import TYPES, Attribute, Graph, Node, Value
from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model, body_and_classifier
from .walk import GRN_EPS, Convolution, Linear, Norm, classifier, pooled_output


def inference_graph(
    model: ConvNextV2ForImageClassification | ConvNextV2Model,
    *,
    pooled: bool = False,
    add: ONNXOperations | None = None,
) -> Graph:
    """A graph from normalised `pixel_values` (N, H, W, C), all free but C, to `logits` or `pooler_output`."""
    add = add or ONNXOperations("float32")
    body, head = body_and_classifier(model, pooled)
    add.graph.inputs.append(Value("pixel_values", "float32", ("batch", "height", "width", body.config.num_channels)))
    result = pooled_output(model, add, "pixel_values")
    name, width = "pooler_output", body.config.hidden_sizes[-1]
    if head is not None and not isinstance(head, nn.Identity):
        layer = classifier(model)  # type: ignore[arg-type]  # only a classifier has a head
        name, width = "logits", len(layer.bias)
        result = add.linear(result, layer)
    add.returns(add.node("Identity", [result], name), width)
    return add.graph


class ONNXOperations:
    """`walk.Operations` on the names of ONNX values. They are added to `graph`.

    Args:
        dtype: "float32" or "float16".
    """

    def __init__(self, dtype: str):
        self.graph = Graph()
        self._dtype = dtype

    def returns(self, output: str, width: int) -> None:
        """Make a value (N, width) in float32 an output of the graph."""
        self.graph.outputs.append(Value(output, "float32", ("batch", width)))

    def node(
        self, operation: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Attribute
    ) -> str:
        self.graph.nodes.append(Node(operation, inputs, output, attributes, domain))
        return output

    def convolution(self, x: str, layer: Convolution) -> str:
        height, width = layer.padding
        weight = self._weight(layer.weight, f"{layer.name}.weight")
        bias = self._weight(layer.bias, f"{layer.name}.bias")
        first = self.node("Transpose", [x], f"{layer.name}.channels_first", perm=(0, 3, 1, 2))
        options: dict[str, Any] = {"strides": layer.stride, "pads": (height, width) * 2, "group": layer.groups}
        kernel = layer.weight.shape[2:]
        convolved = self.node("Conv", [first, weight, bias], f"{layer.name}.convolved", kernel_shape=kernel, **options)
        return self.node("Transpose", [convolved], layer.name, perm=(0, 2, 3, 1))

    def linear(self, x: str, layer: Linear) -> str:
        bias = self._weight(layer.bias, f"{layer.name}.bias")
        product = self.node("MatMul", [x, self.transposed(layer)], f"{layer.name}.product")
        return self.node("Add", [product, bias], layer.name)

    def transposed(self, layer: Linear) -> str:
        """A linear layer's weight as (in, out)."""
        return self._weight(np.ascontiguousarray(layer.weight.T), f"{layer.name}.weight")

    def layer_norm(self, x: str, layer: Norm) -> str:
        weight = self._weight(layer.weight, f"{layer.name}.weight")
        bias = self._weight(layer.bias, f"{layer.name}.bias")
        return self.node("LayerNormalization", [x, weight, bias], layer.name, axis=-1, epsilon=float(layer.eps))

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
        x32 = self.cast(x, "float32")
        squares = self.node("Mul", [x32, x32], f"{name}.squares")
        # One axis at a time, ONNX Runtime adds whole rows: several times as fast as ReduceL2 over both.
        rows = self.node("ReduceSum", [squares, self._axes(2)], f"{name}.rows")  # (N, H, W, D) -> (N, H, 1, D)
        total = self.node("ReduceSum", [rows, self._axes(1)], f"{name}.total")  # -> (N, 1, 1, D)
        norm = self.node("Sqrt", [total], f"{name}.norm")
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

    def cast(self, x: str, dtype: str, name: str | None = None) -> str:
        """`x` in another type. It is `x` itself if everything is float32 and no name is given."""
        if self._dtype == "float32":
            return x if name is None else self.node("Identity", [x], name)
        return self.node("Cast", [x], name or f"{x}.{dtype}", to=TYPES[dtype])

    def _axes(self, *axes: int) -> str:
        return self._once("axes." + ".".join(map(str, axes)), lambda: np.array(axes, np.int64))

    def _constant(self, value: float) -> str:
        return self._once(f"constant.{value:g}", lambda: np.array(value, np.float32))

    def _once(self, name: str, make: Callable[[], np.ndarray]) -> str:
        if name not in self.graph.weights:
            self.graph.weights[name] = make()
        return name

    def _weight(self, values: np.ndarray, name: str, dtype: str | None = None) -> str:
        with np.errstate(over="ignore"):
            cast = values.astype(dtype or self._dtype, copy=False)
        if not np.isfinite(cast).all():
            what = "are no finite numbers" if not np.isfinite(values).all() else "are too large for float16"
            raise ValueError(f"weights of this model {what}: no graph of it would answer")
        self.graph.weights[name] = cast
        return name
