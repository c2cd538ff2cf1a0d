"""The description of the model, for the page and for programs."""

from __future__ import annotations

from typing import Any

from mlx.utils import tree_flatten

from .._version import __version__
from ..files.tensors import dtype_name
from ..inference.classifier import ImageClassifier
from ..inference.fuse import describe
from ..model.quantization import count_parameters


def describe_model(classifier: ImageClassifier, name: str, card: str) -> dict[str, Any]:
    """The model's name, size, number of labels, layers and implementation, for /info."""
    model, config = classifier.model, classifier.model.config
    weights = dict(tree_flatten(model.parameters()))
    quantization = config.extra.get("quantization")
    shapes = {path: array.shape for path, array in weights.items()}
    bits = quantization["bits"] if quantization else None
    return {
        "name": name,
        "version": __version__,
        "parameters": count_parameters(shapes, bits),
        "bytes": sum(array.nbytes for array in weights.values()),
        "dtype": dtype_name(model.convnextv2.embeddings.patch_embeddings.weight.dtype),
        "quantization": quantization and {key: quantization[key] for key in ("mode", "bits", "group_size")},
        "num_labels": config.num_labels,
        "labels": classifier.labels[:50],
        "image_size": classifier.processor.size["shortest_edge"] if classifier.processor.do_resize else None,
        "layers": config.stage_names,
        "map_sides": _map_sides(classifier),
        "device": describe(model, classifier.predict),
        "card": card,
    }


def _map_sides(classifier: ImageClassifier) -> list[int] | None:
    """The positions on a side of each layer's heat map, or None if pictures keep their size."""
    processor, config = classifier.processor, classifier.model.config
    if not processor.do_resize:
        return None
    first = processor.size["shortest_edge"] // config.patch_shape[0]
    return [first >> max(stage - 1, 0) for stage in range(len(config.stage_names))]
