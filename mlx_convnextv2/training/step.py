"""One training step: the loss and its gradient on a batch, then new weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from ..model.convnextv2 import ConvNextV2ForImageClassification
from .forward import draw_drop_path, forward
from .mixing import draw_mix, mix, smooth_targets
from .optimizer import Arrays, adamw, average_decay, clip, moving_average, parameter_groups
from .recipe import Recipe
from .state import FIRST_LOSS_SCALE, TrainingState

_GROW_AFTER = 2000  # steps without an overflow, after which float16's loss scale doubles
_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class Step:
    """Trains a model step by step. Random numbers are drawn outside and go in as arrays of fixed shape.

    Args:
        model: gives the architecture. The weights come from the state.
        recipe: the settings.
        average: averages the arrays of all processes, if there are several.
        share: this process's part of a batch.
        compiled: let MLX compile the step once. The default is only on a GPU: on a CPU it would run a C++ compiler.
    """

    def __init__(
        self,
        model: ConvNextV2ForImageClassification,
        recipe: Recipe,
        average: Callable[[Arrays], Arrays] = lambda arrays: arrays,
        share: slice = slice(None),
        compiled: bool | None = None,
    ):
        self._model, self._recipe = model, recipe
        self._average, self._share = average, share
        depths = model.config.depths
        self.groups = parameter_groups(model, depths, recipe.layer_decay, recipe.layer_groups)
        self._blocks = sum(depths)
        gradient: Callable[..., Any] = mx.value_and_grad(self._loss)
        update: Callable[..., Any] = self._update
        if mx.default_device().type == mx.gpu if compiled is None else compiled:
            gradient, update = mx.compile(gradient), mx.compile(update)
        self._gradient, self._new_weights = gradient, update
        self.traces = 0

    def __call__(
        self, state: TrainingState, pixel_values: np.ndarray, labels: np.ndarray, random: np.random.Generator
    ) -> tuple[TrainingState, float]:
        """The state after a step on pixel_values (N, H, W, C) and labels (N,), and the step's loss.

        Raises:
            ValueError: the loss or the gradient is not finite. In float16 the step is skipped instead, and the loss
                scale is halved.
        """
        recipe = self._recipe
        how = mx.array(draw_mix(recipe.mixup, recipe.cutmix, pixel_values.shape[1:3], random))
        keep = draw_drop_path(self._blocks, recipe.drop_path, recipe.batch_size, random)[:, self._share]
        scale = mx.array(state.loss_scale)
        loss = 0.0
        gradients: Arrays = {}
        for part in _parts(len(labels), recipe.accumulate):
            value, gradient = self._gradient(
                state.weights, mx.array(pixel_values[part]), mx.array(labels[part]), how, mx.array(keep[:, part]), scale
            )
            gradients = {n: gradients[n] + g for n, g in gradient.items()} if gradients else gradient
            mx.eval(value, gradients)
            loss += _number(value)
        factor = 1 / (recipe.accumulate * state.loss_scale)
        gradients = {name: gradient * factor for name, gradient in gradients.items()}
        averaged = self._average({**gradients, "": mx.array(loss * factor)})
        loss = _number(averaged.pop(""))
        return self._after(state, averaged, loss), loss

    def _after(self, state: TrainingState, gradients: Arrays, loss: float) -> TrainingState:
        recipe = self._recipe
        number = state.step - state.skipped + 1
        weights, first, second, average, norm = self._new_weights(
            state.weights,
            gradients,
            state.first,
            state.second,
            state.average,
            mx.array(float(number)),
            mx.array(recipe.learning_rate(state.step)),
            mx.array(average_decay(recipe.ema, number)),
        )
        mx.eval(weights, first, second, average, norm)
        if not np.isfinite(_number(norm)) or not np.isfinite(loss):
            if recipe.dtype != "float16" or state.loss_scale < 1:
                raise ValueError(
                    f"the loss is not a number at step {state.step + 1}: lower the learning rate (--lr), which is at "
                    f"most {recipe.lr:.1e}, or compute in another type (--dtype float32)"
                )
            return state.after(skipped=state.skipped + 1, loss_scale=state.loss_scale / 2, since_overflow=0)
        since = state.since_overflow + 1
        grows = recipe.dtype == "float16" and since >= _GROW_AFTER
        return state.after(
            weights=weights,
            first=first,
            second=second,
            average=average,
            loss_scale=state.loss_scale * 2 if grows else state.loss_scale,
            since_overflow=0 if grows else since,
        )

    def _loss(
        self, weights: Arrays, pixel_values: mx.array, labels: mx.array, how: mx.array, keep: mx.array, scale: mx.array
    ) -> mx.array:
        """The mean cross-entropy, times the scale. `weights` are float32, whatever the type of computation."""
        self.traces += 1
        dtype = _DTYPES[self._recipe.dtype]
        held = self._model.parameters()
        self._model.update(tree_unflatten([(name, weight.astype(dtype)) for name, weight in weights.items()]))
        targets = smooth_targets(labels, self._model.config.num_labels, self._recipe.label_smoothing)
        if self._recipe.mixup or self._recipe.cutmix:
            pixel_values, targets = mix(pixel_values, targets, how)
        logits = forward(self._model, pixel_values, keep, self._recipe.grad_checkpoint)
        self._model.update(held)  # or the model would keep the arrays of a trace
        logits = logits.astype(mx.float32)
        losses = mx.logsumexp(logits, axis=-1) - (targets * logits).sum(axis=-1)  # targets sum to 1
        return losses.mean() * scale

    def _update(
        self,
        weights: Arrays,
        gradients: Arrays,
        first: Arrays,
        second: Arrays,
        average: Arrays,
        number: mx.array,
        lr: mx.array,
        decay: mx.array,
    ) -> tuple[Arrays, Arrays, Arrays, Arrays, mx.array]:
        gradients, norm = clip(gradients, self._recipe.clip_norm)
        weights, first, second = adamw(
            weights, gradients, first, second, number, lr, self._recipe.weight_decay, self.groups
        )
        if self._recipe.ema:
            average = moving_average(average, weights, decay)
        return _laid_out(weights), _laid_out(first), _laid_out(second), _laid_out(average), norm


def first_state(model: ConvNextV2ForImageClassification, recipe: Recipe) -> TrainingState:
    """The state before the first step: the model's weights in float32, moments of zero, the average as the weights."""
    held = dict(tree_flatten(model.parameters()))
    weights = _laid_out({name: array.astype(mx.float32) for name, array in held.items()})
    zeros = {name: mx.zeros(array.shape) for name, array in weights.items()}
    state = TrainingState(
        weights=weights,
        average=weights if recipe.ema else {},
        first=zeros,
        second=zeros,
        loss_scale=FIRST_LOSS_SCALE if recipe.dtype == "float16" else 1.0,
    )
    mx.eval(state.weights, state.first)
    return state


def _laid_out(arrays: Arrays) -> Arrays:
    """The arrays as if read from a file: sorted by name and contiguous.

    The order decides the last bits of a sum over all arrays, and the memory layout those of a product.
    """
    return {name: mx.contiguous(arrays[name]) for name in sorted(arrays)}


def _parts(count: int, parts: int) -> list[slice]:
    size = count // parts
    return [slice(start, start + size) for start in range(0, size * parts, size)]


def _number(array: mx.array) -> float:
    return float(np.array(array))
