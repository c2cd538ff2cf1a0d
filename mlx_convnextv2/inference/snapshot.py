"""The weights that a model has now, for an engine that reads them later."""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..model.layers import linear as make_linear, no_init_weights
from .numpy_block import dense_weight


def in_float32(value: Any) -> Any:
    """A copy of a module, with its weights in float32. Arrays that are float32 already are shared.

    Quantized linear layers become dense ones. Setting a weight of the module later does not change the copy.
    """
    if isinstance(value, mx.array):
        return value.astype(mx.float32)
    if isinstance(value, list):
        return [in_float32(one) for one in value]
    if isinstance(value, nn.QuantizedLinear):
        with no_init_weights():
            linear = make_linear(1, 1)
        linear.weight, linear.bias = mx.array(dense_weight(value)), in_float32(value.bias)
        return linear
    if isinstance(value, nn.Module):
        own = copy.copy(value)
        for name, one in value.items():
            own[name] = in_float32(one)
        return own
    return value
