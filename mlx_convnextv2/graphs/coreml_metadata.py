"""A Core ML program's metadata, for Xcode, for Vision and for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .._version import __version__
from ..checkpoints.model_card import weights_terms
from ..images.processor import ImageProcessor


def describe(
    spec: Any, processor: ImageProcessor, shape: tuple[int, int], name: str, licence: str | None, labels: str
) -> None:
    """Fill in what Xcode shows: the description, the licence, and how to prepare an image.

    `labels` are the labels of the probabilities, if the program itself does not name them.
    """
    metadata = spec.description.metadata
    metadata.shortDescription = f"{name}: ConvNeXt V2 image classification (arXiv:2301.00808)."
    metadata.author = "The architecture: Woo, Debnath, Hu, Chen, Liu, Kweon and Xie. The program: mlx_convnextv2"
    metadata.license = weights_terms(licence)
    metadata.versionString = __version__
    advice, option = _advice(processor, shape)
    metadata.userDefined["imageCropAndScaleOption"] = option
    metadata.userDefined["preprocessing"] = json.dumps(processor.to_dict())
    if labels:
        metadata.userDefined["labels"] = labels
    else:
        metadata.userDefined["com.apple.coreml.model.preview.type"] = "imageClassifier"
    described = {
        "image": advice,
        "pixels": f"Pixels of 0 to 255, (images, channels, {shape[0]}, {shape[1]}). {advice}",
        "classLabel": "The likeliest label.",
        "classLabel_probs": "The probability of each label.",
        "probabilities": "The probability of each of the metadata's labels.",
        "embedding": "The pooled features, for search or for a classifier of your own.",
    }
    for feature in [*spec.description.input, *spec.description.output]:
        feature.shortDescription = described[feature.name]


def _advice(processor: ImageProcessor, shape: tuple[int, int]) -> tuple[str, str]:
    """How to prepare an image, in words, and the Vision option that does this or comes closest."""
    height, width = shape
    if not processor.do_resize:
        return f"{width} x {height} pixels, cut out as the model was trained.", "centerCrop"
    name = processor.filter_name
    if squeezed := processor.resizes_to_square():
        cut = "" if squeezed == width else f", of which the middle {width} x {height}"
        return (
            f"The image squeezed to {squeezed} x {squeezed} ({name}){cut}; Vision: scaleFill.",
            "scaleFill",
        )
    return (
        f"The image with its short side resized to {processor.short_side()} ({name}), and of that the middle "
        f"{width} x {height}. Vision's centerCrop is close: it resizes the short side to {width}.",
        "centerCrop",
    )


def distinct(labels: Sequence[str]) -> list[str]:
    """Labels as unique keys. Repeated labels, of which ImageNet has two, get their class's number."""
    counts = Counter(labels)
    return [label if counts[label] == 1 else f"{label} ({index})" for index, label in enumerate(labels)]
