"""ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808) in MLX, read from top to bottom like the paper.

Classes, arguments and parameter names are those of Hugging Face transformers. Images and features are NHWC:
(N, H, W, C) is batch, height, width, channels throughout.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from . import layers, ops
from .blas import warn_if_late
from .config import ConvNextV2Config
from .forks import check_not_forked
from .ops.plain import gelu, global_response_norm

IGNORED_LABEL = -100  # a sample to leave out of the cross-entropy, as in PyTorch


def gelu_tanh(x: mx.array) -> mx.array:
    """The tanh approximation of GELU (section 2 of arXiv:1606.08415). Any shape, kept; dtype kept."""
    return 0.5 * x * (1 + mx.tanh((2 / mx.pi) ** 0.5 * (x + 0.044715 * x**3)))


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x), also called swish (section 2 of arXiv:1606.08415). Any shape, kept; dtype kept."""
    return x * mx.sigmoid(x)


def selu(x: mx.array) -> mx.array:
    """Klambauer et al. 2017, arXiv:1706.02515. Any shape, kept; dtype kept."""
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return scale * mx.where(x > 0, x, alpha * (mx.exp(mx.minimum(x, 0)) - 1))


ACT2FN: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": partial(mx.maximum, 0),
    "silu": silu,
    "swish": silu,
    "selu": selu,
}


def drop_path(hidden_states: mx.array, drop_prob: float = 0.0, training: bool = False) -> mx.array:
    """Zero whole samples of the batch with probability `drop_prob` and scale the others by 1 / (1 - drop_prob).

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382). (N, ...) -> (N, ...), the dtype kept. Outside training it
    is the identity.
    """
    if drop_prob == 0.0 or not training:
        return hidden_states
    keep_prob = 1 - drop_prob
    shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
    keep = mx.random.bernoulli(keep_prob, shape).astype(hidden_states.dtype)
    return hidden_states * keep / keep_prob


class ConvNextV2DropPath(nn.Module):
    """`drop_path` as a module: active in training mode only."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def __call__(self, hidden_states: mx.array) -> mx.array:
        return drop_path(hidden_states, self.drop_prob, self.training)


class ConvNextV2LayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (N, H, W, C), with statistics in float32; eps is 1e-6, not MLX's 1e-5."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6):
        super().__init__(normalized_shape, eps=eps)


class ConvNextV2GRN(nn.Module):
    """Global Response Normalization (section 4 of the paper): each channel divided by the mean of all channels' norms.

    (N, H, W, C) -> (N, H, W, C).
    """

    def __init__(self, dim: int):
        super().__init__()
        self.weight = mx.zeros((1, 1, 1, dim))
        self.bias = mx.zeros((1, 1, 1, dim))

    def __call__(self, hidden_states: mx.array) -> mx.array:
        return global_response_norm(hidden_states, self.weight, self.bias)


class ConvNextV2Embeddings(nn.Module):
    """The stem: non-overlapping patches, projected and normalised."""

    def __init__(self, config: ConvNextV2Config):
        super().__init__()
        width = config.hidden_sizes[0]
        self.patch_embeddings = layers.conv2d(config.num_channels, width, config.patch_shape, config.patch_shape)
        self.layernorm = ConvNextV2LayerNorm(width)
        self.num_channels = config.num_channels
        self._min_image_shape = config.min_image_shape

    def __call__(self, pixel_values: mx.array) -> mx.array:
        check_not_forked()
        warn_if_late()
        self.check(pixel_values)
        pixel_values = pixel_values.astype(self.patch_embeddings.weight.dtype)
        embeddings = self.patch_embeddings(pixel_values)  # (N, H, W, channels) -> (N, H // patch, W // patch, C)
        return self.layernorm(embeddings)

    def check(self, pixel_values: mx.array) -> None:
        """Raise a ValueError that says what pixel_values must be, where they are not."""
        if not isinstance(pixel_values, mx.array):
            raise TypeError(f"pixel_values must be an mx.array, not {type(pixel_values).__name__}: wrap it in mx.array")
        expected = f"pixel_values must have the shape (batch, height, width, {self.num_channels})"
        shape = tuple(pixel_values.shape)
        if pixel_values.ndim == 4 and shape[3] != self.num_channels and shape[1] == self.num_channels:
            raise ValueError(f"{expected}, but {shape} is channels-first: call pixel_values.transpose(0, 2, 3, 1)")
        if pixel_values.ndim != 4 or shape[3] != self.num_channels:
            raise ValueError(f"{expected}, not {shape}")
        if not mx.issubdtype(pixel_values.dtype, mx.floating):
            raise ValueError(f"pixel_values must be floating point, not {pixel_values.dtype}: use the image processor")
        height, width = self._min_image_shape
        if shape[1] < height or shape[2] < width:
            raise ValueError(
                f"{expected} and be at least {height} x {width} pixels, so that something is left after the last "
                f"stage, not {shape}"
            )


class ConvNextV2Layer(nn.Module):
    """The block: depthwise 7x7, LayerNorm, expand, activation, GRN, project, around a residual connection.

    (N, H, W, C) -> (N, H, W, C).
    """

    def __init__(self, config: ConvNextV2Config, dim: int, drop_path: float = 0.0):
        super().__init__()
        self.dwconv = layers.conv2d(dim, dim, (7, 7), padding=3, groups=dim)
        self.layernorm = ConvNextV2LayerNorm(dim)
        self.pwconv1 = layers.linear(dim, 4 * dim)
        self.act = ACT2FN[config.hidden_act]
        self.grn = ConvNextV2GRN(4 * dim)
        self.pwconv2 = layers.linear(4 * dim, dim)
        self.drop_path = ConvNextV2DropPath(drop_path)

    def __call__(self, hidden_states: mx.array) -> mx.array:
        return hidden_states + self.drop_path(self.branch(hidden_states))

    def branch(self, hidden_states: mx.array, path: str | None = None) -> mx.array:
        """What the block adds to its input, (N, H, W, C) -> (N, H, W, C), by a path of `ops.choose`."""
        conv, norm = self.dwconv, self.layernorm
        hidden_states = ops.depthwise_layer_norm(
            hidden_states, conv.weight, conv.bias, norm.weight, norm.bias, norm.eps, path
        )
        hidden_states = self.pwconv1(hidden_states)  # (N, H, W, C) -> (N, H, W, 4C)
        if self.act is gelu:
            hidden_states = ops.gelu_grn(hidden_states, self.grn.weight, self.grn.bias, path)
        else:
            hidden_states = self.grn(self.act(hidden_states))
        return self.pwconv2(hidden_states)  # (N, H, W, 4C) -> (N, H, W, C)


class ConvNextV2Stage(nn.Module):
    """Blocks at one resolution, after a LayerNorm and a strided convolution that lead to it from the one before.

    With stride 2: (N, H, W, in_channels) -> (N, H // 2, W // 2, out_channels).
    """

    def __init__(
        self,
        config: ConvNextV2Config,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 2,
        stride: int = 2,
        depth: int = 2,
        drop_path_rates: list[float] | None = None,
    ):
        super().__init__()
        self.downsampling_layer: list[nn.Module] = []
        if in_channels != out_channels or stride > 1:
            self.downsampling_layer = [
                ConvNextV2LayerNorm(in_channels),
                layers.conv2d(in_channels, out_channels, (kernel_size, kernel_size), (stride, stride)),
            ]
        rates = drop_path_rates or [0.0] * depth
        self.layers = [ConvNextV2Layer(config, dim=out_channels, drop_path=rate) for rate in rates]

    def __call__(self, hidden_states: mx.array) -> mx.array:
        for layer in self.downsampling_layer:
            hidden_states = layer(hidden_states)  # the convolution: (N, H, W, C) -> (N, H // 2, W // 2, C')
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


class ConvNextV2Encoder(nn.Module):
    """The stages. Drop-path rates rise linearly over all blocks, from 0 to `config.drop_path_rate`."""

    def __init__(self, config: ConvNextV2Config):
        super().__init__()
        rates = iter(np.linspace(0, config.drop_path_rate, sum(config.depths)).tolist())
        self.stages = []
        in_channels = config.hidden_sizes[0]
        for i, (out_channels, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            self.stages.append(
                ConvNextV2Stage(
                    config,
                    in_channels=in_channels,
                    out_channels=out_channels,
                    stride=2 if i > 0 else 1,
                    depth=depth,
                    drop_path_rates=[next(rates) for _ in range(depth)],
                )
            )
            in_channels = out_channels

    def __call__(self, hidden_states: mx.array) -> tuple[mx.array, ...]:
        """The stem's output -> the hidden states: the stem's output and each stage's, (N, H, W, C) of its own."""
        all_hidden_states = [hidden_states]
        for stage in self.stages:
            all_hidden_states.append(stage(all_hidden_states[-1]))
        return tuple(all_hidden_states)


@dataclass
class ModelOutput:
    """Fields by name or by position, as in transformers; one that is None has no position and is no key.

    `dict(outputs)` has the fields by name; iteration gives their values, as that of a tuple does.
    """

    def keys(self) -> list[str]:
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> list[tuple[str, Any]]:
        return list(zip(self.keys(), self.values(), strict=True))

    def to_tuple(self) -> tuple[Any, ...]:
        return self.values()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in {f.name for f in fields(self)}:
            raise KeyError(key)
        return getattr(self, key)


@dataclass
class ConvNextV2ModelOutput(ModelOutput):
    """last_hidden_state (N, H, W, C); pooler_output (N, C); hidden_states: stem and stages, (N, H, W, C) each."""

    last_hidden_state: mx.array
    pooler_output: mx.array
    hidden_states: tuple[mx.array, ...] | None = None


@dataclass
class ImageClassifierOutput(ModelOutput):
    """loss: a scalar, where labels were given; logits (N, num_labels); hidden_states as in ConvNextV2ModelOutput."""

    loss: mx.array | None
    logits: mx.array
    hidden_states: tuple[mx.array, ...] | None = None


@dataclass
class BackboneOutput(ModelOutput):
    """feature_maps: one (N, H, W, C) for each of `out_features`; hidden_states as in ConvNextV2ModelOutput.

    attentions is always None: it is there for what reads the outputs of any backbone.
    """

    feature_maps: tuple[mx.array, ...]
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: None = None


def draw_weights(model: nn.Module, std: float) -> None:
    """Give the model's convolutions and linear layers weights from a normal of this deviation, and evaluate all."""
    check_not_forked()
    in_main_thread = threading.current_thread() is threading.main_thread()
    key = None if in_main_thread else mx.random.key(int.from_bytes(os.urandom(8), "little"))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            key, own_key = (None, None) if key is None else mx.random.split(key)
            module.weight = mx.random.normal(module.weight.shape, key=own_key) * std
    mx.eval(model.parameters())


class ConvNextV2PreTrainedModel(nn.Module):
    """What the three models share: the configuration, the first weights, and how outputs are returned.

    The first weights are evaluated, so that any thread may use the model. In the main thread `mx.random.seed` decides
    them; in another they are new each time, because MLX's random state there would abort the process at its exit.
    `layers.no_init_weights` leaves them out, for weights that are given afterwards.
    """

    def __init__(self, config: ConvNextV2Config):
        super().__init__()
        self.config = config

    def _init_weights(self) -> None:
        """As transformers: convolution and linear weights from a normal of std `initializer_range`, biases 0.

        LayerNorm (1, 0) and GRN (0, 0) have theirs from their constructors.
        """
        if layers.wants_weights():
            draw_weights(self, self.config.initializer_range)

    def _wants_hidden_states(self, output_hidden_states: bool | None) -> bool:
        return self.config.output_hidden_states if output_hidden_states is None else output_hidden_states

    def _return(self, outputs: ModelOutput, return_dict: bool | None) -> Any:
        as_object = self.config.return_dict if return_dict is None else return_dict
        return outputs if as_object else outputs.to_tuple()


class ConvNextV2Model(ConvNextV2PreTrainedModel):
    """The model without a head: features and their pooled vector."""

    def __init__(self, config: ConvNextV2Config):
        super().__init__(config)
        with layers.no_init_weights():
            self.embeddings = ConvNextV2Embeddings(config)
            self.encoder = ConvNextV2Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_sizes[-1], eps=config.layer_norm_eps)
        self._init_weights()

    def __call__(
        self, pixel_values: mx.array, output_hidden_states: bool | None = None, return_dict: bool | None = None
    ) -> ConvNextV2ModelOutput:
        """pixel_values (N, H, W, num_channels), floating point, at least `config.min_image_shape` -> features.

        With `return_dict=False` a tuple.

        Raises:
            TypeError: an input is no mx.array.
            ValueError: pixel_values has another shape (channels first, say) or an integer dtype.
        """
        hidden_states = self.encoder(self.embeddings(pixel_values))
        last_hidden_state = hidden_states[-1]
        outputs = ConvNextV2ModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=self.pool(last_hidden_state),
            hidden_states=hidden_states if self._wants_hidden_states(output_hidden_states) else None,
        )
        return self._return(outputs, return_dict)

    def pool(self, last_hidden_state: mx.array) -> mx.array:
        """The normalised mean over the pixels: (N, H, W, C) -> (N, C)."""
        # summed in float32, because a float16 sum overflows
        pooled = last_hidden_state.astype(mx.float32).mean(axis=(1, 2)).astype(last_hidden_state.dtype)
        return self.layernorm(pooled)


class ConvNextV2ForImageClassification(ConvNextV2PreTrainedModel):
    """The model with a linear head on the pooled features; `num_labels=0` leaves the head out."""

    def __init__(self, config: ConvNextV2Config):
        super().__init__(config)
        width, classes = config.hidden_sizes[-1], config.num_labels
        with layers.no_init_weights():
            self.convnextv2 = ConvNextV2Model(config)
            self.classifier = layers.linear(width, classes) if classes else nn.Identity()
        self._init_weights()

    def __call__(
        self,
        pixel_values: mx.array,
        labels: mx.array | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput:
        """Classify images, and compute the loss where labels are given. With `return_dict=False` a tuple.

        Args:
            pixel_values: (N, H, W, num_channels), floating point, at least `config.min_image_shape`.
            labels: (N,) class indices, -100 for samples to leave out (cross-entropy); (N, num_labels) of 0 and 1 in
                floating point (binary cross-entropy); (N,) or (N, num_labels) targets (mean squared error).
                `config.problem_type` says which; where it is None, one label means regression, integers mean classes.

        Raises:
            TypeError: an input is no mx.array.
            ValueError: pixel_values has another shape (channels first, say) or an integer dtype.
        """
        outputs = self.convnextv2(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(outputs.pooler_output)  # (N, C) -> (N, num_labels)
        loss = None
        if labels is not None:
            if self.config.num_labels == 0:
                raise ValueError("there is no loss without classes: num_labels is 0")
            loss = classification_loss(logits, labels, self.config.problem_type)
        return self._return(ImageClassifierOutput(loss, logits, outputs.hidden_states), return_dict)


def body_and_classifier(
    model: ConvNextV2ForImageClassification | ConvNextV2Model, pooled: bool = False
) -> tuple[ConvNextV2Model, nn.Module | None]:
    """The two parts of a classifier, the second None where the pooled output is wanted or the first is all there is."""
    if isinstance(model, ConvNextV2Model):
        return model, None
    return model.convnextv2, None if pooled else model.classifier


class ConvNextV2Backbone(ConvNextV2PreTrainedModel):
    """The model as a source of feature maps for detection and segmentation, each with a LayerNorm of its own."""

    def __init__(self, config: ConvNextV2Config):
        super().__init__(config)
        with layers.no_init_weights():
            self.embeddings = ConvNextV2Embeddings(config)
            self.encoder = ConvNextV2Encoder(config)
        self.stage_names = config.stage_names
        self.num_features = [config.hidden_sizes[0], *config.hidden_sizes]
        self.hidden_states_norms = {
            stage: ConvNextV2LayerNorm(channels)
            for stage, channels in zip(config.out_features, self.channels, strict=True)
        }
        self._init_weights()

    @property
    def out_features(self) -> list[str]:
        return self.config.out_features

    @property
    def out_indices(self) -> list[int]:
        return self.config.out_indices

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Channels of the stem's output and of every stage, returned or not."""
        return dict(zip(self.stage_names, self.num_features, strict=True))

    @property
    def channels(self) -> list[int]:
        """Channels of each of `out_features`."""
        return [self.out_feature_channels[stage] for stage in self.out_features]

    def __call__(
        self, pixel_values: mx.array, output_hidden_states: bool | None = None, return_dict: bool | None = None
    ) -> BackboneOutput:
        """pixel_values (N, H, W, num_channels), floating point, at least `config.min_image_shape` -> features.

        With `return_dict=False` a tuple.

        Raises:
            TypeError: an input is no mx.array.
            ValueError: pixel_values has another shape (channels first, say) or an integer dtype.
        """
        hidden_states = self.encoder(self.embeddings(pixel_values))
        feature_maps = tuple(
            self.hidden_states_norms[stage](hidden_state)
            for stage, hidden_state in zip(self.stage_names, hidden_states, strict=True)
            if stage in self.out_features
        )
        wanted = self._wants_hidden_states(output_hidden_states)
        return self._return(BackboneOutput(feature_maps, hidden_states if wanted else None), return_dict)


def classification_loss(logits: mx.array, labels: mx.array, problem_type: str | None = None) -> mx.array:
    """transformers' image classification loss, averaged: logits (N, num_labels) and labels -> a scalar in float32.

    The labels' shapes are those of `ConvNextV2ForImageClassification`.

    Raises:
        ValueError: labels do not fit the logits' shape, or are classes that do not exist. Within `mx.compile`, where
            no values can be seen, the loss is NaN instead.
    """
    if not isinstance(labels, mx.array):
        raise TypeError(f"labels must be an mx.array, not {type(labels).__name__}: wrap them in mx.array")
    logits = logits.astype(mx.float32)
    batch, num_labels = logits.shape
    is_integer = mx.issubdtype(labels.dtype, mx.integer)
    if problem_type is None:
        if num_labels == 1:
            problem_type = "regression"
        else:
            problem_type = "single_label_classification" if is_integer else "multi_label_classification"
    if problem_type == "single_label_classification":
        _check_labels(
            is_integer and labels.shape in ((batch,), (batch, 1)), labels, f"integers of the shape ({batch},)"
        )
        _check_classes(labels, num_labels)
        labels = labels.reshape(-1).astype(mx.int32)
        counted = labels != IGNORED_LABEL
        valid = (labels >= 0) & (labels < num_labels)
        losses = nn.losses.cross_entropy(logits, mx.where(valid, labels, 0))
        losses = mx.where(valid, losses, mx.nan)  # a class that does not exist must not pass unseen
        return mx.where(counted, losses, 0).sum() / counted.sum()
    fits = labels.shape == logits.shape or (num_labels == 1 and labels.shape == (batch,))
    _check_labels(fits, labels, f"numbers of the shape ({batch}, {num_labels})")
    labels = labels.astype(mx.float32).reshape(logits.shape)
    if problem_type == "regression":
        return mx.square(logits - labels).mean()
    return nn.losses.binary_cross_entropy(logits, labels, with_logits=True)


def _check_labels(fits: bool, labels: mx.array, expected: str) -> None:
    if not fits:
        raise ValueError(f"labels must be {expected}, not {labels.dtype} {tuple(labels.shape)}")


def _check_classes(labels: mx.array, num_labels: int) -> None:
    try:
        classes = np.array(labels)
    except ValueError:  # they are being traced
        return
    wrong = classes[((classes < 0) | (classes >= num_labels)) & (classes != IGNORED_LABEL)]
    if wrong.size:
        raise ValueError(
            f"labels must be classes from 0 to {num_labels - 1}, or {IGNORED_LABEL} for a sample to leave out, "
            f"not {wrong[0]}"
        )
