"""AdamW with a learning rate for each layer, the weights' moving average, and gradient clipping."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

Arrays = dict[str, mx.array]
BETAS, EPS = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Group:
    """How one parameter is trained: its factor of the learning rate, and whether it decays."""

    lr_scale: float
    decays: bool


def parameter_groups(model: nn.Module, depths: Sequence[int], decay: float, groups: str) -> dict[str, Group]:
    """The group of each parameter, by its name.

    The learning rate is multiplied by `decay` for every layer between the head and the parameter. Weights of linear
    layers and convolutions decay; norms, biases and GRN do not. GRN's weight has the shape (1, 1, 1, C), so a rule by
    the number of dimensions would miss it (facebookresearch/ConvNeXt-V2, issue 24).

    Args:
        model: a classifier.
        depths: the number of blocks in each stage.
        decay: the factor from layer to layer; 1 gives all layers the same rate.
        groups: "single" counts every block as a layer. "group" counts three blocks of the third stage, or all blocks
            of another stage, as one layer; the authors do this for base and larger.
    """
    decaying = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    names = dict(tree_flatten(model.parameters()))
    layers = {name: _layer(name, depths, groups) for name in names}
    last = max(layers.values())
    return {name: Group(decay ** (last - layers[name]), name in decaying) for name in names}


def _layer(name: str, depths: Sequence[int], groups: str) -> int:
    """The number of a parameter's layer, counted from the image to the head."""
    stage_match = re.search(r"encoder\.stages\.(\d+)\.", name)
    block_match = re.search(r"\.layers\.(\d+)\.", name)
    block = int(block_match[1]) if block_match else 0
    if groups == "single":
        if stage_match:
            return sum(depths[: int(stage_match[1])]) + block + 1
        return 1 if "embeddings." in name else sum(depths) + 1
    deep = (depths[2] + 2) // 3 if len(depths) > 2 else 0  # groups of three blocks of the third stage
    if not stage_match:
        return 0 if "embeddings." in name else min(len(depths), 2) + deep + max(len(depths) - 3, 0) + 1
    stage = int(stage_match[1])
    if stage < 2:
        return stage + 1
    return 3 + block // 3 if stage == 2 else deep + stage


def clip(gradients: Arrays, norm: float) -> tuple[Arrays, mx.array]:
    """Scale all gradients to a common norm of at most `norm` (0: no limit). Also returns the norm before."""
    total = mx.sqrt(sum((mx.square(g).sum() for g in gradients.values()), start=mx.array(0.0)))
    if not norm:
        return gradients, total
    scale = mx.minimum(1.0, norm / (total + 1e-6))
    return {name: gradient * scale for name, gradient in gradients.items()}, total


def adamw(
    weights: Arrays,
    gradients: Arrays,
    first: Arrays,
    second: Arrays,
    step: mx.array,
    lr: mx.array,
    weight_decay: float,
    groups: dict[str, Group],
) -> tuple[Arrays, Arrays, Arrays]:
    """One step of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with bias correction, as in PyTorch.

    Args:
        weights, gradients: by name, float32.
        first, second: the moments, by name.
        step: the number of this step, from 1 on.
        lr: the learning rate of the head.

    Returns:
        The new weights and moments.
    """
    corrections = [1 - mx.power(beta, step) for beta in BETAS]
    new_weights, new_first, new_second = {}, {}, {}
    for name, weight in weights.items():
        gradient, group = gradients[name], groups[name]
        moment = BETAS[0] * first[name] + (1 - BETAS[0]) * gradient
        square = BETAS[1] * second[name] + (1 - BETAS[1]) * mx.square(gradient)
        rate = lr * group.lr_scale
        kept = weight * (1 - rate * weight_decay) if group.decays and weight_decay else weight
        size = mx.sqrt(square / corrections[1]) + EPS
        new_weights[name] = kept - rate * (moment / corrections[0]) / size
        new_first[name], new_second[name] = moment, square
    return new_weights, new_first, new_second


def moving_average(average: Arrays, weights: Arrays, decay: mx.array) -> Arrays:
    """decay * average + (1 - decay) * weights."""
    return {name: decay * average[name] + (1 - decay) * weight for name, weight in weights.items()}


def average_decay(decay: float, step: int) -> float:
    """The decay at a step, from 1 on. It is small at first, to forget the initial weights."""
    return min(decay, (1 + step) / (10 + step))
