"""The size of every model's weights in MB, in the precisions of an exported graph: docs/embedding.md's table.

    python figures/model_sizes.py
    python figures/model_sizes.py --graph atto

The table computes nothing: the arrays stay unevaluated, and their shapes and types say how large they are. --graph
says what the graph of a size for one image holds beside the weights, for a CPU and with the kernels for Metal.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, fuse
from mlx_convnextv2.model.config import SIZES
from mlx_convnextv2.model.layers import no_init_weights
from mlx_convnextv2.model.quantization import quantize

PRECISIONS = ("float32", "float16", "8 bits and float16", "4 bits and float16")


def megabytes(size: str, precision: str) -> float:
    """The weights of a size with 1000 classes; "8 bits and float16" is what -q --q-bits 8 --dtype float16 writes."""
    with no_init_weights():
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
    if "float16" in precision:
        model.set_dtype(mx.float16)
    if "bits" in precision:
        quantize(model, int(precision[0]))
    return sum(array.nbytes for _, array in tree_flatten(model.parameters())) / 1e6


def beside_the_weights(size: str, dtype: str, path: str) -> tuple[float, float]:
    """In MB: the weights, and what an exported graph is larger. Nothing is run, so that kernels need no GPU."""
    model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
    model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.mlxfn"
        mx.export_function(str(file), fuse(model, path), mx.zeros((1, 224, 224, 3), getattr(mx, dtype)))
        return weights / 1e6, (file.stat().st_size - weights) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--graph", metavar="SIZE", choices=tuple(SIZES), help="what a graph holds beside the weights")
    args = parser.parse_args()
    if args.graph:
        for dtype in ("float32", "float16"):
            for path in ("plain", "kernel"):
                weights, more = beside_the_weights(args.graph, dtype, path)
                print(f"{args.graph}, {dtype}, {path}: {more:.2f} MB, {more / weights:.1%} of the weights")
        return
    print("| size | " + " | ".join(PRECISIONS) + " |")
    print("|---|" + "---:|" * len(PRECISIONS))
    for size in SIZES:
        print(f"| {size} | " + " | ".join(f"{megabytes(size, precision):,.0f}" for precision in PRECISIONS) + " |")


if __name__ == "__main__":
    main()
