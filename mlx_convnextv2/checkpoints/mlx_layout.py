"""The layouts of weights in PyTorch and in MLX."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import mlx.core as mx

from ..files.tensors import Tensor

# Convolution weights are (out, in, height, width) in PyTorch and (out, height, width, in) in MLX. Names, never shapes,
# tell which tensors are convolutions.
_CONVOLUTIONS = re.compile(r"\.(patch_embeddings|downsampling_layer\.1|dwconv)\.weight$")
TO_MLX = (0, 2, 3, 1)
TO_PYTORCH = (0, 3, 1, 2)
# timm's smaller models store linear layers as 1x1 convolutions (out, in, 1, 1). All its models store GRN as (4C,).
_LINEAR = re.compile(r"\.pwconv[12]\.weight$")
_GRN = re.compile(r"\.grn\.(weight|bias)$")


def to_pytorch_layout(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Weights in MLX's layout -> PyTorch's: convolutions (out, height, width, in) -> (out, in, height, width)."""
    return {
        name: array.transpose(TO_PYTORCH) if _CONVOLUTIONS.search(f".{name}") else array
        for name, array in weights.items()
    }


def in_mlx_layout(name: str, tensor: Tensor) -> Tensor:
    shape = tensor.shape
    if _CONVOLUTIONS.search(f".{name}") and len(shape) == 4:
        return replace(tensor, shape=tuple(shape[axis] for axis in TO_MLX), transpose=True)
    if _LINEAR.search(name) and len(shape) == 4 and shape[2:] == (1, 1):
        return replace(tensor, shape=shape[:2])
    if _GRN.search(name) and len(shape) == 1:
        return replace(tensor, shape=(1, 1, 1, *shape))
    return tensor
