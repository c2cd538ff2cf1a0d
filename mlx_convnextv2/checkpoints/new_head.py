"""A new head for the user's own classes on the body of a checkpoint, as the start of training."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from mlx.utils import tree_flatten, tree_map

from ..messages import short, some
from ..model.config import LABEL_FIELDS, MAX_LABELS, ConvNextV2Config
from ..model.convnextv2 import ConvNextV2ForImageClassification
from ..model.layers import draw_weights, no_init_weights
from ..model.quantization import restore_quantized_layers
from .label_files import check_labels, composed
from .schemes import HUGGING_FACE
from .weights import Weights

_PREFIX = "convnextv2."
_FINAL_NORM = "convnextv2.layernorm."
_BACKBONE_NORMS = "hidden_states_norms."


def check_new_labels(labels: Any, model_class: type | None, overrides: Collection[str]) -> list[str]:
    """The labels of a new head, or a ValueError if they or the other arguments of `load` are wrong."""
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        raise ValueError(f'labels must be a list such as ["cat", "dog"], not {short(labels)}')
    if not 1 <= len(labels) <= MAX_LABELS:
        raise ValueError(f"labels must name from 1 to {MAX_LABELS:,} classes, not {len(labels)}")
    labels = list(labels)
    check_labels(labels)
    twice = sorted(name for name, count in Counter(map(composed, labels)).items() if count > 1)
    if twice:
        raise ValueError(
            f"labels must name each class once, and {some([short(name) for name in twice])} is there twice"
        )
    if model_class not in (None, ConvNextV2ForImageClassification):
        raise ValueError(f"labels are of a head, and a {model_class.__name__} has none: leave one of them out")
    if not LABEL_FIELDS.isdisjoint(overrides):
        raise ValueError(f"labels are for a new head: leave {some(sorted(LABEL_FIELDS.intersection(overrides)))} out")
    return labels


def build_with_new_head(
    config: ConvNextV2Config, weights: Weights
) -> tuple[ConvNextV2ForImageClassification, dict[str, str], set[str]]:
    """A model without weights, the checkpoint's name for each parameter except the head's, and the names left out."""
    tensors = weights.tensors
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in tensors) else ""
    left_out = {name for name in tensors if name.startswith(("classifier.", _BACKBONE_NORMS))}
    with no_init_weights():
        model = ConvNextV2ForImageClassification(config)
    try:
        restore_quantized_layers(model, [_PREFIX + name.removeprefix(prefix) for name in tensors.keys() - left_out])
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from None
    names = [name for name in dict(tree_flatten(model.parameters())) if not name.startswith("classifier.")]
    # A checkpoint that was only pre-trained (FCMAE) or is a backbone may lack the norm before the head.
    may_lack = weights.scheme is not HUGGING_FACE or any(name.startswith(_BACKBONE_NORMS) for name in tensors)
    if may_lack and f"{prefix}layernorm.weight" not in tensors:
        names = [name for name in names if not name.startswith(_FINAL_NORM)]
    return model, {name: prefix + name.removeprefix(_PREFIX) for name in names}, left_out


def draw_head(model: ConvNextV2ForImageClassification, weights: Weights, loaded: Collection[str]) -> None:
    """Give the head its initial weights, in the dtype of the others, and say so in a warning.

    Args:
        loaded: the parameters from the checkpoint. If the final norm's are not among them, they stay at 1 and 0, and
            the warning says so.
    """
    draw_weights(model.classifier, model.config.initializer_range)
    dtype = model.convnextv2.embeddings.patch_embeddings.weight.dtype
    for module in (model.classifier, model.convnextv2.layernorm):
        module.update(tree_map(lambda array: array.astype(dtype), module.parameters()))
    bias = weights.tensors.get("classifier.bias")
    old = f"the head for {bias.shape[0]} classes is left out" if bias is not None else "there is no head"
    norm = "" if any(name.startswith(_FINAL_NORM) for name in loaded) else ", as is the norm before it"
    new = f"the one for {model.config.num_labels} is new, with random weights{norm}: train it"
    warnings.warn(f"{weights.path}: {old}, and {new}", stacklevel=4)
