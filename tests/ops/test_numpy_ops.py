"""The operations in numpy, forwards and backwards, against plain MLX's and their gradients."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import SMALL, small_classifier
from hypothesis import given, settings, strategies as st
from mlx.utils import tree_flatten

from mlx_convnextv2 import ConvNextV2ForImageClassification
from mlx_convnextv2.ops import dispatch as ops, numpy_parts, plain
from mlx_convnextv2.ops.tolerances import KERNEL

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
SHAPES = [(1, 1, 1, 1), (1, 1, 1, 5), (2, 1, 9, 33), (3, 9, 1, 31), (1, 2, 3, 257), (5, 7, 6, 40), (1, 30, 61, 64)]

pytestmark = pytest.mark.usefixtures("numpy_path")


@pytest.fixture
def numpy_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "numpy")


def random(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0, spread: float = 1.0) -> mx.array:
    values = np.random.RandomState(seed + sum(shape)).standard_normal(shape) * spread
    return mx.array(values.astype(np.float32)).astype(dtype)


def depthwise_arrays(shape: tuple[int, ...], dtype: mx.Dtype) -> list[mx.array]:
    channels = shape[-1]
    weight = random(channels, 7, 7, 1, dtype=dtype, seed=1, spread=0.2)
    return [random(*shape, dtype=dtype), weight, *(random(channels, dtype=dtype, seed=s) for s in (2, 3, 4))]


def gelu_grn_arrays(shape: tuple[int, ...], dtype: mx.Dtype) -> list[mx.array]:
    vectors = [random(1, 1, 1, shape[-1], dtype=dtype, seed=seed) for seed in (1, 2)]
    return [random(*shape, dtype=dtype, spread=2), *vectors]


def linear_arrays(shape: tuple[int, ...], dtype: mx.Dtype) -> list[mx.array]:
    weight = random(shape[1] + 2, shape[-1], dtype=dtype, seed=1)
    return [random(*shape, dtype=dtype), weight, random(len(weight), dtype=dtype, seed=2)]


def patch_arrays(shape: tuple[int, ...], dtype: mx.Dtype) -> list[mx.array]:
    weight = random(7, min(2, shape[1]), min(3, shape[2]), shape[3], dtype=dtype, seed=1)
    return [random(*shape, dtype=dtype), weight, random(7, dtype=dtype, seed=2)]


# Ours, the plain form, and what makes the arrays.
OPERATIONS: dict[str, tuple[Callable[..., mx.array], Callable[..., mx.array], Callable[..., list[mx.array]]]] = {
    "depthwise_layer_norm": (
        partial(ops.depthwise_layer_norm, eps=1e-6),
        partial(plain.depthwise_layer_norm, eps=1e-6),
        depthwise_arrays,
    ),
    "gelu_grn": (ops.gelu_grn, plain.gelu_grn, gelu_grn_arrays),
    "linear": (ops.linear, plain.linear, linear_arrays),
    "patch_conv2d": (ops.patch_conv2d, plain.patch_conv2d, patch_arrays),
}


def assert_close(result: mx.array, expected: mx.array, scale: float | None = None) -> None:
    """Within the dtype's tolerance of a float32 result; `scale` is the largest magnitude that counts."""
    assert result.shape == expected.shape
    tolerance = KERNEL[str(result.dtype).removeprefix("mlx.core.")]
    scale = float(mx.abs(expected).max()) if scale is None else scale
    assert float(mx.abs(result.astype(mx.float32) - expected).max()) <= tolerance * scale  # false for NaN


def check(name: str, shape: Sequence[int], dtype: mx.Dtype) -> None:
    """The result and all gradients, against those of the plain form in float32 for the same rounded arrays."""
    ours, plain_form, make = OPERATIONS[name]
    arrays = make(tuple(shape), dtype)
    exact = [array.astype(mx.float32) for array in arrays]
    expected = plain_form(*exact)
    cotangent = random(*expected.shape, dtype=dtype, seed=9)
    gradients = mx.vjp(plain_form, exact, [cotangent.astype(mx.float32)])[1]
    (result,), ours_gradients = mx.vjp(ours, arrays, [cotangent])
    assert result.dtype == dtype
    assert_close(result, expected)
    # Where a gradient is the rest of terms that cancel, as it is in a norm of one or two channels, their size counts.
    floor = 1.0 if shape[-1] < 8 or dtype != mx.float32 else 1e-3
    for array, gradient, reference in zip(arrays, ours_gradients, gradients, strict=True):
        assert gradient.dtype == array.dtype
        assert_close(gradient, reference, max(float(mx.abs(reference).max()), floor))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_plain(name: str, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    check(name, shape, dtype)


@pytest.mark.parametrize("name", OPERATIONS)
# The same draws each time, for once in thousands two channels are nearly equal, and their norm multiplies rounding.
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12), st.integers(1, 100)),
    dtype=st.sampled_from(DTYPES),
    part=st.sampled_from([1, 500, numpy_parts.PART]),
    workers=st.integers(1, 5),
)
def test_drawn_shapes_and_parts(name: str, shape: tuple[int, ...], dtype: mx.Dtype, part: int, workers: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numpy_parts, "PART", part)
        patch.setattr(numpy_parts, "workers", lambda: workers)
        check(name, shape, dtype)


@pytest.mark.parametrize("shape", [(8, 56, 56, 40), (1, 56, 56, 96), (8, 7, 7, 320), (7, 14, 14, 160)], ids=str)
def test_the_parts_are_every_pixel_once_and_as_many_for_each_worker(shape: tuple[int, ...], monkeypatch) -> None:
    monkeypatch.setattr(numpy_parts, "workers", lambda: 2)
    pixels = np.zeros(shape[:3])
    parts = numpy_parts.parts_of(shape)
    for part in parts:
        pixels[part] += 1
    assert (pixels == 1).all()
    sizes = [pixels[part].size * shape[-1] for part in parts]
    assert len(parts) >= 2
    assert max(sizes) <= max(numpy_parts.PART, shape[2] * shape[3]) * 1.5


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_same_input_gives_the_same_bits(name: str) -> None:
    ours, _, make = OPERATIONS[name]
    arrays = make((4, 40, 40, 32), mx.float32)
    cotangent = random(*ours(*arrays).shape)
    runs = [mx.vjp(ours, arrays, [cotangent]) for _ in range(4)]
    for result, gradients in runs[1:]:
        for first, other in zip([*runs[0][0], *runs[0][1]], [*result, *gradients], strict=True):
            assert mx.array_equal(first, other)


@pytest.mark.parametrize("name", OPERATIONS)
def test_mixed_dtypes_are_those_of_plain(name: str) -> None:
    """Half activations and float32 weights, as master weights are: dtypes as plain MLX has them."""
    ours, plain_form, make = OPERATIONS[name]
    x, *others = make((2, 5, 6, 8), mx.float32)
    arrays = [x.astype(mx.bfloat16), *others]
    expected = plain_form(*arrays)
    (result,), gradients = mx.vjp(ours, arrays, [mx.ones_like(expected)])
    assert result.dtype == expected.dtype
    assert [gradient.dtype for gradient in gradients] == [array.dtype for array in arrays]


@pytest.mark.parametrize("name", ["gelu_grn", "linear"])  # MLX has no forward mode of convolutions
def test_second_derivatives_and_forward_mode(name: str) -> None:
    ours, plain_form, make = OPERATIONS[name]
    arrays = make((1, 4, 5, 6), mx.float32)

    def second(function: Callable[..., mx.array]) -> mx.array:
        def first(x: mx.array) -> mx.array:
            return mx.grad(lambda x: mx.square(function(x, *arrays[1:])).sum())(x)

        return mx.grad(lambda x: mx.sin(first(x)).sum())(arrays[0])

    def forward(function: Callable[..., mx.array]) -> mx.array:
        return mx.jvp(lambda x: function(x, *arrays[1:]), arrays[:1], [mx.ones_like(arrays[0])])[1][0]

    for derive in (second, forward):
        expected = derive(plain_form)
        assert mx.abs(derive(ours) - expected).max() <= 1e-4 * mx.abs(expected).max()


def gradients_of(function: Callable[..., mx.array]) -> Callable[..., tuple[mx.array, ...]]:
    return mx.grad(lambda *arrays: mx.square(function(*arrays)).sum(), argnums=(0, 1, 2))


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_traced_is_plain(name: str, tmp_path) -> None:
    """In `mx.compile`, whichever arrays are traced, in `mx.vmap` and in an export: a graph with a gradient of its own
    cannot be exported."""
    ours, plain_form, make = OPERATIONS[name]
    x, *others = arrays = make((2, 5, 6, 8), mx.float32)
    expected = plain_form(*arrays)
    mx.export_function(str(tmp_path / "f.mlxfn"), ours, *arrays)
    imported: Any = mx.import_function(str(tmp_path / "f.mlxfn"))  # MLX says that it is a tuple
    assert_close(imported(*arrays)[0], expected)
    assert_close(mx.vmap(lambda x: ours(x, *others))(x[None])[0], expected)
    # Tracing alone: MLX compiles C++ when a result is evaluated.
    assert mx.compile(ours)(*arrays).shape == expected.shape
    assert mx.compile(lambda x: ours(x, *others))(x).shape == expected.shape
    assert mx.compile(lambda *others: ours(x, *others))(*others).shape == expected.shape
    shapes = [array.shape for array in arrays[:3]]
    assert [gradient.shape for gradient in mx.compile(gradients_of(ours))(*arrays)] == shapes


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_compiled_gradients(name: str) -> None:
    ours, plain_form, make = OPERATIONS[name]
    arrays = make((2, 5, 6, 8), mx.float32)
    pairs = zip(mx.compile(gradients_of(ours))(*arrays), gradients_of(plain_form)(*arrays), strict=True)
    for result, reference in pairs:
        assert_close(result, reference)


def test_a_channel_that_is_zero_everywhere_has_a_gradient() -> None:
    x, weight, bias = gelu_grn_arrays((2, 4, 5, 6), mx.float32)
    x[..., 2] = 0
    check_against = mx.grad(lambda x: mx.square(plain.gelu_grn(x, weight, bias)).sum())(x)
    gradient = mx.grad(lambda x: mx.square(ops.gelu_grn(x, weight, bias)).sum())(x)
    assert_close(gradient, check_against)


def test_large_half_activations_do_not_overflow() -> None:
    x = mx.full((1, 20, 20, 8), 200.0, dtype=mx.float16)  # squares sum to 1.6e7
    ones = mx.ones((1, 1, 1, 8), dtype=mx.float16)
    result, gradient = mx.value_and_grad(lambda x: ops.gelu_grn(x, ones, ones).astype(mx.float32).sum())(x)
    assert mx.isfinite(result)
    assert mx.isfinite(gradient).all()


def test_values_that_are_not_finite_stay_visible() -> None:
    for name in OPERATIONS:
        ours, _, make = OPERATIONS[name]
        arrays = make((1, 4, 5, 6), mx.float32)
        arrays[0][0, 1, 1, 1] = mx.nan
        assert mx.isnan(ours(*arrays)).any()


def test_other_dtypes_and_nothing_at_all_are_plain() -> None:
    weight, bias = mx.ones((1, 1, 1, 6)), mx.zeros((1, 1, 1, 6))
    assert ops.gelu_grn(mx.ones((0, 4, 5, 6)), weight, bias).shape == (0, 4, 5, 6)
    double = [array.astype(mx.float64) for array in (mx.ones((1, 2, 2, 6)), weight, bias)]
    with mx.stream(mx.cpu):
        assert ops.gelu_grn(*double).dtype == mx.float64


@pytest.fixture
def model() -> ConvNextV2ForImageClassification:
    model = small_classifier(num_labels=7)
    model.train()
    return model


def loss_and_gradients(model: nn.Module, compile: bool = False) -> tuple[mx.array, dict[str, mx.array]]:
    pixel_values, labels = random(3, 75, 66, 3), mx.array([1, 4, 2])
    function = nn.value_and_grad(model, lambda model, x: model(x, labels=labels).loss)
    loss, gradients = (mx.compile(partial(function, model)) if compile else partial(function, model))(pixel_values)
    mx.eval(loss, gradients)
    return loss, dict(tree_flatten(gradients))


def assert_same_training(ours: tuple, expected: tuple) -> None:
    assert abs(ours[0].item() - expected[0].item()) <= 1e-5 * abs(expected[0].item())
    assert ours[1].keys() == expected[1].keys()
    for name, reference in expected[1].items():
        largest = max(float(mx.abs(reference).max()), 1e-3)
        assert float(mx.abs(ours[1][name] - reference).max()) <= 1e-5 * largest, name


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_a_models_gradients_are_the_plain_ones(model, compile: bool, monkeypatch) -> None:
    ours = loss_and_gradients(model, compile)
    monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "plain")
    assert_same_training(ours, loss_and_gradients(model))


def test_a_part_of_the_model_is_trained(model, monkeypatch) -> None:
    model.freeze()
    model.convnextv2.encoder.stages[-1].layers[-1].grn.unfreeze()
    model.classifier.unfreeze()
    ours = loss_and_gradients(model)
    monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "plain")
    expected = loss_and_gradients(model)
    assert {name.split(".")[-2] for name in expected[1]} == {"grn", "classifier"}
    assert_same_training(ours, expected)


def test_a_block_is_computed_again_for_its_gradient(model) -> None:
    """As `mx.checkpoint` does it, to keep less."""
    block = model.convnextv2.encoder.stages[0].layers[0]
    x = random(2, 9, 8, SMALL["hidden_sizes"][0])
    expected = nn.value_and_grad(block, lambda block: mx.square(block(x)).sum())(block)
    again = nn.value_and_grad(block, lambda block: mx.square(nn.utils.checkpoint(block)(x)).sum())(block)
    assert again[0].item() == expected[0].item()
    gradients, references = dict(tree_flatten(again[1])), dict(tree_flatten(expected[1]))
    assert gradients.keys() == references.keys()
    for name in references:
        assert mx.array_equal(gradients[name], references[name]), name


def test_another_thread_trains(model) -> None:
    expected = loss_and_gradients(model)
    found = []
    thread = threading.Thread(target=lambda: found.append(loss_and_gradients(model)))
    thread.start()
    thread.join()
    assert_same_training(found[0], expected)


def test_the_plain_grouped_convolution_is_not_used_in_training(model, monkeypatch) -> None:
    """Whose gradient on a CPU is a loop over single products, a hundred times slower."""
    monkeypatch.setattr(mx, "conv2d", lambda *_, **__: pytest.fail("MLX's convolution was called"))
    loss_and_gradients(model)
