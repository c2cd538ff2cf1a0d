"""Weights in PyTorch's own files (.bin, .pt, .pth), read by PyTorch itself: the extra `torch`.

Only tensors and plain containers are ever unpickled (`weights_only=True`): a file cannot run code.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from .leftovers import is_leftover
from .tensor_files import DTYPES, Header, Tensor, some

# Where training scripts put the weights, the averaged ones first, as timm does.
_NESTED_KEYS = (
    *("model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "ema"),
    *("model", "state_dict", "model_state_dict", "module", "net", "network", "student", "teacher"),
)
_MAX_NESTING = 20  # a dictionary may hold itself


def read_pytorch_header(file: Path) -> Header:
    """The tensors of a PyTorch file, and by name what else it holds."""
    tensors, dropped = _load(file)
    names = {str(dtype): dtype for dtype in DTYPES}
    header = {}
    for key, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in names:
            raise ValueError(f"{file} holds {key} as {dtype}: save it as one of {', '.join(DTYPES)} first")
        if not _is_whole(tensor):
            raise ValueError(f"{file} does not hold every value of {key}: save it as a dense, contiguous tensor first")
        header[key] = Tensor(file, key, tuple(tensor.shape), DTYPES[dtype])
    return Header("pt", header, tuple(dropped))


class PyTorchTensors(Mapping[str, mx.array]):
    """The tensors of a PyTorch file as MLX arrays, each copied when it is asked for."""

    def __init__(self, file: Path):
        self._tensors, _ = _load(file)

    def __getitem__(self, key: str) -> mx.array:
        import torch

        tensor = self._tensors[key].detach().contiguous()
        if tensor.dtype == torch.bfloat16:  # which numpy does not have
            return mx.array(tensor.view(torch.uint16).numpy()).view(mx.bfloat16)
        return mx.array(tensor.numpy())

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _load(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The state dictionary in a PyTorch file, memory-mapped where the file allows, and the names of what it leaves."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f'{file} is a PyTorch file: pip install "mlx-convnextv2[torch]" to read it, or take safetensors weights'
        ) from None
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is truncated or corrupt (it is empty): download it again")
    try:
        # Training scripts store their arguments beside the weights: a Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, of old files and of itself
            try:
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except (RuntimeError, ValueError):  # files from before PyTorch 1.6 cannot be mapped
                content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a {named[1]}" if named else "more than tensors"
        raise ValueError(
            f"{file} holds {what}, which is never unpickled: save the model's state_dict() instead"
        ) from None
    except Exception as error:  # damaged files lead to errors of many kinds
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file} is truncated or corrupt ({told}): download it again") from None
    return _state_dict(content, file)


def _state_dict(content: Any, file: Path) -> tuple[dict[str, Any], list[str]]:
    import torch

    dropped: list[str] = []
    prefix = ""
    while isinstance(content, Mapping):
        nested = next((key for key in _NESTED_KEYS if isinstance(content.get(key), Mapping) and content[key]), None)
        if nested is None:
            break
        if prefix.count(".") == _MAX_NESTING:
            raise ValueError(f"{file} nests dictionaries without end: save the model's state_dict() instead")
        if nested == "student" and isinstance(content.get("teacher"), Mapping):
            raise ValueError(f"{file} holds a student and a teacher: save the state_dict() of the one you want alone")
        dropped += [f"{prefix}{key}" for key in content if key != nested]
        content, prefix = content[nested], f"{prefix}{nested}."
    if not isinstance(content, Mapping):
        raise ValueError(f"{file} holds a {type(content).__name__} and not a dictionary of tensors")
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(value, torch.Tensor) and isinstance(key, str) and not is_leftover(key)
    }
    dropped += [f"{prefix}{key}" for key in content if key not in tensors]
    if not tensors:
        raise ValueError(f"{file} holds no tensors; it has {some([str(key) for key in content])}")
    return tensors, dropped


def _is_whole(tensor: Any) -> bool:
    """Whether each value has a place of its own: not in sparse tensors, those without data and expanded ones."""
    import torch

    dense = tensor.layout == torch.strided and not tensor.is_meta
    return dense and tensor.nbytes <= tensor.untyped_storage().nbytes()
