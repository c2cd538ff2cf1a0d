"""Names and layouts of the weights in each source scheme, and strict loading.

The way of the weights: files -> headers -> names of Hugging Face -> compared with the model's parameters -> read,
brought to MLX's layout and cast, one tensor at a time, when MLX evaluates them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .leftovers import unwrap
from .messages import some
from .tensor_files import Tensor, is_floating, read_header, read_tensors, weight_files


@dataclass(frozen=True)
class Scheme:
    """How one source names its tensors.

    Args:
        name: what to call it.
        marker: the checkpoint is of this scheme when one of its keys matches this pattern.
        renames: (pattern, replacement) pairs that lead to Hugging Face's names; all are applied, in order.
    """

    name: str
    marker: str
    renames: tuple[tuple[str, str], ...]

    def rename(self, key: str) -> str:
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key


HUGGING_FACE = Scheme(
    name="Hugging Face",
    marker=r"(^|\.)embeddings\.patch_embeddings\.",
    renames=(
        (r"\.grn\.gamma$", ".grn.weight"),  # the spelling of Hub files from before 2025
        (r"\.grn\.beta$", ".grn.bias"),
    ),
)
TIMM = Scheme(
    name="timm",
    marker=r"^stem\.0\.",
    renames=(
        (r"^stem\.0\.", "convnextv2.embeddings.patch_embeddings."),
        (r"^stem\.1\.", "convnextv2.embeddings.layernorm."),
        (r"^stages\.(\d+)\.downsample\.", r"convnextv2.encoder.stages.\1.downsampling_layer."),
        (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"convnextv2.encoder.stages.\1.layers.\2."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"(\.layers\.\d+)\.norm\.", r"\1.layernorm."),
        (r"\.mlp\.fc([12])\.", r".pwconv\1."),
        (r"\.mlp\.grn\.", ".grn."),
        (r"^head\.norm\.", "convnextv2.layernorm."),
        (r"^head\.fc\.", "classifier."),
    ),
)
ORIGINAL = Scheme(
    name="the original repository",
    marker=r"^downsample_layers\.0\.",
    renames=(
        (r"^downsample_layers\.0\.0\.", "convnextv2.embeddings.patch_embeddings."),
        (r"^downsample_layers\.0\.1\.", "convnextv2.embeddings.layernorm."),
        (r"^downsample_layers\.(\d+)\.", r"convnextv2.encoder.stages.\1.downsampling_layer."),
        (r"^stages\.(\d+)\.(\d+)\.", r"convnextv2.encoder.stages.\1.layers.\2."),
        (r"(\.layers\.\d+)\.norm\.", r"\1.layernorm."),
        (r"\.grn\.gamma$", ".grn.weight"),
        (r"\.grn\.beta$", ".grn.bias"),
        (r"^norm\.", "convnextv2.layernorm."),
        (r"^head\.", "classifier."),
    ),
)
SCHEMES = (HUGGING_FACE, TIMM, ORIGINAL)

# Convolution weights are (out, in, height, width) in PyTorch and (out, height, width, in) in MLX. Which tensors are
# convolutions is told by their names, never by their shapes.
_CONVOLUTIONS = re.compile(r"\.(patch_embeddings|downsampling_layer\.1|dwconv)\.weight$")
_TO_MLX = (0, 2, 3, 1)
_TO_PYTORCH = (0, 3, 1, 2)
# timm's smaller models write the linear layers as 1x1 convolutions (out, in, 1, 1), and all of them GRN as (4C,).
_LINEAR = re.compile(r"\.pwconv[12]\.weight$")
_GRN = re.compile(r"\.grn\.(weight|bias)$")


@dataclass(frozen=True)
class Checkpoint:
    """The header of a checkpoint: its tensors under Hugging Face's names, and whether it is in MLX's layout.

    `dropped` names what the files hold beside the weights: an optimizer's state, say, or the copy of the weights
    that was not averaged.
    """

    path: Path
    scheme: Scheme
    tensors: dict[str, Tensor]
    is_mlx: bool
    dropped: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the headers of a weights file or of those of a folder; from safetensors no tensor is read.

        Raises:
            FileNotFoundError: there are no weights, or a shard is missing.
            ValueError: a file is truncated or corrupt, or the keys are of no known scheme or of several.
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
            if name.startswith("classifier.") and 0 in raw[full_key].shape:  # the authors' way to have no head
                dropped.append(full_key)
                continue
            if name in tensors:
                raise ValueError(f"{path} holds {some([name])} under two names, {some([tensors[name].key, full_key])}")
            tensors[name] = raw[full_key] if is_mlx else _in_mlx_layout(name, raw[full_key])
        return cls(path, scheme, tensors, is_mlx, tuple(dropped))

    def read(self, names: Sequence[str], dtype: mx.Dtype | None = None) -> list[tuple[str, mx.array]]:
        """The tensors of these names in MLX's layout, those in floating point cast to `dtype` if given.

        From safetensors, each is read when MLX evaluates it.
        """
        files: dict[Path, Mapping[str, mx.array]] = {}
        weights = []
        for name in names:
            tensor = self.tensors[name]
            if tensor.file not in files:
                files[tensor.file] = read_tensors(tensor.file)
            array = files[tensor.file][tensor.key]
            if tensor.transpose:
                array = array.transpose(_TO_MLX)  # (out, in, height, width) -> (out, height, width, in)
            array = array.reshape(tensor.shape)
            if dtype is not None and is_floating(array.dtype):  # quantized weights are whole numbers
                array = array.astype(dtype)
            weights.append((name, array))
        return weights


def find_scheme(keys: Collection[str], path: Path) -> Scheme:
    """The scheme of a checkpoint, recognised from its keys alone; none or several are a ValueError that shows a few."""
    found = [scheme for scheme in SCHEMES if any(re.search(scheme.marker, key) for key in keys)]
    if len(found) == 1:
        return found[0]
    names = " and ".join(scheme.name for scheme in found or SCHEMES)
    if found:
        raise ValueError(f"{path} mixes the tensor names of {names}: {some(sorted(keys))}")
    raise ValueError(
        f"{path} holds no ConvNeXt V2 weights under the names of {names}; its tensors are called {some(sorted(keys))}"
    )


def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    sources: Mapping[str, str],
    left_out: Collection[str] = (),
    dtype: mx.Dtype | None = None,
    described_by: str = "its config.json",
) -> None:
    """Give every parameter of the model its tensor, strictly.

    Args:
        model: takes the weights.
        checkpoint: where they are.
        sources: for each parameter of the model that the checkpoint must hold, the name it has there.
        left_out: names in the checkpoint that the model has no use for.
        dtype: cast to this; None keeps the file's.
        described_by: what the model was built from, for the error.

    Raises:
        ValueError: tensors are missing, left over or of another shape; the message lists them.
    """
    parameters = dict(tree_flatten(model.parameters()))
    missing = sorted(name for name in sources.values() if name not in checkpoint.tensors)
    unexpected = sorted(set(checkpoint.tensors) - set(sources.values()) - set(left_out))
    mis_shaped = []
    for parameter, name in sources.items():
        tensor, expected = checkpoint.tensors.get(name), parameters[parameter]
        if tensor is None:
            continue
        if tensor.shape != tuple(expected.shape):
            mis_shaped.append(f"{name} is {tensor.shape} and should be {tuple(expected.shape)}")
        elif is_floating(tensor.dtype) != is_floating(expected.dtype):
            mis_shaped.append(f"{name} is {tensor.dtype} and should be {expected.dtype}")
    problems = [
        f"{len(names)} {problem}: {some(names)}"
        for problem, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", mis_shaped))
        if names
    ]
    if problems:
        raise ValueError(f"the weights in {checkpoint.path} do not fit {described_by}: {'; '.join(problems)}")
    arrays = checkpoint.read(list(sources.values()), dtype)
    model.load_weights(
        [(parameter, array) for parameter, (_, array) in zip(sources, arrays, strict=True)], strict=False
    )


def to_pytorch_layout(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Weights in MLX's layout -> in PyTorch's: convolutions (out, height, width, in) -> (out, in, height, width)."""
    return {
        name: array.transpose(_TO_PYTORCH) if _CONVOLUTIONS.search(f".{name}") else array
        for name, array in weights.items()
    }


def _in_mlx_layout(name: str, tensor: Tensor) -> Tensor:
    shape = tensor.shape
    if _CONVOLUTIONS.search(f".{name}") and len(shape) == 4:
        return replace(tensor, shape=tuple(shape[axis] for axis in _TO_MLX), transpose=True)
    if _LINEAR.search(name) and len(shape) == 4 and shape[2:] == (1, 1):
        return replace(tensor, shape=shape[:2])
    if _GRN.search(name) and len(shape) == 1:
        return replace(tensor, shape=(1, 1, 1, *shape))
    return tensor
