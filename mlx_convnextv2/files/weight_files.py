"""Which files of a folder hold its weights, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from ..messages import short, some
from .json_files import read_json
from .names import EXPORTED, PYTORCH_SUFFIXES, WEIGHTS_FILES
from .safetensors_files import read_safetensors, read_safetensors_header
from .tensors import Header


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder: the first of `WEIGHTS_FILES` that exists, or the shards it names."""
    for name in WEIGHTS_FILES:
        file = folder / name
        if not file.is_file():
            continue
        if file.suffix != ".json":
            return [file]
        files = [folder / shard for shard in shard_names(file)]
        missing = [shard.name for shard in files if not shard.is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} lacks {some(missing)}, which its index names: download it again")
        return files
    for name, kind in EXPORTED.items():
        if (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is {kind}: give the checkpoint here that it was exported from")
    raise FileNotFoundError(f"{folder} has no {' or '.join(WEIGHTS_FILES)}: there are no weights to read")


def shard_names(index: Path) -> list[str]:
    """The file names in a shard index. A name that leads out of its folder is a ValueError."""
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, Mapping) else None
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise ValueError(f'{index} has no "weight_map": download it again')
    names = sorted({str(name) for name in weight_map.values()})
    kind = index.name.split(".")[1]  # model.safetensors.index.json or pytorch_model.bin.index.json
    for name in names:
        if not re.fullmatch(rf"\w[\w.-]*\.{kind}", name):
            raise ValueError(f"{index} names {short(name)}, which is not a {kind} file beside it")
    return names


def read_header(file: Path) -> Header:
    """What a safetensors or PyTorch file holds, without reading the tensors.

    Raises:
        ValueError: the file is truncated or corrupt, holds no tensors, or its extra is not installed.
    """
    if file.name.endswith(PYTORCH_SUFFIXES):
        from .pytorch_files import read_pytorch_header

        return read_pytorch_header(file)
    return read_safetensors_header(file)


def read_tensors(file: Path) -> Mapping[str, mx.array]:
    """The tensors of a file by key, in the file's layout. With safetensors, each is read when MLX evaluates it."""
    if file.name.endswith(PYTORCH_SUFFIXES):
        from .pytorch_files import PyTorchTensors

        return PyTorchTensors(file)
    return read_safetensors(file)
