"""The configuration and the image processor of a checkpoint, from each source's own files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files.json_files import read_json
from ..files.names import CONFIG_FILE, PREPROCESSOR_FILE
from ..messages import short, some
from ..model.config import ConvNextV2Config, as_pair
from .processor import ConvNextImageProcessor
from .schemes import HUGGING_FACE
from .timm import timm_processor, values_from_timm
from .weights import Weights, values_from_tensors

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def read_config(weights: Weights, **overrides: Any) -> ConvNextV2Config:
    """The configuration of a checkpoint, from its config.json or else from its tensors' names and shapes.

    Args:
        weights: the weights of a folder or a single file. If a file has Hugging Face's names, a config.json beside it
            is read.
        overrides: fields to change.

    Raises:
        FileNotFoundError: a folder has no config.json.
        ValueError: the configuration is of another architecture or makes no sense, or a field is unknown.
    """
    path = _beside(weights, CONFIG_FILE)
    try:
        if path is None:
            with _making_sense("the configuration that its tensors tell"):
                values = values_from_tensors(weights)
        else:
            values = read_json(path)
            if isinstance(values, Mapping) and "architecture" in values and "model_type" not in values:
                with _making_sense("the timm configuration"):
                    values = values_from_timm(values, weights)
        config = ConvNextV2Config.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path or weights.path}: {error}") from None
    unknown = sorted(set(overrides) - set(ConvNextV2Config.__dataclass_fields__))
    if unknown:
        raise ValueError(f"unknown configuration field {some(unknown)}")
    config.update(overrides)
    return config


def read_processor(weights: Weights, config: ConvNextV2Config) -> ConvNextImageProcessor:
    """The image processor of a checkpoint. If it has none, the published checkpoints' is used, with a warning."""
    path = _beside(weights, PREPROCESSOR_FILE)
    if path is not None:
        return ConvNextImageProcessor.from_folder(path.parent)
    config_path = _beside(weights, CONFIG_FILE)
    values = read_json(config_path) if config_path is not None else {}
    if "pretrained_cfg" in values:
        try:
            with _making_sense("pretrained_cfg"):
                return timm_processor(values["pretrained_cfg"])
        except ValueError as error:
            raise ValueError(f"{config_path}: {error}") from None
    size = min(as_pair(config.image_size))
    warnings.warn(
        f"{weights.path} has no {PREPROCESSOR_FILE}: images are prepared as for the published checkpoints, "
        f"at {size} pixels",
        stacklevel=4,
    )
    return ConvNextImageProcessor(size=size, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)


def described_by(weights: Weights) -> str:
    """The origin of a checkpoint's configuration, for an error message."""
    return "its config.json" if _beside(weights, CONFIG_FILE) else "the configuration that their names and shapes tell"


@contextmanager
def _making_sense(what: str) -> Iterator[None]:
    """Turn the errors that nonsense in another library's file causes into a ValueError."""
    try:
        yield
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{what} makes no sense ({type(error).__name__}: {short(str(error))})") from None


def _beside(weights: Weights, name: str) -> Path | None:
    """A JSON file of the checkpoint, or None. A single weights file has one only if it uses Hugging Face's names."""
    if weights.path.is_dir():
        path = weights.path / name
        if name == CONFIG_FILE and not path.is_file():
            raise FileNotFoundError(f"{weights.path} has no {CONFIG_FILE}: give the weights file itself to go without")
    elif weights.scheme is HUGGING_FACE:
        path = weights.path.parent / name
    else:
        return None
    return path if path.is_file() else None
