"""ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808) in MLX, read from top to bottom like the paper.

Classes, arguments and parameter names are those of Hugging Face transformers. Images and features are NHWC:
(N, H, W, C) is batch, height, width, channels throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..ops.dispatch import depthwise_layer_norm, gelu_grn
from ..ops.plain import gelu, gelu_tanh, global_response_norm, selu, silu
from ..runtime.forks import check_not_forked
from . import layers
from .config import ConvNextV2Config
from .loss import classification_loss
from .outputs import BackboneOutput, ConvNextV2ModelOutput, ImageClassifierOutput, ModelOutput

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

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382). (N, ...) -> (N, ...) of the same dtype. Outside training it
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
        self.check(pixel_values)
        pixel_values = pixel_values.astype(self.patch_embeddings.weight.dtype)
        embeddings = self.patch_embeddings(pixel_values)  # (N, H, W, channels) -> (N, H // patch, W // patch, C)
        return self.layernorm(embeddings)

    def check(self, pixel_values: mx.array) -> None:
        """Raise a ValueError that says what pixel_values must be, if they are not."""
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

    def branch(self, hidden_states: mx.array) -> mx.array:
        """The block without its residual connection: (N, H, W, C) -> (N, H, W, C)."""
        conv, norm = self.dwconv, self.layernorm
        hidden_states = depthwise_layer_norm(hidden_states, conv.weight, conv.bias, norm.weight, norm.bias, norm.eps)
        hidden_states = self.pwconv1(hidden_states)  # (N, H, W, C) -> (N, H, W, 4C)
        if self.act is gelu:
            hidden_states = gelu_grn(hidden_states, self.grn.weight, self.grn.bias)
        else:
            hidden_states = self.grn(self.act(hidden_states))
        return self.pwconv2(hidden_states)  # (N, H, W, 4C) -> (N, H, W, C)


class ConvNextV2Stage(nn.Module):
    """Blocks at one resolution. A LayerNorm and a strided convolution before them reduce the previous resolution.

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
        """The stem's output -> the hidden states: the outputs of the stem and of each stage, (N, H, W, C) each."""
        all_hidden_states = [hidden_states]
        for stage in self.stages:
            all_hidden_states.append(stage(all_hidden_states[-1]))
        return tuple(all_hidden_states)


class ConvNextV2PreTrainedModel(nn.Module):
    """What the three models share: the configuration, the initial weights, and how outputs are returned.

    The initial weights are evaluated, so any thread may use the model. In the main thread they follow from
    `mx.random.seed`. In other threads they differ each time, because using MLX's random state there would abort the
    process at its exit. Within `layers.no_init_weights` there are none, for weights that are given afterwards.
    """

    def __init__(self, config: ConvNextV2Config):
        super().__init__()
        self.config = config

    def _init_weights(self) -> None:
        """As in transformers: convolution and linear weights are normal with std `initializer_range`, biases 0.

        The constructors of LayerNorm (1, 0) and GRN (0, 0) have set theirs.
        """
        if layers.wants_weights():
            layers.draw_weights(self, self.config.initializer_range)

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
        # in float32, because a float16 sum overflows
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
        """Classify images, and compute the loss if labels are given. With `return_dict=False` a tuple.

        Args:
            pixel_values: (N, H, W, num_channels), floating point, at least `config.min_image_shape`.
            labels: (N,) class indices, -100 for samples to leave out (cross-entropy); (N, num_labels) of 0 and 1 in
                floating point (binary cross-entropy); (N,) or (N, num_labels) targets (mean squared error).
                `config.problem_type` says which. If it is None, one label means regression, and integers mean classes.

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
    """The two parts of a classifier. The second is None for the pooled output, or if the model has no classifier."""
    if isinstance(model, ConvNextV2Model):
        return model, None
    return model.convnextv2, None if pooled else model.classifier


class ConvNextV2Backbone(ConvNextV2PreTrainedModel):
    """The model as a source of feature maps for detection and segmentation. Each map has its own LayerNorm."""

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


MODEL_CLASSES = (ConvNextV2ForImageClassification, ConvNextV2Model, ConvNextV2Backbone)
