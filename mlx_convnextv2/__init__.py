"""ConvNeXt V2 image classification in Apple MLX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import ConvNextV2Config as ConvNextV2Config
    from .hub import load as load, save as save
    from .image_processor import ConvNextImageProcessor as ConvNextImageProcessor
    from .inference import fuse as fuse
    from .model import (
        ConvNextV2Backbone as ConvNextV2Backbone,
        ConvNextV2ForImageClassification as ConvNextV2ForImageClassification,
        ConvNextV2Model as ConvNextV2Model,
    )
    from .pipeline import ImageClassifier as ImageClassifier

__version__ = "0.1.0"

# Each public name and its module, imported on first use: `import mlx_convnextv2` loads nothing heavy.
_MODULES = {
    "load": "hub",
    "save": "hub",
    "fuse": "inference",
    "ImageClassifier": "pipeline",
    "ConvNextImageProcessor": "image_processor",
    "ConvNextV2Config": "config",
    "ConvNextV2Model": "model",
    "ConvNextV2ForImageClassification": "model",
    "ConvNextV2Backbone": "model",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "ConvNextV2Config":
        from . import blas

        blas.load()  # before the first import of MLX
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
