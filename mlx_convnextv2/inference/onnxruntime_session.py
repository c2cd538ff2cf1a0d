"""A model in ONNX Runtime, which reads MLX's memory."""

from __future__ import annotations

import ctypes
import os
from typing import Any
from weakref import WeakSet

import numpy as np
import onnxruntime

from ..files.onnx_file import CONTRIB, Value, encoded
from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model
from ..runtime.threads import available_cpus
from .onnx_graph import ONNXOperations, inference_graph
from .walk import Convolution, Linear

PIXELS_A_CORE = 224 * 224 // 2  # computed at once; more would not fit the core's cache


class Session:
    """A model in inference mode, with its weights in float32.

    The large weights are inputs of the graph, so ONNX Runtime reads them in the memory that they have. It would hold
    its own weights twice: as they are, and in the order in which its matrix products read them. Inputs are reordered in
    each run. At 224 pixels this takes less time than a graph exported by PyTorch spends elsewhere.
    """

    def __init__(self, model: ConvNextV2ForImageClassification | ConvNextV2Model, pooled: bool):
        self.version: str = onnxruntime.__version__
        self.threads = available_cpus()
        add = _WithWeightsAsInputs()
        graph = inference_graph(model, pooled=pooled, add=add)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads  # ONNX Runtime would count cores that this process may not use
        options.log_severity_level = 4  # errors are raised anyway
        options.enable_mem_pattern = False  # it keeps a block of memory for each shape, and is no faster
        # Threads that wait for work spin between two operations, but no longer: they would take the cores from threads
        # that decode images, and from other programs. Versions without this option spin for about a millisecond.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "50")
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(encoded(graph), options, providers=providers)
        self._arrays = add.arrays  # the values only borrow this memory
        self._weights = {name: _value(array) for name, array in self._arrays.items()}
        (self._output,) = graph.outputs
        _sessions.add(self)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images (N, H, W, C) in float32 -> the graph's output, (N, width) in float32."""
        _, height, width, _ = images.shape
        at_once = max(1, self.threads * PIXELS_A_CORE // (height * width))
        outputs = np.empty((len(images), int(self._output.shape[1])), np.float32)
        for first in range(0, len(images), at_once):
            some = slice(first, first + at_once)
            feed = {**self._weights, "pixel_values": _value(images[some])}
            (output,) = self._session.run_with_ort_values([self._output.name], feed)
            outputs[some] = output.numpy()
        return outputs


class _WithWeightsAsInputs(ONNXOperations):
    """A graph in float32 that takes the weights of linear layers and of dense convolutions as inputs, in `arrays`.

    Other weights are small. ONNX Runtime rearranges those of the depthwise convolutions for its fastest kernels.
    """

    def __init__(self) -> None:
        super().__init__("float32")
        self.arrays: dict[str, np.ndarray] = {}

    def convolution(self, x: str, layer: Convolution) -> str:
        if layer.groups == 1:
            self._input(f"{layer.name}.weight", layer.weight)
        return super().convolution(x, layer)

    def linear(self, x: str, layer: Linear) -> str:
        weight = self._input(f"{layer.name}.weight", layer.weight)  # (out, in), as it lies in memory
        bias = self._weight(layer.bias, f"{layer.name}.bias")
        product = self.node("FusedMatMul", [x, weight], f"{layer.name}.product", domain=CONTRIB, transB=1)
        return self.node("Add", [product, bias], layer.name)

    def _input(self, name: str, values: np.ndarray) -> str:
        self.arrays[name] = np.ascontiguousarray(values)
        self.graph.inputs.append(Value(name, "float32", values.shape))
        return name

    def _weight(self, values: np.ndarray, name: str, dtype: str | None = None) -> str:
        if name not in self.arrays:
            self.graph.weights[name] = values  # damaged ones too: reading the scores finds that
        return name


def _value(array: np.ndarray) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


_sessions: WeakSet[Session] = WeakSet()


def _after_fork() -> None:
    """Never free the parent's sessions in a forked process: it would wait for threads that do not exist there."""
    for session in _sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session._session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
