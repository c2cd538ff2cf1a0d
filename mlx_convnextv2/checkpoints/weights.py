"""The weights of a checkpoint under Hugging Face's names. Each is read when it is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..files.leftovers import unwrap
from ..files.tensors import Tensor, is_floating
from ..files.weight_files import read_header, read_tensors, weight_files
from ..messages import some
from .mlx_layout import TO_MLX, in_mlx_layout
from .schemes import HUGGING_FACE, LAYER_NORM_EPS, Scheme, find_scheme


@dataclass(frozen=True)
class Weights:
    """The headers of a checkpoint's files: its tensors under Hugging Face's names, and whether it is in MLX's layout.

    `dropped` names everything else in the files, such as an optimizer's state or the copy of the weights that is not
    the average.
    """

    path: Path
    scheme: Scheme
    tensors: dict[str, Tensor]
    is_mlx: bool
    dropped: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path) -> Weights:
        """Read the headers of a weights file, or of all weights files in a folder. No safetensors tensor is read.

        Raises:
            FileNotFoundError: there are no weights, or a shard is missing.
            ValueError: a file is truncated or corrupt, or its keys fit no known scheme or several.
        """
        raw: dict[str, Tensor] = {}
        formats = set()
        dropped: list[str] = []
        for file in [path] if path.is_file() else weight_files(path):
            header = read_header(file)
            formats.add(header.format)
            dropped += header.dropped
            doubled = sorted(set(header.tensors) & set(raw))
            if doubled:
                raise ValueError(f"{path} holds {some(doubled)} in more than one file: download it again")
            raw.update(header.tensors)
        if len(formats) > 1:
            raise ValueError(f"{path} mixes files of the formats {some(sorted(formats))}: download it again")
        is_mlx = formats == {"mlx"}
        try:
            bare, copies = unwrap(raw, dropped)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        dropped += copies
        scheme = find_scheme(bare, path)
        tensors: dict[str, Tensor] = {}
        for key, full_key in bare.items():
            name = scheme.rename(key)
            if name.startswith("classifier.") and 0 in raw[full_key].shape:  # the authors' models without a head
                dropped.append(full_key)
                continue
            if name in tensors:
                raise ValueError(f"{path} holds {some([name])} under two names, {some([tensors[name].key, full_key])}")
            tensors[name] = raw[full_key] if is_mlx else in_mlx_layout(name, raw[full_key])
        return cls(path, scheme, tensors, is_mlx, tuple(dropped))

    def read(self, names: Sequence[str], dtype: mx.Dtype | None = None) -> list[tuple[str, mx.array]]:
        """The named tensors in MLX's layout. Floating-point tensors are cast to `dtype` if given.

        With safetensors, each is read when MLX evaluates it.
        """
        files: dict[Path, Mapping[str, mx.array]] = {}
        read = []
        for name in names:
            tensor = self.tensors[name]
            if tensor.file not in files:
                files[tensor.file] = read_tensors(tensor.file)
            array = files[tensor.file][tensor.key]
            if tensor.transpose:
                # (out, in, height, width) -> (out, height, width, in), in that order in memory, where numpy reads it
                array = mx.contiguous(array.transpose(TO_MLX))
            array = array.reshape(tensor.shape)
            if dtype is not None and is_floating(array.dtype):  # quantized weights are integers
                array = array.astype(dtype)
            read.append((name, array))
        return read


def values_from_tensors(weights: Weights) -> dict[str, Any]:
    """The configuration according to the tensors' names and shapes. Only the resolution comes from the file's name."""
    shapes = {name.removeprefix("convnextv2."): tensor.shape for name, tensor in weights.tensors.items()}
    blocks = [re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.weight$", name) for name in shapes]
    positions = [(int(match[1]), int(match[2])) for match in blocks if match]
    stem = shapes.get("embeddings.patch_embeddings.weight", ())
    depths = [0] * len({stage for stage, _ in positions})
    for stage, _ in positions:
        if stage >= len(depths):
            raise ValueError("its tensors skip a stage, so the configuration cannot be told: add a config.json")
        depths[stage] += 1
    if not depths or len(stem) != 4:
        raise ValueError("its tensors do not tell the configuration: add a config.json")
    resolution = re.search(r"_(224|384|512)(?=[_.]|$)", weights.path.name)
    return {
        "num_channels": stem[3],
        "patch_size": stem[1] if stem[1] == stem[2] else [stem[1], stem[2]],
        "num_stages": len(depths),
        "depths": depths,
        "hidden_sizes": [shapes[f"encoder.stages.{stage}.layers.0.dwconv.weight"][0] for stage in range(len(depths))],
        "layer_norm_eps": 1e-12 if weights.scheme is HUGGING_FACE else LAYER_NORM_EPS,
        "image_size": int(resolution[1]) if resolution else 224,
        "num_labels": shapes["classifier.weight"][0] if "classifier.weight" in shapes else 0,
    }
