"""The architecture as a walk over its operations, for every export format.

The walk knows the model and no format; an `Operations` knows a format and no model. Weights are float32 numpy arrays in
PyTorch's layout. Each is made when it is needed, so the model is never held twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model, body_and_classifier
from .folds import bias_behind
from .numpy_block import as_numpy, dense_weight

GRN_EPS = 1e-6


@dataclass(frozen=True)
class Convolution:
    """weight (out, in / groups, kernel height, kernel width), bias (out,); stride and padding by height and width."""

    name: str
    weight: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class Linear:
    """weight (out, in), bias (out,)."""

    name: str
    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the channels: weight and bias (C,)."""

    name: str
    weight: np.ndarray
    bias: np.ndarray
    eps: float


Value = TypeVar("Value")


class Operations(Protocol[Value]):
    """What a format must provide. A Value is a feature map in the format's own layout, or a vector for each image."""

    def convolution(self, x: Value, layer: Convolution) -> Value: ...

    def linear(self, x: Value, layer: Linear) -> Value:
        """A linear layer on the channels of each position."""

    def layer_norm(self, x: Value, layer: Norm) -> Value: ...

    def activation(self, x: Value, name: str, hidden_act: str) -> Value:
        """The activation `hidden_act`, a key of `ACT2FN`."""

    def response_norm(self, x: Value, name: str, weight: np.ndarray, hidden_act: str) -> Value:
        """GRN without its bias, x * (1 + weight * norms), where x is the output of `hidden_act`. weight (D,)."""

    def add(self, x: Value, y: Value, name: str) -> Value: ...

    def pool(self, x: Value, name: str) -> Value:
        """The mean over the positions."""


def pooled_output(
    model: ConvNextV2ForImageClassification | ConvNextV2Model, operations: Operations[Value], pixel_values: Value
) -> Value:
    """From normalised pixel values to the pooled output, (N, hidden_size)."""
    body, _ = body_and_classifier(model, pooled=True)
    hidden_act = body.config.hidden_act
    x = operations.convolution(pixel_values, _convolution("stem.convolution", body.embeddings.patch_embeddings))
    x = operations.layer_norm(x, _norm("stem.layernorm", body.embeddings.layernorm))
    for i, stage in enumerate(body.encoder.stages):
        if stage.downsampling_layer:
            norm, convolution = stage.downsampling_layer
            x = operations.layer_norm(x, _norm(f"stage{i + 1}.downsampling.layernorm", norm))
            x = operations.convolution(x, _convolution(f"stage{i + 1}.downsampling.convolution", convolution))
        for j, block in enumerate(stage.layers):
            name = f"stage{i + 1}.block{j + 1}"
            h = operations.convolution(x, _convolution(f"{name}.dwconv", block.dwconv))
            h = operations.layer_norm(h, _norm(f"{name}.layernorm", block.layernorm))
            h = operations.linear(h, _linear(f"{name}.pwconv1", block.pwconv1))
            h = operations.activation(h, f"{name}.act", hidden_act)
            h = operations.response_norm(h, f"{name}.grn", as_numpy(block.grn.weight).reshape(-1), hidden_act)
            h = operations.linear(h, _linear(f"{name}.pwconv2", block.pwconv2, as_numpy(block.grn.bias).reshape(-1)))
            x = operations.add(x, h, f"{name}.residual")
    return operations.layer_norm(operations.pool(x, "pool"), _norm("layernorm", body.layernorm))


def classifier(model: ConvNextV2ForImageClassification) -> Linear:
    """The layer from the pooled output to logits."""
    return _linear("classifier", model.classifier)


def _convolution(name: str, layer: Any) -> Convolution:
    weight = as_numpy(layer.weight).transpose(0, 3, 1, 2)  # (out, kH, kW, in / groups) -> (out, in / groups, kH, kW)
    stride, padding = tuple(layer.stride), tuple(layer.padding)
    return Convolution(name, np.ascontiguousarray(weight), as_numpy(layer.bias), stride, padding, layer.groups)


def _linear(name: str, layer: Any, before: np.ndarray | None = None) -> Linear:
    """The layer. `before` is a constant added to its input, which is folded into the bias."""
    weight, bias = dense_weight(layer), as_numpy(layer.bias)
    return Linear(name, weight, bias if before is None else bias_behind(weight, bias, before))


def _norm(name: str, layer: Any) -> Norm:
    return Norm(name, as_numpy(layer.weight), as_numpy(layer.bias), layer.eps)
