"""ONNX's file format: a graph of operations as bytes.

The messages and their field numbers are those of onnx.proto (https://github.com/onnx/onnx), in protobuf's encoding
(https://protobuf.dev/programming-guides/encoding). They are written here because the package `onnx` takes tenths of a
second to import, and because a model too large for one message then needs no copy in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .._version import __version__

OPSET = 21  # ONNX 1.16 of 2024, which ONNX Runtime reads from 1.18 on
IR_VERSION = 10  # of the same release
CONTRIB = "com.microsoft"  # ONNX Runtime's own operations
MAX_WEIGHT_BYTES = 2**31 - 2**24  # protobuf's limit for a file, less room for everything but weights
_SMALL_BYTES = 1024  # weights this small stay in the graph: ONNX Runtime wants the axes of a sum there
_ALIGNMENT = 4096  # of weights in a second file, so that they can be mapped
TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int64": 7, "float16": 10}
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7  # types of attributes

Attribute = int | float | str | Sequence[int]


@dataclass(frozen=True)
class Value:
    """An input or output. Each dimension is a size, or the name of one that is free."""

    name: str
    dtype: str
    shape: Sequence[int | str]


@dataclass(frozen=True)
class Node:
    operation: str
    inputs: Sequence[str]
    output: str
    attributes: Mapping[str, Attribute]
    domain: str = ""


@dataclass
class Graph:
    """Nodes in the order in which they are computed, and weights by name."""

    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)


def write(graph: Graph, file: Path, doc: str, metadata: Mapping[str, str]) -> None:
    """Write the file, without a copy of the weights in memory. If they are too large, they go to a file beside it."""
    places: dict[str, tuple[str, int]] = {}
    if sum(weight.nbytes for weight in graph.weights.values()) > MAX_WEIGHT_BYTES:
        beside = file.with_name(f"{file.name}_data")
        with beside.open("wb") as data:
            for name, weight in graph.weights.items():
                if weight.nbytes > _SMALL_BYTES:
                    data.seek(-data.tell() % _ALIGNMENT, 1)
                    places[name] = beside.name, data.tell()
                    data.write(_memory(weight))
    with file.open("wb") as opened:
        opened.writelines(_model(graph, doc, metadata, places))


def encoded(graph: Graph) -> bytes:
    """The file's bytes."""
    return b"".join(_model(graph, "", {}, {}))


Chunks = list[bytes | memoryview]


def _model(graph: Graph, doc: str, metadata: Mapping[str, str], places: Mapping[str, tuple[str, int]]) -> Chunks:
    """A ModelProto. `places` has the file and the offset of each weight that lies elsewhere."""
    about = _int(1, IR_VERSION) + _text(2, "mlx_convnextv2") + _text(3, __version__) + _text(6, doc)
    nodes = [chunk for node in graph.nodes for chunk in _message(1, _node(node))]
    weights = [chunk for name in graph.weights for chunk in _message(5, _tensor(name, graph.weights[name], places))]
    inputs = [chunk for value in graph.inputs for chunk in _message(11, _value(value))]
    outputs = [chunk for value in graph.outputs for chunk in _message(12, _value(value))]
    for domain in sorted({node.domain for node in graph.nodes} | {""}):
        about += _message(8, _text(1, domain) + _int(2, 1 if domain else OPSET))
    for key, value in metadata.items():
        about += _message(14, _text(1, key) + _text(2, value))
    return about + _message(7, nodes + _text(2, "convnextv2") + weights + inputs + outputs)


def _node(node: Node) -> Chunks:
    about = _text(2, node.output) + _text(3, node.output) + _text(4, node.operation) + _text(7, node.domain)
    for name in node.inputs:
        about += _text(1, name)
    for key, value in node.attributes.items():
        about += _message(5, _text(1, key) + _attribute(value))
    return about


def _attribute(value: Attribute) -> Chunks:
    if isinstance(value, str):
        return _text(4, value) + _int(20, _STRING)
    if isinstance(value, int):
        return _int(3, value) + _int(20, _INT)
    if isinstance(value, float):
        return [_key(2, 5) + struct.pack("<f", value), *_int(20, _FLOAT)]
    return [chunk for one in value for chunk in _int(8, one)] + _int(20, _INTS)


def _tensor(name: str, array: np.ndarray, places: Mapping[str, tuple[str, int]]) -> Chunks:
    about = [chunk for size in array.shape for chunk in _int(1, size)]
    about += _int(2, TYPES[array.dtype.name]) + _text(8, name)
    if name not in places:
        return about + _message(9, [_memory(array)])
    file, offset = places[name]
    for key, value in {"location": file, "offset": str(offset), "length": str(array.nbytes)}.items():
        about += _message(13, _text(1, key) + _text(2, value))
    return about + _int(14, 1)  # EXTERNAL


def _value(value: Value) -> Chunks:
    shape: Chunks = []
    for size in value.shape:
        shape += _message(1, _int(1, size) if isinstance(size, int) else _text(2, size))
    tensor = _int(1, TYPES[value.dtype]) + _message(2, shape)
    return _text(1, value.name) + _message(2, _message(1, tensor))


def _memory(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")


def _message(number: int, chunks: Chunks) -> Chunks:
    return [_key(number, 2) + _varint(sum(map(len, chunks))), *chunks]


def _text(number: int, value: str) -> Chunks:
    return _message(number, [value.encode(errors="backslashreplace")])  # half a pair too, as in `write_json`


def _int(number: int, value: int) -> Chunks:
    return [_key(number, 0) + _varint(int(value))]


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, and negative numbers as two's complement."""
    value, out = value & 2**64 - 1, bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
