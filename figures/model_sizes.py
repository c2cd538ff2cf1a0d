"""The size of every model's weights in MB, as graphs and Core ML programs hold them: docs/embedding.md's table.

    python figures/model_sizes.py
    python figures/model_sizes.py --graph atto

The table computes nothing: the arrays stay unevaluated, and their shapes and types say how large they are. --graph
prints how much more than the weights a graph for one image holds, for a CPU and with the kernels for Metal.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, fuse
from mlx_convnextv2.model.config import SIZES
from mlx_convnextv2.model.layers import no_init_weights
from mlx_convnextv2.model.quantization import quantize

PRECISIONS = ("float32", "float16", "8 bits and float16", "4 bits and float16")
CORE_ML = ("Core ML, 8 bits", "6 bits", "4 bits")  # float16 would be as large as a graph's, to a thousandth


def megabytes(size: str, precision: str) -> float:
    """The weights of a size with 1000 classes; "8 bits and float16" is what -q --q-bits 8 --dtype float16 writes."""
    with no_init_weights():
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
    if "float16" in precision:
        model.set_dtype(mx.float16)
    if "bits" in precision:
        quantize(model, int(precision[0]))
    return sum(array.nbytes for _, array in tree_flatten(model.parameters())) / 1e6


def core_ml_megabytes(size: str, bits: int) -> float:
    """The linear layers' weights in so many bits, all other parameters in float16."""
    with no_init_weights():
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
    linear = sum(module.weight.size for _, module in model.named_modules() if isinstance(module, nn.Linear))
    others = sum(array.size for _, array in tree_flatten(model.parameters())) - linear
    return (linear * bits / 8 + others * 2) / 1e6


def beside_the_weights(size: str, dtype: str, path: str) -> tuple[float, float]:
    """In MB: the weights, and how much larger an exported graph is. Nothing runs, so the kernels need no GPU."""
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
    print("| size | " + " | ".join(PRECISIONS + CORE_ML) + " |")
    print("|---|" + "---:|" * len(PRECISIONS + CORE_ML))
    for size in SIZES:
        sizes = [megabytes(size, precision) for precision in PRECISIONS]
        sizes += [core_ml_megabytes(size, bits) for bits in (8, 6, 4)]
        print(f"| {size} | " + " | ".join(f"{value:,.0f}" for value in sizes) + " |")


if __name__ == "__main__":
    main()
