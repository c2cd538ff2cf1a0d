"""Write a checkpoint folder."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from .._version import __version__
from ..files.atomic_folder import new_folder
from ..files.json_files import write_json
from ..files.names import CARD_FILE, CONFIG_FILE, PREPROCESSOR_FILE
from ..files.safetensors_files import MAX_SHARD_BYTES, save_weights
from ..files.tensors import dtype_name, is_floating
from ..images.processor import ImageProcessor
from ..model.config import ConvNextV2Config
from ..model.convnextv2 import (
    MODEL_CLASSES,
    ConvNextV2ForImageClassification,
    ConvNextV2PreTrainedModel,
)
from ..model.layers import no_init_weights
from ..model.quantization import restore_quantized_layers
from .mlx_layout import to_pytorch_layout
from .model_card import model_card
from .timm import TIMM_KEYS


def save(
    model: ConvNextV2PreTrainedModel,
    path: str | os.PathLike[str],
    processor: ImageProcessor | None = None,
    *,
    format: str = "mlx",
    overwrite: bool = False,
    name: str | None = None,
    base_model: str | None = None,
    licence: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    release: bool = False,
) -> None:
    """Write a checkpoint folder: weights, config.json, preprocessor_config.json and a model card.

    The folder appears whole or not at all. `load` reads the same numbers back. With format="huggingface", so does
    transformers' `from_pretrained`.

    Args:
        model: the model to write, in its parameters' dtype.
        path: the folder, which must not exist.
        processor: an image processor to write beside the model.
        format: "mlx" for MLX's layout, "huggingface" for PyTorch's.
        overwrite: replace an existing checkpoint folder.
        name, base_model, licence: for the model card. The default name is the folder's.
        max_shard_bytes: larger weights are split into shards of this size.
        release: release each of the model's weights once it is written, which saves memory and time. The model is empty
            afterwards.

    Raises:
        FileExistsError: the folder exists.
        OSError: it cannot be written, for example for lack of space.
        ValueError: an unknown format, or a config that no longer fits the model.
    """
    if format not in ("mlx", "huggingface"):
        raise ValueError(f'format must be "mlx" or "huggingface", not {format!r}')
    weights = dict(tree_flatten(model.parameters()))
    if format == "huggingface":
        weights = to_pytorch_layout(weights)
    metadata = {"format": "mlx" if format == "mlx" else "pt", "mlx_convnextv2": __version__}
    dtype = dtype_name(next(array.dtype for array in weights.values() if is_floating(array.dtype)))
    quantized = not all(is_floating(array.dtype) for array in weights.values())
    if format == "huggingface" and quantized:
        raise ValueError("transformers cannot read MLX's quantized weights: save the original checkpoint instead")
    path = os.path.expanduser(path)
    size = sum(array.nbytes for array in weights.values())
    with new_folder(path, overwrite) as folder:
        config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
        if format == "huggingface":
            config = {key: value for key, value in config.items() if key not in TIMM_KEYS}
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
        try:
            write_json(folder / CONFIG_FILE, config)
            _check_described(model, ConvNextV2Config.from_json_file(folder / CONFIG_FILE))
        except (TypeError, ValueError) as error:
            reason = str(error).replace(str(folder), path)
            raise ValueError(f"{path} is not written, because it could not be loaded again: {reason}") from None
        if release:
            model.update(tree_map(lambda _: mx.array([]), model.parameters()))
        save_weights(folder, weights, metadata, max_shard_bytes)
        if processor is not None:
            if format == "huggingface" and processor.crop_mode is not None:
                mode = processor.crop_mode
                warnings.warn(
                    f"transformers does not know crop_mode {mode!r}: it prepares images its own way", stacklevel=2
                )
            write_json(folder / PREPROCESSOR_FILE, processor.to_dict())
        card = model_card(
            model.config,
            name or Path(path).absolute().name,
            dtype=dtype,
            size=size,
            quantized=quantized,
            classifies=isinstance(model, ConvNextV2ForImageClassification) and model.config.num_labels > 0,
            format=format,
            base_model=base_model,
            licence=licence,
        )
        (folder / CARD_FILE).write_text(card, encoding="utf-8")


def _check_described(model: ConvNextV2PreTrainedModel, config: ConvNextV2Config) -> None:
    """Raise a ValueError if a model built from the configuration would have different parameters from this one."""
    ours = _shapes(model)
    with no_init_weights():
        rebuilt = next(known for known in MODEL_CLASSES if isinstance(model, known))(config)
        restore_quantized_layers(rebuilt, ours)
    described = _shapes(rebuilt)
    for name in sorted(ours.keys() | described.keys()):
        if ours.get(name) != described.get(name):
            raise ValueError(
                f"model.config is no longer the model's: {name} is {ours.get(name, 'absent')} and would be "
                f"{described.get(name, 'absent')}. Set the config back, or build a new model from it"
            )


def _shapes(model: ConvNextV2PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in dict(tree_flatten(model.parameters())).items()}
