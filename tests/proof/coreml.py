"""A machine for Core ML programs, because off a Mac Core ML cannot predict.

It executes a saved package's operations one by one, each as Core ML's specification of it reads, and rounds after each
to the type that the package gives its result.

What the package holds is read by coremltools; what its operations compute is written here, in numpy. Sums are made in
float64, so that a result's error is that of the roundings. For float16, which an engine may sum in too, a sum must fit
in whatever order it is made: the magnitudes of its terms must.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from coremltools.converters.mil.frontend.milproto.load import load as load_program
from coremltools.converters.mil.mil import types
from scipy.special import erf

LARGEST_HALF = 65504
TYPES = {"fp16": np.float16, "fp32": np.float32}


def execute(
    package: Path, inputs: Mapping[str, np.ndarray], watch: dict[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """The outputs by name, for inputs by name; with `watch`, every variable is left there."""
    model = ct.models.MLModel(str(package), skip_model_load=True)
    spec = model.get_spec()
    program = load_program(spec, spec.specificationVersion, model.weights_dir)
    function = program.functions["main"]
    values: dict[str, Any] = {} if watch is None else watch
    for name, variable in function.inputs.items():
        assert inputs[name].dtype == np.float32
        assert all(
            told == got for told, got in zip(variable.shape, inputs[name].shape, strict=True) if isinstance(told, int)
        )
        values[name] = inputs[name]
    for operation in function.operations:
        if operation.op_type == "const":
            continue
        if operation.op_type == "classify":
            labels = [str(label) for label in operation.classes.val]
            scores = values[operation.probabilities.name]
            assert scores.shape in ((1, len(labels)), (len(labels),))
            names = [variable.name for variable in operation.outputs]
            values[names[0]] = np.array(labels[int(scores.argmax())])
            values[names[1]] = dict(zip(labels, scores.reshape(-1).tolist(), strict=True))
            continue
        (output,) = operation.outputs
        result = _EXECUTE[operation.op_type](_arguments(operation, values))
        values[output.name] = _rounded(result, output, operation)
    return {variable.name: values[variable.name] for variable in function.outputs}


def _arguments(operation: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The operation's inputs, floats as float64; a constant has its value, and any other variable one computed."""
    arguments = {}
    for name, variable in operation.inputs.items():
        if variable is None:
            continue
        value = values.get(variable.name, variable.val)
        is_float = isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f"
        arguments[name] = value.astype(np.float64) if is_float else value
    return arguments


def _rounded(result: np.ndarray, output: Any, operation: Any) -> np.ndarray:
    """The result in the type that the package gives it; a sum in float16 fits in whatever order it is made."""
    kind = types.builtin_to_string(output.dtype)
    assert all(told == got for told, got in zip(output.shape, result.shape, strict=True) if isinstance(told, int))
    with np.errstate(over="ignore"):
        result = result.astype(TYPES[kind])
    assert np.isfinite(result).all(), f"{operation.op_type} {operation.name} is not finite in {kind}"
    if kind == "fp16" and operation.op_type in ("reduce_sum", "reduce_mean"):
        assert _SUMS.pop() <= LARGEST_HALF, f"{operation.name} overflows in some order of summation"
    return result


_SUMS: list[float] = []  # of the magnitudes that the last reduction summed


def _conv(a: dict[str, Any]) -> np.ndarray:
    """x (N, C, H, W), weight (O, C / groups, kH, kW)."""
    x, weight, groups = a["x"], a["weight"], int(a["groups"])
    if str(a["pad_type"]) == "custom":
        top, bottom, left, right = a["pad"]
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    else:
        assert str(a["pad_type"]) == "valid"
    assert list(a["dilations"]) == [1, 1]
    (down, across), (tall, wide) = a["strides"], weight.shape[2:]
    height, width = (x.shape[2] - tall) // down + 1, (x.shape[3] - wide) // across + 1
    # As float32, which holds the products of float16 values exactly; a sum of thousands then errs by less than 1e-6.
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    out = np.zeros((len(x), len(weight), height, width), np.float32)
    for i in range(tall):
        for j in range(wide):
            part = x[:, :, i : i + down * height : down, j : j + across * width : across]
            if groups == 1:
                n, c = part.shape[:2]
                out += (weight[:, :, i, j] @ part.reshape(n, c, -1)).reshape(out.shape)
            else:
                assert groups == len(weight) == x.shape[1]
                out += part * weight[None, :, 0, i, j, None, None]
    return out + a["bias"].astype(np.float32)[None, :, None, None]


def _layer_norm(a: dict[str, Any]) -> np.ndarray:
    x, axes = a["x"], tuple(a["axes"])
    assert axes == (1,)
    centred = x - x.mean(axes, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + a["epsilon"])
    return scaled * a["gamma"][None, :, None, None] + a["beta"][None, :, None, None]


def _gelu(a: dict[str, Any]) -> np.ndarray:
    x = a["x"]
    if str(a["mode"]) == "TANH_APPROXIMATION":
        return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    assert str(a["mode"]) == "EXACT"
    return x / 2 * (1 + erf(x / np.sqrt(2)))


def _sum(a: dict[str, Any], reduce: Callable[..., Any]) -> np.ndarray:
    axes = tuple(a["axes"])
    _SUMS[:] = [np.abs(a["x"]).sum(axes).max()]
    return reduce(a["x"], axes, keepdims=bool(a["keep_dims"]))


def _softmax(a: dict[str, Any]) -> np.ndarray:
    axis = int(a["axis"])
    exponentials = np.exp(a["x"] - a["x"].max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def _palette(a: dict[str, Any]) -> np.ndarray:
    """Indices lie in the bytes from the lowest bit on."""
    bits, shape = len(a["lut"]).bit_length() - 1, tuple(map(int, a["shape"]))
    flat = np.unpackbits(a["indices"], bitorder="little")[: int(np.prod(shape)) * bits].reshape(-1, bits)
    indices = (flat.astype(np.int64) << np.arange(bits)).sum(1)
    return a["lut"][indices].reshape(shape)


def _affine(a: dict[str, Any]) -> np.ndarray:
    integers = a["quantized_data"].astype(np.float64) - np.float64(a["zero_point"])
    column = [1] * integers.ndim
    column[int(a["axis"])] = -1
    return integers * np.reshape(a["scale"], column)


_EXECUTE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "cast": lambda a: a["x"],
    "conv": _conv,
    "layer_norm": _layer_norm,
    "gelu": _gelu,
    "relu": lambda a: np.maximum(a["x"], 0),
    "silu": lambda a: a["x"] / (1 + np.exp(-a["x"])),
    "elu": lambda a: np.where(a["x"] > 0, a["x"], a["alpha"] * np.expm1(np.minimum(a["x"], 0))),
    "add": lambda a: a["x"] + a["y"],
    "mul": lambda a: a["x"] * a["y"],
    "real_div": lambda a: a["x"] / a["y"],
    "maximum": lambda a: np.maximum(a["x"], a["y"]),
    "sqrt": lambda a: np.sqrt(a["x"]),
    "reduce_max": lambda a: a["x"].max(tuple(a["axes"]), keepdims=bool(a["keep_dims"])),
    "reduce_sum": lambda a: _sum(a, np.sum),
    "reduce_mean": lambda a: _sum(a, np.mean),
    "squeeze": lambda a: a["x"].squeeze(tuple(a["axes"])),
    "softmax": _softmax,
    "constexpr_lut_to_dense": _palette,
    "constexpr_affine_dequantize": _affine,
}
