"""A tensor of a file, not read yet, and the dtypes that a checkpoint may have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file, not read yet: its key in the file, its shape and its dtype.

    `transpose` means that `shape` is in MLX's layout, while the file has the convolution in PyTorch's.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    transpose: bool = False


@dataclass(frozen=True)
class Header:
    """What a file holds: its stated format ("pt" if it states none), its tensors, and the keys that are left out."""

    format: str
    tensors: dict[str, Tensor]
    dropped: tuple[str, ...] = ()


def as_dtype(dtype: str | mx.Dtype | None) -> mx.Dtype | None:
    """float32, float16 or bfloat16 by name or as MLX's type; None stays None; anything else is a ValueError."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and (found is None or found not in DTYPES.values()):
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    return found


def is_floating(dtype: mx.Dtype) -> bool:
    return mx.issubdtype(dtype, mx.floating)


def dtype_name(dtype: mx.Dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)
