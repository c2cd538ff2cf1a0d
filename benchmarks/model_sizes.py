"""The size of every model's weights in MB, in the precisions of an exported graph: docs/embedding.md's table.

    python benchmarks/model_sizes.py

Nothing is computed: the arrays stay unevaluated, and their shapes and types say how large they are. A graph is its
weights and about 0.1 MB more for each batch size.
"""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification
from mlx_convnextv2.config import SIZES
from mlx_convnextv2.quantization import quantize

PRECISIONS = ("float32", "float16", "8 bits and float16", "4 bits and float16")


def megabytes(size: str, precision: str) -> float:
    """The weights of a size with 1000 classes; "8 bits and float16" is what -q --q-bits 8 --dtype float16 writes."""
    model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
    if "float16" in precision:
        model.set_dtype(mx.float16)
    if "bits" in precision:
        quantize(model, int(precision[0]))
    return sum(array.nbytes for _, array in tree_flatten(model.parameters())) / 1e6


def main() -> None:
    print("| size | " + " | ".join(PRECISIONS) + " |")
    print("|---|" + "---:|" * len(PRECISIONS))
    for size in SIZES:
        print(f"| {size} | " + " | ".join(f"{megabytes(size, precision):,.0f}" for precision in PRECISIONS) + " |")


if __name__ == "__main__":
    main()
