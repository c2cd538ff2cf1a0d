"""MLX's layers, on request without the random weights of their constructors.

A model draws its own weights or loads them, so those of the constructors would waste time. Also, only the main thread
may use MLX's random state: elsewhere it aborts the process at its exit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from ..ops import dispatch
from ..runtime.forks import check_not_forked

Layer = TypeVar("Layer", bound=nn.Module)

_wants_weights = ContextVar("wants_weights", default=True)


@contextmanager
def no_init_weights() -> Iterator[None]:
    """Models and layers made in this context and thread have lazy zeros as weights, which take no memory."""
    token = _wants_weights.set(False)
    try:
        yield
    finally:
        _wants_weights.reset(token)


def wants_weights() -> bool:
    """Whether a model is to draw its weights: always, except within `no_init_weights`."""
    return _wants_weights.get()


def draw_weights(model: nn.Module, std: float) -> None:
    """Draw the weights of convolutions and linear layers from a normal with deviation `std`, and evaluate them all."""
    check_not_forked()
    in_main_thread = threading.current_thread() is threading.main_thread()
    key = None if in_main_thread else mx.random.key(int.from_bytes(os.urandom(8), "little"))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            key, own_key = (None, None) if key is None else mx.random.split(key)
            module.weight = mx.random.normal(module.weight.shape, key=own_key) * std
    mx.eval(model.parameters())


class Linear(nn.Linear):
    """`nn.Linear`, computed by a path of `ops`."""

    def __call__(self, x: mx.array) -> mx.array:
        return dispatch.linear(x, self.weight, self.bias) if "bias" in self else super().__call__(x)


class PatchConv2d(nn.Conv2d):
    """`nn.Conv2d`, computed by a path of `ops` if patches do not overlap: its stride is the size of its kernel."""

    def __call__(self, x: mx.array) -> mx.array:
        if "bias" in self and projects_patches(self):
            return dispatch.patch_conv2d(x, self.weight, self.bias)
        return super().__call__(x)


def projects_patches(convolution: nn.Conv2d) -> bool:
    """Whether the convolution is a matrix product of separate patches with its weight."""
    form = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
    return form == (convolution.weight.shape[1:3], (0, 0), 1, 1)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A `Linear` layer."""
    if wants_weights():
        return Linear(inputs, outputs)
    layer = _without_constructor(Linear)
    layer.weight = mx.zeros((outputs, inputs))
    layer.bias = mx.zeros((outputs,))
    return layer


def conv2d(
    inputs: int,
    outputs: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: int = 0,
    groups: int = 1,
) -> nn.Conv2d:
    """An `nn.Conv2d`, or a `PatchConv2d` if it has the form of one."""
    layer_class = PatchConv2d if (stride, padding, groups) == (kernel, 0, 1) else nn.Conv2d
    if wants_weights():
        return layer_class(inputs, outputs, kernel, stride, padding, groups=groups)
    layer = _without_constructor(layer_class)
    layer.weight = mx.zeros((outputs, *kernel, inputs // groups))
    layer.bias = mx.zeros((outputs,))
    layer.stride, layer.padding, layer.dilation, layer.groups = stride, (padding, padding), 1, groups
    return layer


def quantized_linear(layer: nn.Linear, group_size: int, bits: int, mode: str) -> nn.QuantizedLinear:
    """The same as `nn.QuantizedLinear.from_linear(layer, ...)`."""
    quantized = _without_constructor(nn.QuantizedLinear)
    quantized.group_size, quantized.bits, quantized.mode = group_size, bits, mode
    quantized.weight, quantized.scales, *biases = mx.quantize(layer.weight, group_size, bits, mode=mode)
    quantized.biases = biases[0] if biases else None
    quantized.freeze()
    quantized.bias = layer.bias
    return quantized


def _without_constructor(layer_class: type[Layer]) -> Layer:
    layer = layer_class.__new__(layer_class)
    nn.Module.__init__(layer)
    return layer
