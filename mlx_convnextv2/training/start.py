"""The start of a run: a checkpoint's body, a new head for the classes, and the processor."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from ..checkpoints.hub import fetch
from ..checkpoints.load import load
from ..checkpoints.model_card import read_base_model, read_licence
from ..checkpoints.processor import ConvNextImageProcessor
from ..files.tensors import is_floating
from ..messages import short
from ..model.config import ConvNextV2Config
from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model
from ..model.layers import linear, no_init_weights
from .options import Options

Start = tuple[ConvNextV2ForImageClassification, ConvNextImageProcessor]


@dataclass(frozen=True)
class Origin:
    """Where the weights came from, and their licence."""

    base_model: str | None = None
    licence: str | None = None


def open_start(
    model: str | os.PathLike[str] | Start, classes: Sequence[str], options: Options
) -> tuple[ConvNextV2ForImageClassification, ConvNextImageProcessor, Origin]:
    """The model with a new head for the classes, its processor at the size of the options, and their origin.

    With `full`, all weights are cast to float32. Otherwise the body takes the options' dtype, or keeps its own. A
    model that is given is changed.

    Raises:
        FileNotFoundError, OSError, ValueError: as `load`. Quantized weights with `full` are also a ValueError.
    """
    origin = Origin()
    if isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*: train it$")  # this run trains it
            loaded, processor = load(
                name,
                labels=classes,
                dtype="float32" if options.full else options.dtype,
                revision=options.revision,
            )
        folder = fetch(name, revision=options.revision)
        if folder.is_dir():
            origin = Origin(read_base_model(folder) or (None if Path(name).exists() else name), read_licence(folder))
    else:
        given, processor = model
        if not isinstance(given, ConvNextV2ForImageClassification | ConvNextV2Model):
            raise ValueError(f"a {type(given).__name__} cannot be trained to classify: load it as a ConvNextV2Model")
        loaded = with_new_head(given, classes)
    if options.full:
        arrays = dict(tree_flatten(loaded.parameters()))
        if not all(is_floating(array.dtype) for array in arrays.values()):
            raise ValueError(
                "quantized weights cannot be trained: leave --full out, or dequantize them first (convert --dequantize)"
            )
        loaded.update(tree_map(lambda array: array.astype(mx.float32), loaded.parameters()))
    mx.eval(loaded.parameters())
    return loaded, sized(processor, options), origin


def with_new_head(
    model: ConvNextV2ForImageClassification | ConvNextV2Model, classes: Sequence[str]
) -> ConvNextV2ForImageClassification:
    """The model with a head of zeros for these classes. The body is shared, not copied."""
    with no_init_weights():
        config = ConvNextV2Config.from_dict(model.config.to_dict())
        config.update({"id2label": list(classes), "problem_type": None})
        result = ConvNextV2ForImageClassification(config)
        result.convnextv2 = model if isinstance(model, ConvNextV2Model) else model.convnextv2
        result.convnextv2.config = config
        head: nn.Linear = linear(config.hidden_sizes[-1], config.num_labels)
    dtype = result.convnextv2.layernorm.weight.dtype
    head.update(tree_map(lambda array: array.astype(dtype), head.parameters()))
    result.classifier = head
    result.eval()
    return result


def sized(processor: ConvNextImageProcessor, options: Options) -> ConvNextImageProcessor:
    """The processor with the options' image size and limit on pixels."""
    changes: dict[str, Any] = {}
    if options.image_size is not None:
        changes["size"] = options.image_size
    if options.max_pixels is not None:
        changes["max_pixels"] = options.max_pixels
    if not changes:
        return processor
    try:
        return ConvNextImageProcessor.from_dict(processor.to_dict(), **changes)
    except ValueError as error:
        raise ValueError(f"image_size {short(options.image_size)} cannot be used: {error}") from None
