"""What is quantized, what is not and why.

The linear layers are quantized: pwconv1 and pwconv2 of every block, and the classifier. They hold nine tenths of the
parameters. Convolutions stay in floating point, because MLX has no quantized convolution, and so do norms and GRN,
because they are small. A linear layer is quantized in groups along its input. If no group size divides its input, the
layer stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from .layers import linear as make_linear, no_init_weights, quantized_linear

# What mx.quantize offers: group sizes and bits of each mode, the default first.
MODES: dict[str, dict[str, tuple[int, ...]]] = {
    "affine": {"group_sizes": (32, 64, 128), "bits": (4, 2, 3, 5, 6, 8)},
    "mxfp4": {"group_sizes": (32,), "bits": (4,)},
    "mxfp8": {"group_sizes": (32,), "bits": (8,)},
    "nvfp4": {"group_sizes": (16,), "bits": (4,)},
}


@dataclass(frozen=True)
class LayerPlan:
    """The plan for one layer: quantized in groups of `group_size`, or left as it is for `reason`."""

    path: str
    group_size: int | None
    reason: str = ""


@dataclass(frozen=True)
class QuantizationPlan:
    """The plan for every layer of a model."""

    mode: str
    bits: int
    group_size: int
    layers: tuple[LayerPlan, ...]

    def to_dict(self) -> dict[str, Any]:
        """The `quantization` entry of a config.json: the common parameters, and those of layers that differ."""
        common = {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}
        own = {
            layer.path: {**common, "group_size": layer.group_size}
            for layer in self.layers
            if layer.group_size not in (None, self.group_size)
        }
        return {**common, **own}


def plan_quantization(
    model: nn.Module, bits: int | None = None, group_size: int | None = None, mode: str = "affine"
) -> QuantizationPlan:
    """Decide for each layer. Nothing is computed yet.

    Args:
        model: a model in floating point.
        bits, group_size: None means the mode's default. If `group_size` does not divide a layer's input, the layer
            takes the mode's next smaller group size that does.
        mode: one of `MODES`.

    Raises:
        ValueError: the mode does not offer these bits or this group size, or no layer could be quantized.
    """
    if mode not in MODES:
        raise ValueError(f"the quantization mode must be one of {', '.join(MODES)}, not {mode!r}")
    bits = MODES[mode]["bits"][0] if bits is None else bits
    sizes = MODES[mode]["group_sizes"]
    group_size = sizes[0] if group_size is None else group_size
    for name, value, allowed in (("bits", bits, MODES[mode]["bits"]), ("group size", group_size, sizes)):
        if value not in allowed:
            raise ValueError(f"{mode} takes {name} of {', '.join(map(str, sorted(allowed)))}, not {value}")
    layers = []
    for path, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear):
            raise ValueError("the model is quantized already: start from the original checkpoint")
        if isinstance(module, nn.Conv2d):
            layers.append(LayerPlan(path, None, "MLX has no quantized convolution"))
        elif isinstance(module, nn.Linear):
            inputs = module.weight.shape[1]
            fitting = [size for size in sizes if size <= group_size and inputs % size == 0]
            reason = "" if fitting else f"no group size up to {group_size} divides its {inputs} inputs"
            layers.append(LayerPlan(path, max(fitting, default=None), reason))
    if all(layer.group_size is None for layer in layers):
        raise ValueError("no layer of this model can be quantized: none has inputs that a group size divides")
    return QuantizationPlan(mode, bits, group_size, tuple(sorted(layers, key=lambda layer: layer.path)))


@dataclass(frozen=True)
class QuantizationReport:
    """What was quantized and what was not, and the parameters' size in bytes before and after."""

    plan: QuantizationPlan
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        outcome: Counter[tuple[str, str]] = Counter()
        for layer in self.plan.layers:
            kind = layer.path.rsplit(".", 1)[-1]
            outcome["downsampling" if kind == "1" else kind, self._how(layer)] += 1
        width = max(len(kind) for kind, _ in outcome)
        lines = [f"  {count:3d} x {kind:{width}}  {how}" for (kind, how), count in sorted(outcome.items())]
        sizes = f"  {self.bytes_before / 1e6:,.1f} MB before, {self.bytes_after / 1e6:,.1f} MB after"
        return "\n".join(["Quantized:", *lines, sizes])

    def _how(self, layer: LayerPlan) -> str:
        if layer.group_size is None:
            return f"left as it is: {layer.reason}"
        how = f"{self.plan.bits} bits in groups of {layer.group_size}"
        if layer.group_size != self.plan.group_size:
            how += f", because {self.plan.group_size} does not divide its inputs"
        return how


def quantize(
    model: nn.Module, bits: int | None = None, group_size: int | None = None, mode: str = "affine"
) -> QuantizationReport:
    """Quantize the model in place, as `plan_quantization` decides, and note it in `model.config`."""
    plan = plan_quantization(model, bits, group_size, mode)
    before = _stored_bytes(model)
    _replace_layers(model, {layer.path: layer.group_size for layer in plan.layers if layer.group_size}, plan)
    model.config.extra["quantization"] = plan.to_dict()
    return QuantizationReport(plan, before, _stored_bytes(model))


def dequantize(model: nn.Module, dtype: mx.Dtype | None = None) -> None:
    """Replace the model's quantized layers in place by equal linear layers in floating point.

    Args:
        model: a model with quantized layers.
        dtype: the dtype of all parameters; None keeps the dtype of each layer's bias.

    Raises:
        ValueError: no layer is quantized.
    """
    layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, nn.QuantizedLinear)]
    if not layers:
        raise ValueError("the model is not quantized, so there is nothing to dequantize")
    replaced = []
    for path, layer in layers:
        scales, biases = layer.scales, layer.get("biases")
        if biases is not None:  # only affine: other modes encode their scales
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        how = (layer.group_size, layer.bits, layer.mode)
        weight = mx.dequantize(layer.weight, scales, biases, *how, dtype=mx.float32)
        with no_init_weights():
            linear = make_linear(1, 1)
        linear.weight, linear.bias = weight.astype(dtype or layer.bias.dtype), layer.bias
        replaced.append((path, linear))
    model.update_modules(tree_unflatten(replaced))
    if dtype is not None:
        model.set_dtype(dtype)
    model.config.extra.pop("quantization", None)


def count_parameters(shapes: Mapping[str, Sequence[int]], bits: int | None = None) -> int:
    """The number of parameters in tensors. Quantized weights count as before quantization, their scales and biases not.

    Args:
        shapes: the tensors' shapes by name.
        bits: the bits of a quantized weight. Each value of a packed tensor has 32.
    """
    layers = {name.removesuffix(".scales") for name in shapes if name.endswith(".scales")}
    total = 0
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        if layer not in layers or kind not in ("weight", "scales", "biases"):
            total += prod(shape)
        elif kind == "weight":
            total += prod(shape) * 32 // bits  # type: ignore[operator]  # a checkpoint with scales states them
    return total


def restore_quantized_layers(model: nn.Module, names: Collection[str], prefix: str = "") -> None:
    """Give the model quantized layers, without weights yet, wherever a checkpoint holds a layer's scales.

    Args:
        model: the `quantization` entry of its config says how its layers are quantized.
        names: the names of the checkpoint's tensors.
        prefix: the checkpoint's prefix before the model's names.

    Raises:
        ValueError: the entry is missing or makes no sense.
    """
    quantized = [name.removesuffix(".scales") for name in names if name.endswith(".scales")]
    if not quantized:
        return
    entry = model.config.extra.get("quantization")
    try:
        plan = QuantizationPlan(entry["mode"], entry["bits"], entry["group_size"], ())
        sizes = {path.removeprefix(prefix): entry.get(path, entry)["group_size"] for path in quantized}
        offered = MODES[plan.mode]
        allowed = (plan.bits, offered["bits"]), *((size, offered["group_sizes"]) for size in sizes.values())
        if not all(type(value) is int and value in values for value, values in allowed):
            raise ValueError
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ValueError(
            'the weights are quantized, and config.json has no valid "quantization" entry: convert them again'
        ) from None
    layers = tuple(LayerPlan(path, size) for path, size in sizes.items())
    model.config.extra["quantization"] = replace(plan, layers=layers).to_dict()  # under this model's own names
    _replace_layers(model, sizes, plan)


def _stored_bytes(model: nn.Module) -> int:
    """The size of all parameters in bytes."""
    return sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())


def _replace_layers(model: nn.Module, group_sizes: Mapping[str, int], plan: QuantizationPlan) -> None:
    replaced = [
        (path, quantized_linear(module, group_sizes[path], plan.bits, plan.mode))
        for path, module in model.named_modules()
        if path in group_sizes and isinstance(module, nn.Linear)
    ]
    model.update_modules(tree_unflatten(replaced))
