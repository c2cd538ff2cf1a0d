"""safetensors files, whole or in shards."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open

from ..messages import one_line, some
from .json_files import write_json
from .leftovers import is_leftover
from .names import INDEX_FILE, WEIGHTS_FILE
from .tensors import DTYPES, Header, Tensor

MAX_SHARD_BYTES = 5_000_000_000
_TENSORS_AHEAD = 4
_MAX_HEADER_BYTES = 2_000_000  # huge has 40 kB; safetensors itself takes 100 MB
_FILE_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
_QUANTIZED_DTYPES = {"U32": mx.uint32, "U8": mx.uint8}  # of MLX's quantized weights and their scales


def read_safetensors_header(file: Path) -> Header:
    """What a safetensors file holds, without reading the tensors. A damaged file is a ValueError."""
    with file.open("rb") as opened:  # its error names a file that may not be read
        header_bytes = int.from_bytes(opened.read(8), "little")
    if header_bytes > _MAX_HEADER_BYTES:
        raise ValueError(f"{file} is truncated or corrupt (a header of {header_bytes} bytes): download it again")
    try:
        with safe_open(file, framework="numpy") as header:
            file_format = (header.metadata() or {}).get("format", "pt")
            views = {key: header.get_slice(key) for key in header.keys()}  # noqa: SIM118 - not a mapping
            stored = {key: (tuple(view.get_shape()), view.get_dtype()) for key, view in views.items()}
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or corrupt ({one_line(error)}): download it again") from None
    readable = {**_FILE_DTYPES, **(_QUANTIZED_DTYPES if file_format == "mlx" else {})}
    tensors, dropped = {}, []
    for key, (shape, dtype) in stored.items():
        if is_leftover(key):
            dropped.append(key)
            continue
        if dtype not in readable:
            raise ValueError(f"{file} holds {some([key])} as {dtype}: save it as one of {', '.join(DTYPES)} first")
        tensors[key] = Tensor(file, key, shape, readable[dtype])
    return Header(file_format, tensors, tuple(dropped))


def read_safetensors(file: Path) -> Mapping[str, mx.array]:
    """The tensors of a safetensors file by key. Each is read when MLX evaluates it."""
    try:
        return mx.load(str(file))  # type: ignore[return-value]  # a dict for safetensors
    except RuntimeError as error:
        if "unsupported dtype" in str(error):  # MLX refuses a whole file because of one float64 leftover
            return _MappedTensors(file)
        raise ValueError(f"{file} cannot be read ({one_line(error)}): download it again") from None


class _MappedTensors(Mapping[str, mx.array]):
    """The tensors of a safetensors file whose header has been checked. Each is copied when it is asked for."""

    def __init__(self, file: Path):
        with file.open("rb") as opened:
            header_bytes = int.from_bytes(opened.read(8), "little")
            self._header = json.loads(opened.read(header_bytes))
        self._header.pop("__metadata__", None)
        self._bytes = np.memmap(file, np.uint8, mode="r", offset=8 + header_bytes)

    def __getitem__(self, key: str) -> mx.array:
        entry = self._header[key]
        start, end = entry["data_offsets"]
        dtype = {**_FILE_DTYPES, **_QUANTIZED_DTYPES}[entry["dtype"]]
        return mx.array(self._bytes[start:end]).view(dtype).reshape(entry["shape"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)


def save_weights(
    folder: Path, weights: dict[str, mx.array], metadata: Mapping[str, str], max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write model.safetensors, or an index and shards of at most `max_shard_bytes`. A larger tensor gets its own shard.

    `weights` is emptied: a tensor that nobody else holds is freed as soon as it is written.

    Raises:
        OSError: a file cannot be written, for example for lack of space.
    """
    total = sum(array.nbytes for array in weights.values())
    shards: list[dict[str, mx.array]] = [{}]
    filled = 0
    for name in list(weights):
        array = weights.pop(name)
        if filled + array.nbytes > max_shard_bytes and shards[-1]:
            shards.append({})
            filled = 0
        shards[-1][name] = array
        filled += array.nbytes
    if len(shards) == 1:
        return _save_file(folder / WEIGHTS_FILE, shards[0], metadata)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update(dict.fromkeys(shard, file))
        _save_file(folder / file, shard, metadata)
    write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _save_file(file: Path, weights: dict[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file (https://github.com/huggingface/safetensors, "Format"), one tensor at a time.

    MLX computes the next tensors while one is written. `weights` is emptied.
    """
    names = {dtype: name for name, dtype in {**_FILE_DTYPES, **_QUANTIZED_DTYPES}.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, array in weights.items():
        end = offset + array.nbytes
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin at a multiple of 8 bytes
    with file.open("wb") as opened:
        opened.write(len(encoded).to_bytes(8, "little") + encoded)
        ahead: deque[mx.array] = deque()
        for name in list(weights):
            ahead.append(weights.pop(name).reshape(-1).view(mx.uint8))
            mx.async_eval(ahead[-1])
            if len(ahead) == _TENSORS_AHEAD:
                opened.write(memoryview(ahead.popleft()))  # type: ignore[arg-type]  # mx.array is a buffer
        while ahead:
            opened.write(memoryview(ahead.popleft()))  # type: ignore[arg-type]
