"""Checkpoints that tests write, change and compare: one helper for each, whatever the source."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import parameters
from safetensors.numpy import load_file, save_file
from source_keys import original_key, timm_key

from mlx_convnextv2 import load
from mlx_convnextv2.checkpoints.mlx_layout import to_pytorch_layout

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 40_000  # makes at least three shards of small_model's 104 kB

# --- comparing ------------------------------------------------------------------------------------------------------


def assert_same_weights(model: nn.Module, expected: nn.Module) -> None:
    """Bit by bit, dtypes and names included."""
    ours, theirs = parameters(model), parameters(expected)
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert mx.array_equal(array.view(mx.uint8), theirs[name].view(mx.uint8)), name


def assert_close(ours: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """The largest difference is at most `tolerance` of the expected values' largest magnitude."""
    ours, expected = (
        np.array(array.astype(mx.float32) if isinstance(array, mx.array) else array, np.float64)
        for array in (ours, expected)
    )
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


def assert_refused(folder: Path, *words: str) -> str:
    """Loading is a ValueError of one line that names the folder and has these words."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - looked at below
        load(folder)
    message = str(error.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message
    return message


def content(path: Path) -> dict[str, bytes]:
    """Every file below a folder, links not followed, and what is in it; of a file, the file itself."""
    files = [path] if path.is_file() else [Path(root) / name for root, _, names in os.walk(path) for name in names]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


def read(file: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """The tensors of a safetensors file as they lie in it, and its metadata."""
    weights, metadata = mx.load(str(file), return_metadata=True)
    mx.eval(weights)
    return cast("dict[str, mx.array]", weights), cast("dict[str, str]", metadata)


# --- changing -------------------------------------------------------------------------------------------------------


def change(folder: Path, edit: Callable[[dict[str, Any]], object], file: str = WEIGHTS) -> None:
    """Read a file's tensors as they lie in it, let `edit` change the dictionary, and write them back."""
    weights, metadata = read(folder / file)
    edit(weights)
    mx.save_safetensors(str(folder / file), weights, metadata)


def rewrite(folder: Path, edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """As `change`, with numpy's types, which are more."""
    save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})


def edit_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def parts(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the bytes behind it."""
    raw = file.read_bytes()
    end = header_end(file)
    return json.loads(raw[8:end]), raw[end:]


def header_end(file: Path) -> int:
    """How many bytes come before the first tensor: the header's length in 8 bytes, and the header."""
    return 8 + int(struct.unpack("<Q", file.read_bytes()[:8])[0])


def write_parts(file: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    encoded = json.dumps(header).encode() if isinstance(header, dict) else header
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


# --- other sources --------------------------------------------------------------------------------------------------


def as_original(model: nn.Module) -> dict[str, np.ndarray]:
    """A model's weights in the layout and under the names of the authors' repository."""
    return {original_key(name): np.array(array) for name, array in to_pytorch_layout(parameters(model)).items()}


def as_timm(model: nn.Module) -> dict[str, np.ndarray]:
    """The same of timm, whose GRN is flat."""
    weights = to_pytorch_layout(parameters(model)).items()
    return {timm_key(name): np.array(array.reshape(-1) if "grn" in name else array) for name, array in weights}
