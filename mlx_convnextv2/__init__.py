"""ConvNeXt V2 image classification in Apple MLX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .checkpoints.load import load as load
    from .checkpoints.processor import ConvNextImageProcessor as ConvNextImageProcessor
    from .checkpoints.save import save as save
    from .collections.library.embed import embed_folder as embed_folder
    from .collections.library.library import Library as Library
    from .inference.classifier import ImageClassifier as ImageClassifier
    from .inference.embedder import ImageEmbedder as ImageEmbedder
    from .inference.fuse import fuse as fuse
    from .model.config import ConvNextV2Config as ConvNextV2Config
    from .model.convnextv2 import (
        ConvNextV2Backbone as ConvNextV2Backbone,
        ConvNextV2ForImageClassification as ConvNextV2ForImageClassification,
        ConvNextV2Model as ConvNextV2Model,
    )

# Each public name and its module, which is imported on first use: `import mlx_convnextv2` loads nothing heavy.
_MODULES = {
    "load": "checkpoints.load",
    "save": "checkpoints.save",
    "fuse": "inference.fuse",
    "ImageClassifier": "inference.classifier",
    "ImageEmbedder": "inference.embedder",
    "Library": "collections.library.library",
    "embed_folder": "collections.library.embed",
    "ConvNextImageProcessor": "checkpoints.processor",
    "ConvNextV2Config": "model.config",
    "ConvNextV2Model": "model.convnextv2",
    "ConvNextV2ForImageClassification": "model.convnextv2",
    "ConvNextV2Backbone": "model.convnextv2",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
