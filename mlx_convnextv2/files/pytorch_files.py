"""Weights in PyTorch's own files (.bin, .pt, .pth, .pth.tar), read by PyTorch itself (the extra `torch`).

Only tensors and plain containers are ever unpickled (`weights_only=True`): a file cannot run code.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..messages import cut, one_line, some
from .leftovers import is_leftover
from .tensors import DTYPES, Header, Tensor
from .zip_files import is_zip, read_stored_entries

# Where training scripts put the weights. The averaged weights come first, as in timm.
_NESTED_KEYS = (
    *("model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "ema"),
    *("model", "state_dict", "model_state_dict", "module", "net", "network", "student", "teacher"),
)
_MAX_NESTING = 20  # a dictionary may contain itself
_MAX_PICKLE_BYTES = 4_000_000  # names and sizes of huge's tensors and of an optimizer's take 400 kB
_MAX_SHARING = 4  # tensors may share values, as an average and its initial weights do


class _StandIn:
    """Stands in for an object that training scripts store beside the weights: it accepts anything and keeps nothing.

    The real classes are never called, because they would have to trust the file.
    """

    def __init__(self, *_: object):
        pass

    def __setstate__(self, _: object) -> None:
        pass


_STAND_INS: list[Any] = [
    type(name, (_StandIn,), {"__module__": module})  # PyTorch identifies a class by its name and module
    for module, name in (
        *(("argparse", "Namespace"), ("numpy", "dtype"), ("numpy", "ndarray")),
        *((f"numpy.{core}.multiarray", made) for core in ("core", "_core") for made in ("scalar", "_reconstruct")),
    )
]


def read_pytorch_header(file: Path) -> Header:
    """The tensors of a PyTorch file, and the names of everything else in it."""
    tensors, dropped = _load(file)
    names = {str(dtype): dtype for dtype in DTYPES}
    header = {}
    for key, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in names:
            raise ValueError(f"{file} holds {some([key])} as {dtype}: save it as one of {', '.join(DTYPES)} first")
        if not _is_whole(tensor):
            raise ValueError(
                f"{file} does not hold every value of {some([key])}: save it as a dense, contiguous tensor first"
            )
        header[key] = Tensor(file, key, tuple(tensor.shape), DTYPES[dtype])
    if sum(tensor.nbytes for tensor in tensors.values()) > _MAX_SHARING * file.stat().st_size:
        raise ValueError(f"{file} holds tensors that share their values: save each as a tensor of its own first")
    return Header("pt", header, tuple(dropped))


class PyTorchTensors(Mapping[str, mx.array]):
    """The tensors of a PyTorch file as MLX arrays, each copied when it is asked for."""

    def __init__(self, file: Path):
        self._tensors, _ = _load(file)

    def __getitem__(self, key: str) -> mx.array:
        import torch

        tensor = self._tensors[key].detach().contiguous()
        if tensor.dtype == torch.bfloat16:  # numpy has no bfloat16
            return mx.array(tensor.view(torch.uint16).numpy()).view(mx.bfloat16)
        return mx.array(tensor.numpy())

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _load(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The state dictionary of a PyTorch file, memory-mapped if possible, and the names of everything left out."""
    try:
        import torch
    except ImportError:
        raise ValueError(
            f'{file} is a PyTorch file: pip install "mlx-convnextv2[torch]" to read it, or take safetensors weights'
        ) from None
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is truncated or corrupt (it is empty): download it again")
    entries = read_stored_entries(file) if is_zip(file) else None
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's warnings about old files and about itself
            content = _load_legacy(file) if entries is None else _load_zip(file, entries)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a {cut(named[1])}" if named else "more than tensors"
        raise ValueError(
            f"{file} holds {what}, which is never unpickled: save the model's state_dict() instead"
        ) from None
    except Exception as error:  # damaged files raise many kinds of errors
        raise ValueError(f"{file} is truncated or corrupt ({one_line(error)}): download it again") from None
    return _state_dict(content, file)


def _load_zip(file: Path, entries: Mapping[str, int]) -> Any:
    """The content of a file in the format since PyTorch 1.6, with tensors mapped into memory.

    Entries are checked here, because PyTorch assumes that each is as large as the pickle says.
    """
    import torch

    of_tensors = {name: size for name, size in entries.items() if name.split("/")[1:2] == ["data"]}
    if any(size > _MAX_PICKLE_BYTES for name, size in entries.items() if name not in of_tensors):
        raise ValueError(f"more than {_MAX_PICKLE_BYTES} bytes beside the tensors")
    mapped: Counter[int] = Counter()

    def count(storage: Any, _: str) -> Any:
        mapped[storage.nbytes()] += 1
        return storage

    content = torch.load(file, map_location=count, weights_only=True, mmap=True)
    del mapped[0]  # empty entries may be read more than once
    if mapped - Counter(of_tensors.values()):
        raise ValueError("tensors of other sizes than their entries")
    return content


def _load_legacy(file: Path) -> Any:
    """The content of a file from before PyTorch 1.6, copied to memory. Such a file begins with pickles."""
    import torch

    with _FewPickles(io.FileIO(file)) as opened:
        return torch.load(opened, map_location="cpu", weights_only=True)


class _FewPickles(io.BufferedReader):
    """A file that limits the length of its pickles. PyTorch reads the tensors by `readinto`, which has no limit."""

    _left = _MAX_PICKLE_BYTES

    def fileno(self) -> int:
        raise io.UnsupportedOperation  # with a descriptor, PyTorch would first try its tar format of 2016

    def read(self, size: int | None = -1, /) -> bytes:
        self._spend(size)
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(self._left)
        self._spend(len(line))
        return line

    def _spend(self, size: int | None) -> None:
        self._left -= size or 0
        if size is None or size < 0 or self._left < 0:
            raise ValueError(f"pickles of more than {_MAX_PICKLE_BYTES} bytes")


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
    """Whether each value has its own memory, unlike in sparse, expanded or meta tensors."""
    import torch

    dense = tensor.layout == torch.strided and not tensor.is_meta
    return dense and tensor.nbytes <= tensor.untyped_storage().nbytes()
