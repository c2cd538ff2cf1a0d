"""From images to a head: compute frozen features, find the best penalty, put the head into the model."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..checkpoints.processor import ConvNextImageProcessor
from ..images.class_folders import Splits
from ..model.convnextv2 import ConvNextV2ForImageClassification
from .data import without_broken
from .features import shared_features
from .head import Head, choose_head
from .options import Options
from .progress import Progress, Row
from .world import World

_SMALL = 0.001  # the authors' scale of a new head's weights
_DEVIATION = 0.02


def fit_on_frozen_features(
    model: ConvNextV2ForImageClassification,
    processor: ConvNextImageProcessor,
    splits: Splits,
    options: Options,
    progress: Progress,
    world: World,
    label_smoothing: float = 0.0,
) -> tuple[Splits, Head, list[Row], Row]:
    """The best head for the features of the unchanged body.

    Returns:
        The splits without broken images, the head, a row for each penalty tried, and the row of the chosen head.
    """
    kept, features = {}, {}
    for name, folders in (("train", splits.train), ("val", splits.val)):
        rows, errors = shared_features(
            model,
            processor,
            folders.files,
            world,
            workers=options.workers,
            progress=progress,
            name=f"features of {name}",
        )
        kept[name] = without_broken(folders, errors, name)
        features[name] = np.delete(rows, list(errors), axis=0), np.array(kept[name].labels)
    found = choose_head(
        features["train"],
        features["val"],
        len(splits.train.classes),
        options.l2,
        label_smoothing,
        progress,
    )
    return Splits(kept["train"], kept["val"], splits.test), *found


def set_head(model: ConvNextV2ForImageClassification, head: Head) -> None:
    """Give the model this head, in the dtype of its present head."""
    dtype = model.classifier.weight.dtype
    model.classifier.update({"weight": mx.array(head.weight).astype(dtype), "bias": mx.array(head.bias).astype(dtype)})
    mx.eval(model.classifier.parameters())


def set_small_head(model: ConvNextV2ForImageClassification, seed: int) -> None:
    """Give the model the authors' initial head: small random weights, zero bias."""
    shape = model.classifier.weight.shape
    weight = np.random.default_rng(seed).standard_normal(shape, np.float32) * (_DEVIATION * _SMALL)
    set_head(model, Head(weight, np.zeros(shape[0], np.float32)))
