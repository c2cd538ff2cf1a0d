"""The inference-time form of a model."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from .model import ConvNextV2ForImageClassification


def fuse(model: ConvNextV2ForImageClassification) -> Callable[[mx.array], mx.array]:
    """A function from pixel_values (N, H, W, C) to logits (N, num_labels): the model in inference mode, and no more.

    On a GPU the graph is compiled, once for each shape of pixel_values, with the weights that the model has then. On
    a CPU it is not: `mx.compile` would run a C++ compiler for seconds and the result is no faster.
    """

    def predict(pixel_values: mx.array) -> mx.array:
        was_training = model.training
        model.eval()
        try:
            return model(pixel_values, return_dict=True).logits
        finally:
            model.train(was_training)

    return predict if mx.default_device() == mx.Device(mx.cpu) else mx.compile(predict)
