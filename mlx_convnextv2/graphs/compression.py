"""Weights in fewer bits, as Core ML and ONNX store them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

_ROUNDS = 40  # of k-means; by then it moves values by less than their rounding


@dataclass(frozen=True)
class Palette:
    """Weights as indices into a table of values. Indices of `bits` each are packed into bytes from the lowest bit on.

    `packed` is uint8, `values` is (2**bits,) float32, and `shape` is the weight's.
    """

    packed: np.ndarray
    values: np.ndarray
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Integers:
    """Weights as int8 times a scale for each output channel: integers of the weight's shape, scale (out,) float32."""

    integers: np.ndarray
    scale: np.ndarray


Compressed: TypeAlias = Palette | Integers
Compression: TypeAlias = Callable[[np.ndarray], Compressed]


def compression(bits: int, mode: str | None = None) -> Compression:
    """How to store weights: "affine", the default for 8 bits, or "palette", the default for 6 and 4.

    Raises:
        ValueError: Core ML cannot store weights this way.
    """
    mode = mode or ("affine" if bits == 8 else "palette")
    offered = {"affine": (8,), "palette": (8, 6, 4)}
    if mode not in offered:
        raise ValueError(f"Core ML's quantization modes are {' and '.join(offered)}, not {mode!r}")
    if bits not in offered[mode]:
        raise ValueError(f"Core ML takes bits of {', '.join(map(str, offered[mode]))} in mode {mode}, not {bits}")
    return quantize if mode == "affine" else lambda weight: palettize(weight, bits)


def quantize(weight: np.ndarray) -> Integers:
    """The nearest integers from -127 to 127, with one scale for each output channel. weight (out, ...)."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scale = np.maximum(largest, np.float32(2.0**-17)) / 127  # above 0 in float16 too
    scale = scale.astype(np.float16).astype(np.float32)  # the integers make up for the rounding
    column = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    return Integers(np.clip(np.rint(weight / column), -127, 127).astype(np.int8), scale)


def palettize(weight: np.ndarray, bits: int) -> Palette:
    """Each weight as the nearest of 2**bits values, which k-means chooses for the whole layer (Lloyd 1982)."""
    # float16 has at most 65536 values, so k-means runs on those and not on every weight.
    with np.errstate(over="ignore"):
        halves = weight.astype(np.float16).reshape(-1).view(np.uint16)
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    counts = np.bincount(halves, minlength=2**16)
    present = np.flatnonzero(counts)
    present = present[np.argsort(every[present], kind="stable")]
    values, counts = every[present].astype(np.float64), counts[present].astype(np.float64)
    few = len(values) <= 2**bits
    centres = np.pad(values, (0, 2**bits - len(values)), mode="edge") if few else _means(values, counts, 2**bits)
    centres = centres.astype(np.float16).astype(np.float32)
    index_of = np.zeros(2**16, np.uint8)
    index_of[present] = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
    return Palette(pack(index_of[halves], bits), centres, weight.shape)


def _means(values: np.ndarray, counts: np.ndarray, number: int) -> np.ndarray:
    """k-means in one dimension: sorted distinct values and their counts -> `number` sorted centres."""
    # The centres start at a density that is the values' to the power 1/3, as many centres end (Panter and Dite 1951).
    share = np.cumsum(np.cbrt(counts * np.gradient(values) ** 2))
    centres = np.interp((np.arange(number) + 0.5) / number, share / share[-1], values)
    count_below = np.concatenate([[0], np.cumsum(counts)])
    sum_below = np.concatenate([[0], np.cumsum(counts * values)])
    for _ in range(_ROUNDS):
        edges = np.searchsorted(values, (centres[1:] + centres[:-1]) / 2)
        first, last = np.concatenate([[0], edges]), np.concatenate([edges, [len(values)]])
        count = count_below[last] - count_below[first]
        centres = np.where(count > 0, (sum_below[last] - sum_below[first]) / np.maximum(count, 1), centres)
    return np.sort(centres)


def pack(indices: np.ndarray, bits: int) -> np.ndarray:
    """uint8 indices (n,) below 2**bits -> uint8 (ceil(n * bits / 8),), the first index in the lowest bits."""
    if bits == 8:
        return indices
    each = np.unpackbits(indices[:, None], axis=1, count=bits, bitorder="little")  # (n, bits)
    return np.packbits(each.reshape(-1), bitorder="little")
