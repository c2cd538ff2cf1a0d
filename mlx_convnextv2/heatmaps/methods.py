"""Heat maps of a label's score: exact for the last stage, by gradients for the earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..inference.numpy_classifier import NumpyClassifier, supports
from ..model.convnextv2 import ConvNextV2ForImageClassification
from ..ops import dispatch
from .frozen import FrozenNorms, frozen_head, frozen_stages
from .targets import Labels, Target, resolve_targets

METHODS = ("exact", "hirescam", "gradcam")


def explain(
    model: ConvNextV2ForImageClassification,
    pixel_values: mx.array,
    label: Labels = None,
    *,
    against: Labels = "mean",
    layer: str | None = None,
    method: str | None = None,
) -> mx.array:
    """How much each position of a layer adds to a label's score.

    The score is the label's logit less the mean logit of all labels, or less another label's logit. Positive positions
    speak for the label, negative ones against it.

    Args:
        model: a classifier, quantized or not.
        pixel_values: (N, H, W, C), as its processor makes them.
        label: an index, a label's name, or a list with one of these for each image. None takes each image's best
            label, or the second best if the best is in `against`.
        against: "mean", a label as above, or None for the logit itself.
        layer: one of `model.config.stage_names`; None takes the last stage.
        method: None takes "exact" for the last stage and "hirescam" for the others.
            "exact", for the last stage only: each position's own logits, with frozen statistics of the norm after the
            pooling. Biases are spread evenly.
            "hirescam": hidden state times gradient (Draelos and Carin 2020, arXiv:2011.08891).
            "gradcam": hidden state times the gradient's mean over the positions, with negative sums set to 0
            (Selvaraju et al. 2017, arXiv:1610.02391).
            The gradients of both are taken with frozen statistics of all norms after the layer.

    Returns:
        (N, h, w) in float32, with the layer's h and w. An exact map sums to the score, a hirescam map to about it.

    Raises:
        ValueError: no such label, layer or method, a model without a classifier, or pixel values of a wrong shape.
        TypeError: an input is of a wrong type.
    """
    return explain_scores(model, pixel_values, label, against=against, layer=layer, method=method)[0]


def explain_scores(
    model: ConvNextV2ForImageClassification,
    pixel_values: mx.array,
    label: Labels = None,
    *,
    against: Labels = "mean",
    layer: str | None = None,
    method: str | None = None,
) -> tuple[mx.array, mx.array, Target]:
    """The maps of `explain`, the logits (N, num_labels) in float32, and the explained labels."""
    stage, method = check_method(model, layer, method)
    body, norms = model.convnextv2, FrozenNorms()
    hidden_states = _hidden_states(model, pixel_values, stage)
    last = hidden_states if method == "exact" else frozen_stages(body, hidden_states, stage, norms)
    position_logits = frozen_head(model, last, norms)  # (N, h, w, num_labels)
    logits = position_logits.mean(axis=(1, 2))
    target = resolve_targets(model.config, logits, label, against)
    if method == "exact":
        return target.score(position_logits) / (last.shape[1] * last.shape[2]), logits, target

    def score(hidden_states: mx.array) -> mx.array:
        """The sum of all images' scores: no score depends on another image's hidden states."""
        last = frozen_stages(body, hidden_states, stage, norms)
        return target.score(frozen_head(model, last, norms).mean(axis=(1, 2))).sum()

    hidden_states = hidden_states.astype(mx.float32)
    return _CAMS[method](hidden_states, mx.grad(score)(hidden_states)), logits, target


def check_method(model: Any, layer: str | None, method: str | None) -> tuple[int, str]:
    """The stage's number (0 for the stem) and the method. Raises a ValueError if one does not exist."""
    if not isinstance(model, ConvNextV2ForImageClassification):
        raise TypeError(f"heat maps are made of a ConvNextV2ForImageClassification, not of a {type(model).__name__}")
    if model.config.num_labels == 0:
        raise ValueError("the model has no classification head, so there is no label to explain")
    names = model.config.stage_names
    if layer is not None and layer not in names:
        raise ValueError(f"layer must be one of {', '.join(names)}, not {layer!r}")
    stage = len(names) - 1 if layer is None else names.index(layer)
    if method is None:
        method = "exact" if stage == len(names) - 1 else "hirescam"
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if method == "exact" and stage != len(names) - 1:
        raise ValueError(f"only the last stage, {names[-1]}, has an exact map: choose hirescam or gradcam for {layer}")
    return stage, method


def hirescam(hidden_states: mx.array, gradient: mx.array) -> mx.array:
    """Both (N, h, w, C) -> (N, h, w): their product, summed over the channels."""
    return (hidden_states * gradient).sum(axis=-1)


def gradcam(hidden_states: mx.array, gradient: mx.array) -> mx.array:
    """Both (N, h, w, C) -> (N, h, w): channels weighted by their mean gradient, with negative sums set to 0."""
    weights = gradient.mean(axis=(1, 2), keepdims=True)  # (N, 1, 1, C)
    return mx.maximum((hidden_states * weights).sum(axis=-1), 0)


_CAMS: dict[str, Callable[[mx.array, mx.array], mx.array]] = {"hirescam": hirescam, "gradcam": gradcam}


def _hidden_states(model: ConvNextV2ForImageClassification, pixel_values: mx.array, stage: int) -> mx.array:
    """A stage's hidden states (the stem's for stage 0), (N, h, w, C), always in inference mode."""
    body = model.convnextv2
    weight = body.embeddings.patch_embeddings.weight
    is_last = stage == len(body.encoder.stages)
    if is_last and dispatch.choose(weight.dtype, len(weight)) == "numpy" and supports(model):
        return NumpyClassifier(model).last_hidden_state(pixel_values)
    hidden_states = body.embeddings(pixel_values)
    for one in body.encoder.stages[:stage]:
        for layer in one.downsampling_layer:
            hidden_states = layer(hidden_states)  # the convolution: (N, H, W, C) -> (N, H // 2, W // 2, C')
        for block in one.layers:
            hidden_states = hidden_states + block.branch(hidden_states)
    return hidden_states
