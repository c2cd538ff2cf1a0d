"""The ONNX graph that is exported: from pixels to probabilities."""

from __future__ import annotations

import numpy as np

from ..files.onnx_file import TYPES, Graph, Value
from ..images.processor import ImageProcessor
from ..inference.onnx_graph import ONNXOperations
from ..inference.walk import Linear, classifier, pooled_output
from ..model.convnextv2 import ConvNextV2ForImageClassification
from .compression import quantize


def classifying_graph(
    model: ConvNextV2ForImageClassification,
    processor: ImageProcessor,
    shape: tuple[int, int],
    *,
    input: str = "uint8",
    features: bool = False,
    dtype: str = "float32",
    quantized: bool = False,
) -> Graph:
    """A graph from `pixels` of 0 to 255 (N, *shape, C), of type `input`, to `probabilities` (N, num_labels) in float32.

    With `features` it also returns `embedding` (N, hidden_size) in float32. `quantized` stores linear layers in 8 bits.
    """
    add = _Operations(dtype, quantized)
    add.graph.inputs.append(Value("pixels", input, ("batch", *shape, model.config.num_channels)))
    pooled = pooled_output(model, add, add.normalized("pixels", processor))
    logits = add.cast(add.linear(pooled, classifier(model)), "float32")
    add.returns(add.node("Softmax", [logits], "probabilities", axis=-1), model.config.num_labels)
    if features:
        add.returns(add.cast(pooled, "float32", "embedding"), model.config.hidden_sizes[-1])
    return add.graph


class _Operations(ONNXOperations):
    """Those of the architecture, and of its input.

    Args:
        dtype: "float32" or "float16".
        quantized: whether the weights of linear layers are stored as int8, with a scale for each output.
    """

    def __init__(self, dtype: str, quantized: bool):
        super().__init__(dtype)
        self._quantized = quantized

    def normalized(self, pixels: str, processor: ImageProcessor) -> str:
        """Rescale and normalise pixels of 0 to 255 as the processor does."""
        x = self.node("Cast", [pixels], f"{pixels}.float32", to=TYPES["float32"])
        if processor.do_rescale:
            x = self.node("Mul", [x, self._constant(processor.rescale_factor)], "rescaled")
        if processor.do_normalize:
            mean = self._weight(np.array(processor.image_mean), "image_mean", "float32")
            std = self._weight(np.array(processor.image_std), "image_std", "float32")
            x = self.node("Div", [self.node("Sub", [x, mean], "centred"), std], "pixel_values")
        return self.cast(x, self._dtype)

    def transposed(self, layer: Linear) -> str:
        if not self._quantized:
            return super().transposed(layer)
        stored = quantize(layer.weight)
        integers = f"{layer.name}.integers"
        self.graph.weights[integers] = np.ascontiguousarray(stored.integers.T)
        scale = self._weight(stored.scale, f"{layer.name}.scale")
        return self.node("DequantizeLinear", [integers, scale], f"{layer.name}.weight", axis=1)
