"""Load a checkpoint by name, strictly.

The headers of the files give the tensors' names, which become Hugging Face's and are compared with the model's
parameters. The tensors are read, converted to MLX's layout and cast one at a time, when MLX evaluates them.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..files.tensors import as_dtype, is_floating
from ..messages import one_line, short, some
from ..model.config import LABEL_FIELDS, STAGE_FIELDS, ConvNextV2Config
from ..model.convnextv2 import (
    MODEL_CLASSES,
    ConvNextV2Backbone,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    ConvNextV2PreTrainedModel,
)
from ..model.layers import no_init_weights
from ..model.quantization import restore_quantized_layers
from ..runtime.forks import check_not_forked
from .checkpoint import Checkpoint
from .configuration import described_by
from .new_head import build_with_new_head, check_new_labels, draw_head
from .processor import ConvNextImageProcessor
from .schemes import HUGGING_FACE
from .weights import Weights

_PREFIX = "convnextv2."
_NORMS = "hidden_states_norms."


def load(
    path_or_repo: str | os.PathLike[str],
    *,
    dtype: str | mx.Dtype | None = None,
    revision: str | None = None,
    model_class: type[ConvNextV2PreTrainedModel] | None = None,
    labels: Sequence[str] | None = None,
    **config_overrides: Any,
) -> tuple[Any, ConvNextImageProcessor]:
    """Load a checkpoint, converted or not. Loading is strict: no parameter stays random, and no tensor is left over.

    Args:
        path_or_repo: a folder, a weights file, or a Hub id such as "facebook/convnextv2-tiny-1k-224", with weights
            under the names of Hugging Face, timm or the authors' repository. Downloads go through huggingface_hub,
            with its cache and its variables (HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE).
        dtype: "float32", "float16" or "bfloat16", or MLX's type; None keeps the checkpoint's.
        revision: branch, tag or commit of the Hub repository.
        model_class: ConvNextV2ForImageClassification, ConvNextV2Model or ConvNextV2Backbone; None means the class of
            the checkpoint. A model or backbone leaves out the classifier, and a backbone also the final norm. A
            backbone's own norms start at 1 and 0 if the checkpoint has none. Norms of stages that `out_features` leaves
            out are not read.
        labels: give the model a new head for these classes, and warn of it. Its weights are random, as in transformers.
            The other weights are the checkpoint's; if it has no head, the final norm may be new too.
        config_overrides: fields of the configuration to change, such as `out_features=["stage2", "stage4"]`.

    Returns:
        The model, in inference mode and usable from any thread, and its image processor.

    Raises:
        FileNotFoundError: no such folder, repository, revision or weights.
        OSError: the Hub is out of reach, a file cannot be read, or this process was forked from one that used MLX.
        TypeError: `path_or_repo` is neither a path nor an id.
        ValueError: another architecture, a corrupt file, weights that do not fit (listed), a `revision` of something
            local, or another `model_class`.
    """
    check_not_forked()
    dtype = as_dtype(dtype)
    if model_class is not None and model_class not in MODEL_CLASSES:
        names = ", ".join(known.__name__ for known in MODEL_CLASSES)
        raise ValueError(f"model_class must be one of {names}, not {short(model_class)}")
    if labels is not None:
        config_overrides["id2label"] = check_new_labels(labels, model_class, config_overrides)
    checkpoint = Checkpoint.open(path_or_repo, revision=revision, **config_overrides)
    if labels is not None:
        model: ConvNextV2PreTrainedModel = load_with_new_head(checkpoint, dtype)
    else:
        model = load_unread(checkpoint, dtype, model_class, asked=config_overrides)
    try:
        mx.eval(model.parameters())  # lazy arrays can only be used in the thread that made them
        mx.clear_cache()  # of what was read in another layout
    except RuntimeError as error:
        if not str(error).startswith("[read]"):  # not the file's fault
            raise
        raise OSError(f"{os.fspath(path_or_repo)} cannot be read ({one_line(error)}): download it again") from None
    return model, checkpoint.processor


def load_with_new_head(checkpoint: Checkpoint, dtype: mx.Dtype | None = None) -> ConvNextV2ForImageClassification:
    """A classifier for the labels of `checkpoint.config`, with the checkpoint's body and a new head."""
    model, sources, left_out = build_with_new_head(checkpoint.config, checkpoint.weights)
    load_weights(model, checkpoint.weights, sources, left_out, dtype)
    draw_head(model, checkpoint.weights, sources)
    model.eval()
    return model


def load_unread(
    checkpoint: Checkpoint,
    dtype: mx.Dtype | None = None,
    model_class: type[ConvNextV2PreTrainedModel] | None = None,
    asked: Collection[str] = (),
) -> ConvNextV2PreTrainedModel:
    """The model of a checkpoint, with unread weights. Each is read when it is needed, which must be in this thread.

    So a conversion never has to hold all weights. `asked` names the configuration's fields that the user changed.
    """
    check_not_forked()
    config = ConvNextV2Config(**vars(checkpoint.config))  # the model may change its own copy
    weights = checkpoint.weights
    model, sources, left_out = _build(config, weights, model_class)
    if isinstance(model, ConvNextV2ForImageClassification) and not LABEL_FIELDS.isdisjoint(asked):
        _check_head(weights, config.num_labels)
    if isinstance(model, ConvNextV2Backbone) and not STAGE_FIELDS.isdisjoint(asked):
        unasked = set(config.stage_names) - set(config.out_features)
        left_out |= {name for name in weights.tensors if re.match(rf"{_NORMS}({'|'.join(unasked)})\.", name)}
    load_weights(model, weights, sources, left_out, dtype)
    model.eval()
    return model


def _check_head(weights: Weights, num_labels: int) -> None:
    """Raise a ValueError if the checkpoint's head is for another number of classes."""
    head = weights.tensors.get("classifier.weight")
    if head is not None and head.shape[0] != num_labels:
        raise ValueError(
            f"the head of {weights.path} has {head.shape[0]} classes, so num_labels cannot be {num_labels}: "
            f"give id2label {head.shape[0]} labels, one for each class"
        )


def _build(
    config: ConvNextV2Config, weights: Weights, model_class: type[ConvNextV2PreTrainedModel] | None
) -> tuple[ConvNextV2PreTrainedModel, dict[str, str], set[str]]:
    """A model without its weights, the checkpoint's name for each of its parameters, and the names left out."""
    tensors = weights.tensors
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in tensors) else ""
    from_transformers = weights.scheme is HUGGING_FACE
    held_class: type[ConvNextV2PreTrainedModel] = ConvNextV2Model
    if prefix and (from_transformers or any(name.startswith("classifier.") for name in tensors)):
        held_class = ConvNextV2ForImageClassification
    elif any(name.startswith(_NORMS) for name in tensors):
        held_class = ConvNextV2Backbone

    model_class = model_class or held_class
    with no_init_weights():
        model = model_class(config)
    own_prefix = prefix if model_class is not ConvNextV2ForImageClassification else ""
    try:
        restore_quantized_layers(model, tensors, own_prefix)
    except ValueError as error:
        raise ValueError(f"{weights.path}: {error}") from None
    names = list(dict(tree_flatten(model.parameters())))
    if model_class is ConvNextV2ForImageClassification:
        if held_class is not model_class:
            raise ValueError(f"{weights.path} holds no classifier: load it as ConvNextV2Model or ConvNextV2Backbone")
        return model, {name: name for name in names}, set()

    left_out: set[str] = set()
    if model_class is not held_class:
        unused = ["classifier."]
        if model_class is ConvNextV2Backbone:
            unused.append(f"{prefix}layernorm.")
            names = [name for name in names if not name.startswith(_NORMS)]
        left_out = {name for name in tensors if name.startswith(tuple(unused))}
    elif model_class is ConvNextV2Model and not from_transformers and f"{prefix}layernorm.weight" not in tensors:
        # a checkpoint that was only pre-trained (FCMAE)
        warnings.warn(f"{weights.path} has no final norm: the pooled output is normalised without one", stacklevel=4)
        names = [name for name in names if not name.startswith("layernorm.")]
    return model, {name: prefix + name for name in names}, left_out


def load_weights(
    model: nn.Module,
    weights: Weights,
    sources: Mapping[str, str],
    left_out: Collection[str] = (),
    dtype: mx.Dtype | None = None,
) -> None:
    """Give every parameter of the model its tensor, strictly.

    Args:
        model: the model to fill.
        weights: the checkpoint's weights.
        sources: the checkpoint's name for each parameter that it must hold.
        left_out: names in the checkpoint that the model does not use.
        dtype: the dtype to cast to; None keeps the file's.

    Raises:
        ValueError: tensors are missing, left over or of another shape; the message lists them.
    """
    parameters = dict(tree_flatten(model.parameters()))
    missing = sorted(name for name in sources.values() if name not in weights.tensors)
    unexpected = sorted(set(weights.tensors) - set(sources.values()) - set(left_out))
    mis_shaped = []
    for parameter, name in sources.items():
        tensor, expected = weights.tensors.get(name), parameters[parameter]
        if tensor is None:
            continue
        if tensor.shape != tuple(expected.shape):
            mis_shaped.append(f"{name} is {tensor.shape} and should be {tuple(expected.shape)}")
        elif is_floating(tensor.dtype) != is_floating(expected.dtype):
            mis_shaped.append(f"{name} is {tensor.dtype} and should be {expected.dtype}")
    problems = [
        f"{len(names)} {problem}: {some(names)}"
        for problem, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", mis_shaped))
        if names
    ]
    if problems:
        raise ValueError(f"the weights in {weights.path} do not fit {described_by(weights)}: {'; '.join(problems)}")
    arrays = weights.read(list(sources.values()), dtype)
    model.load_weights(
        [(parameter, array) for parameter, (_, array) in zip(sources, arrays, strict=True)], strict=False
    )
