"""ConvNeXt V2 and its gradient, mixup, drop path, AdamW and the moving average in numpy, float64, by hand.

Slow and plain: every layer is a function that returns its output and a function for the gradient. Names and shapes
are the model's, (N, H, W, C).
"""

from __future__ import annotations

from math import erf, pi, sqrt

import numpy as np

_erf = np.vectorize(erf)


class Tape:
    """Weights by name, and the gradients that the layers add up."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights = weights
        self.gradients = {name: np.zeros_like(array) for name, array in weights.items()}

    def add(self, name: str, gradient: np.ndarray) -> None:
        self.gradients[name] += gradient.reshape(self.gradients[name].shape)


def linear(tape, name, x):
    weight = tape.weights[f"{name}.weight"]

    def back(g):
        flat = g.reshape(-1, g.shape[-1])
        tape.add(f"{name}.weight", flat.T @ x.reshape(-1, x.shape[-1]))
        tape.add(f"{name}.bias", flat.sum(axis=0))
        return g @ weight

    return x @ weight.T + tape.weights[f"{name}.bias"], back


def patches(tape, name, x, side):
    """A convolution whose stride is its kernel's side: what does not fill a patch is left out."""
    weight = tape.weights[f"{name}.weight"]  # (out, side, side, in)
    count, height, width, channels = x.shape
    rows, columns = height // side, width // side
    cut = x[:, : rows * side, : columns * side].reshape(count, rows, side, columns, side, channels)
    flat = cut.transpose(0, 1, 3, 2, 4, 5).reshape(count, rows, columns, -1)
    matrix = weight.reshape(len(weight), -1)

    def back(g):
        tape.add(f"{name}.weight", g.reshape(-1, g.shape[-1]).T @ flat.reshape(-1, flat.shape[-1]))
        tape.add(f"{name}.bias", g.sum(axis=(0, 1, 2)))
        inner = (g @ matrix).reshape(count, rows, columns, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
        result = np.zeros_like(x)
        result[:, : rows * side, : columns * side] = inner.reshape(count, rows * side, columns * side, channels)
        return result

    return flat @ matrix.T + tape.weights[f"{name}.bias"], back


def depthwise(tape, name, x):
    weight = tape.weights[f"{name}.weight"][..., 0]  # (C, 7, 7)
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    taps = [(i, j) for i in range(7) for j in range(7)]
    result = sum(padded[:, i : i + height, j : j + width] * weight[:, i, j] for i, j in taps)

    def back(g):
        inner, own = np.zeros_like(padded), np.zeros_like(weight)
        for i, j in taps:
            inner[:, i : i + height, j : j + width] += g * weight[:, i, j]
            own[:, i, j] = (g * padded[:, i : i + height, j : j + width]).sum(axis=(0, 1, 2))
        tape.add(f"{name}.weight", own)
        tape.add(f"{name}.bias", g.sum(axis=(0, 1, 2)))
        return inner[:, 3:-3, 3:-3]

    return result + tape.weights[f"{name}.bias"], back


def layer_norm(tape, name, x, eps):
    weight = tape.weights[f"{name}.weight"]
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    normal = (x - x.mean(axis=-1, keepdims=True)) / deviation
    axes = tuple(range(x.ndim - 1))

    def back(g):
        tape.add(f"{name}.weight", (g * normal).sum(axis=axes))
        tape.add(f"{name}.bias", g.sum(axis=axes))
        g = g * weight
        return (g - g.mean(axis=-1, keepdims=True) - normal * (g * normal).mean(axis=-1, keepdims=True)) / deviation

    return normal * weight + tape.weights[f"{name}.bias"], back


def gelu(x):
    cumulative = 0.5 * (1 + _erf(x / sqrt(2)))
    slope = cumulative + x * np.exp(-x * x / 2) / sqrt(2 * pi)
    return x * cumulative, lambda g: g * slope


def grn(tape, name, x):
    weight, bias = tape.weights[f"{name}.weight"], tape.weights[f"{name}.bias"]
    norms = np.sqrt((x * x).sum(axis=(1, 2), keepdims=True))
    mean = norms.mean(axis=-1, keepdims=True) + 1e-6
    ratios = norms / mean

    def back(g):
        tape.add(f"{name}.weight", (g * x * ratios).sum(axis=(0, 1, 2)))
        tape.add(f"{name}.bias", g.sum(axis=(0, 1, 2)))
        to_ratios = (g * weight * x).sum(axis=(1, 2), keepdims=True)
        to_norms = to_ratios / mean - (to_ratios * norms).sum(axis=-1, keepdims=True) / mean**2 / x.shape[-1]
        return g * (weight * ratios + 1) + to_norms * x / norms

    return weight * x * ratios + bias + x, back


def block(tape, name, x, keep):
    steps = []
    hidden = x
    for layer in (
        lambda h: depthwise(tape, f"{name}.dwconv", h),
        lambda h: layer_norm(tape, f"{name}.layernorm", h, 1e-6),
        lambda h: linear(tape, f"{name}.pwconv1", h),
        gelu,
        lambda h: grn(tape, f"{name}.grn", h),
        lambda h: linear(tape, f"{name}.pwconv2", h),
    ):
        hidden, back = layer(hidden)
        steps.append(back)
    scale = keep[:, None, None, None]

    def back_all(g):
        inner = g * scale
        for back in reversed(steps):
            inner = back(inner)
        return g + inner

    return x + hidden * scale, back_all


def loss_and_gradients(weights, depths, x, targets, keep):
    """The mean cross-entropy of images (N, H, W, 3) and targets (N, classes), and the gradient of every weight.

    keep: (blocks, N), what each block's branch is multiplied by.
    """
    tape = Tape(weights)
    steps = []

    def run(layer, *arguments):
        nonlocal x
        x, back = layer(*arguments)
        steps.append(back)

    run(lambda: patches(tape, "convnextv2.embeddings.patch_embeddings", x, 4))
    run(lambda: layer_norm(tape, "convnextv2.embeddings.layernorm", x, 1e-6))
    number = 0
    for stage, depth in enumerate(depths):
        name = f"convnextv2.encoder.stages.{stage}"
        if stage:
            run(lambda name=name: layer_norm(tape, f"{name}.downsampling_layer.0", x, 1e-6))
            run(lambda name=name: patches(tape, f"{name}.downsampling_layer.1", x, 2))
        for layer in range(depth):
            run(lambda name=name, layer=layer, i=number: block(tape, f"{name}.layers.{layer}", x, keep[i]))
            number += 1
    shape = x.shape
    positions = shape[1] * shape[2]
    run(lambda: (x.mean(axis=(1, 2)), lambda g: np.broadcast_to(g[:, None, None] / positions, shape)))
    run(lambda: layer_norm(tape, "convnextv2.layernorm", x, 1e-12))
    run(lambda: linear(tape, "classifier", x))
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    probabilities = powers / powers.sum(axis=-1, keepdims=True)
    loss = -(targets * np.log(probabilities)).sum(axis=-1).mean()
    gradient = (probabilities * targets.sum(axis=-1, keepdims=True) - targets) / len(x)
    for back in reversed(steps):
        gradient = back(gradient)
    return loss, tape.gradients


def mixed(x, targets, how):
    """Mixup and CutMix of neighbours: the images and the targets of the batch."""
    top, bottom, left, right, weight = how
    kept = np.ones(x.shape[1:3])
    kept[int(top) : int(bottom), int(left) : int(right)] = weight
    order = [i + 1 if i % 2 == 0 else i - 1 for i in range(len(x))]
    if len(x) % 2:
        order[-1] = len(x) - 1
    share = kept.mean()
    kept = kept[None, :, :, None]
    return kept * x + (1 - kept) * x[order], share * targets + (1 - share) * targets[order]


class AdamW:
    """As in the paper, with corrected bias; `rates` and `decays` by name."""

    def __init__(self, weights, rates, decays):
        self.first = {name: np.zeros_like(array) for name, array in weights.items()}
        self.second = {name: np.zeros_like(array) for name, array in weights.items()}
        self.rates, self.decays, self.steps = rates, decays, 0

    def step(self, weights, gradients, lr):
        self.steps += 1
        result = {}
        for name, weight in weights.items():
            g = gradients[name]
            self.first[name] = 0.9 * self.first[name] + 0.1 * g
            self.second[name] = 0.999 * self.second[name] + 0.001 * g * g
            first = self.first[name] / (1 - 0.9**self.steps)
            second = self.second[name] / (1 - 0.999**self.steps)
            rate = lr * self.rates[name]
            result[name] = weight - rate * self.decays[name] * weight - rate * first / (np.sqrt(second) + 1e-8)
        return result
