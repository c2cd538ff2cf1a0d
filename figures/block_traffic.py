"""How many launches, and how many bytes of activations, does a block take: plain, compiled by MLX, and in our kernels?

    python figures/block_traffic.py

This walks the graphs that MLX traces for one block of every stage, and needs no GPU. A launch reads its inputs and
writes its outputs once; views move nothing. A matrix product counts only the arrays that it adds, because its operands
and its result are the same on every path. A convolution's repeated reads, from whatever cache, are not counted but
shown as the halo.

`plain` launches every operation; `compiled` is the least that mx.compile could do: operations on single elements join
those that use their result. The block in our kernels is counted compiled too.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import mlx.core as mx

from mlx_convnextv2.inference.composition import plain_block
from mlx_convnextv2.inference.gpu_block import FoldedBlock
from mlx_convnextv2.model.config import SIZES, ConvNextV2Config
from mlx_convnextv2.model.convnextv2 import ConvNextV2Layer
from mlx_convnextv2.ops import gpu

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
VIEWS = {"Broadcast", "ExpandDims", "Flatten", "Reshape", "Slice", "Squeeze", "Transpose", "Unflatten"}
PRODUCTS = {"Matmul": 0, "AddMM": 1}  # how many of the last inputs are added to the product
ELEMENTWISE = {"Add", "AsType", "Divide", "Erf", "Full", "Maximum", "Multiply", "Sqrt", "Square", "Subtract"}
OTHERS = {"Convolution", "CustomKernel", "Reduce"}


@dataclass(frozen=True)
class Operation:
    """A launch: its name, and the arrays that it reads and writes."""

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Traffic:
    """How many launches a graph takes, and the bytes that they read and write, matrix operands aside."""

    launches: int
    bytes: int


class Graph:
    """The operations of a call as MLX traces them, without the views."""

    def __init__(self, function: Callable[..., Any], *inputs: mx.array):
        self._sizes: dict[str, int] = {}
        self._sources: dict[str, str] = {}  # a view's name -> the name of the array behind it
        self.operations: list[Operation] = []
        self._outputs: set[str] = set()
        mx.export_function(self._visit, function, *inputs)
        self._outputs = {self._sources.get(name, name) for name in self._outputs}

    def _visit(self, node: dict[str, Any]) -> None:
        if node["type"] == "constants":
            self._sizes.update({name: value.nbytes for name, value in node["constants"]})
        for name, shape, dtype in (*node.get("inputs", ()), *node.get("outputs", ())):
            self._sizes.setdefault(name, mx.zeros(shape, dtype).nbytes)
        if node["type"] == "outputs":
            self._outputs = {name for name, *_ in node["outputs"]}
        if node["type"] != "primitive":
            return
        reads = tuple(self._sources.get(name, name) for name, *_ in node["inputs"])
        writes = tuple(name for name, *_ in node["outputs"])
        if node["name"] in VIEWS:
            self._sources.update(dict.fromkeys(writes, reads[0]))
            return
        if node["name"] not in ELEMENTWISE | OTHERS | PRODUCTS.keys():
            raise ValueError(f"the graph has {node['name']}: say in this script whether it moves anything")
        self.operations.append(Operation(node["name"], reads, writes))

    def traffic(self, compiled: bool, with_operands: bool = False) -> Traffic:
        """As traced or compiled; `with_operands` counts the operands and results of matrix products too."""
        operations = self._joined() if compiled else self.operations
        moved = 0
        for operation in operations:
            reads, writes = operation.reads, operation.writes
            if operation.name in PRODUCTS and not with_operands:
                reads, writes = reads[len(reads) - PRODUCTS[operation.name] :], ()
            moved += sum(self._sizes[name] for name in (*set(reads), *writes))
        return Traffic(len(operations), moved)

    def _joined(self) -> list[Operation]:
        """The operations, after each one on single elements has joined its users if they all are such too."""
        users: dict[str, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            for name in operation.reads:
                users[name].append(operation)
        inside: dict[str, set[str]] = {}  # a result that is never written -> the arrays read in its place
        joined = []
        for operation in self.operations:
            reads: set[str] = set()
            for name in operation.reads:
                reads |= inside.get(name, {name})
            if operation.name in ELEMENTWISE and not self._outputs & set(operation.writes):
                (result,) = operation.writes
                if all(user.name in ELEMENTWISE for user in users[result]):
                    inside[result] = reads
                    continue
            if operation.name in PRODUCTS or operation.name in OTHERS:
                joined.append(operation)
            else:
                joined.append(Operation(operation.name, tuple(reads), operation.writes))
        return joined


# On a GPU LayerNorm is one kernel. Traced without a GPU it would be a graph of many operations.
_LAYER_NORM = mx.fast.metal_kernel("layer_norm", ["x", "weight", "bias"], ["y"], "y[0] = x[0] + weight[0] + bias[0];")


def _layer_norm(x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> mx.array:
    return _LAYER_NORM(
        inputs=[x, weight, bias],
        grid=(1, 1, 1),
        threadgroup=(1, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )[0]


def graphs(side: int, channels: int, batch: int, dtype: mx.Dtype) -> tuple[Graph, Graph]:
    """The graphs of one block (N, side, side, C), plain and in kernels."""
    layer = ConvNextV2Layer(ConvNextV2Config(), channels)
    layer.set_dtype(dtype)
    x = mx.zeros((batch, side, side, channels), dtype)
    mx.eval(layer.parameters(), x)
    with mock.patch.object(mx.fast, "layer_norm", _layer_norm):
        plain = Graph(plain_block(layer), x)
    return plain, Graph(FoldedBlock.of(layer), x)


def measure(side: int, channels: int, batch: int, dtype: mx.Dtype) -> dict[str, Traffic]:
    """The traffic of one block (N, side, side, C): plain, compiled and in kernels."""
    plain, kernels = graphs(side, channels, batch, dtype)
    return {"plain": plain.traffic(False), "compiled": plain.traffic(True), "kernels": kernels.traffic(True)}


def halo(side: int, channels: int, batch: int) -> float:
    """How often the depthwise kernel reads each input: the window of a tile over its outputs."""
    _, _, rows, columns = gpu.tile_of(batch, side, side, channels)
    return (rows + 6) * (columns + 6) / (rows * columns)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--resolution", type=int, default=224, help="pixels of an image's side (default: 224)")
    parser.add_argument("--batch", type=int, default=1, help="images (default: 1)")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="default: float16")
    args = parser.parse_args(argv)
    print(f"One block; batch {args.batch}, {args.resolution} x {args.resolution}, {args.dtype}. MB (launches).\n")
    print("| size | stage | pixels | C | plain | compiled | kernels | of plain | of compiled | halo |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for size in SIZES:
        config = ConvNextV2Config.from_size(size)
        for stage, channels in enumerate(config.hidden_sizes):
            side = args.resolution // config.patch_shape[0] // 2**stage
            found = measure(side, channels, args.batch, DTYPES[args.dtype])
            cells = " | ".join(f"{t.bytes / 1e6:.2f} ({t.launches})" for t in found.values())
            ratios = (found["kernels"].bytes / found[other].bytes for other in ("plain", "compiled"))
            percent = " | ".join(f"{ratio:.0%}" for ratio in ratios)
            times = f"{halo(side, channels, args.batch):.1f}"
            print(f"| {size} | {stage + 1} | {side} x {side} | {channels} | {cells} | {percent} | {times} |")


if __name__ == "__main__":
    main()
