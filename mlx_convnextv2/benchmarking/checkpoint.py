"""The checkpoint that is measured, as everybody can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .pictures import pixel_values


def write_model(model: str | None, size: str | None, folder: Path) -> Any:
    """Write a checkpoint in PyTorch's layout, from a Hub id or folder or with random weights; returns its config."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from ..config import ConvNextV2Config
    from ..hub import load, save
    from ..image_processor import ConvNextImageProcessor
    from ..model import ConvNextV2ForImageClassification

    if size:
        mx.random.seed(0)
        network = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
        # GRN starts at zero, where it would do nothing and an error in it would not show.
        parameters: Any = tree_flatten(network.parameters())
        grn = [(name, mx.random.normal(p.shape)) for name, p in parameters if ".grn." in name]
        network.load_weights(grn, strict=False)
        processor = ConvNextImageProcessor(size=224)
    else:
        network, processor = load(model, model_class=ConvNextV2ForImageClassification)  # type: ignore[arg-type]
    save(network, folder, processor, format="huggingface")
    return network.config


def write_images(file: Path, count: int, height: int, width: int, channels: int) -> Path:
    """Write the images that the workers read."""
    np.save(file, pixel_values(count, height, width, channels))
    return file
