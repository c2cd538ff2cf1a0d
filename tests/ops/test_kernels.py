"""The GPU kernels against plain MLX: executed on the CPU by the proof, and with the marker gpu on a GPU itself."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from unittest import mock

import mlx.core as mx
import numpy as np
import proof
import pytest
from conftest import randomize
from hypothesis import given, settings, strategies as st
from kernel_cases import (
    DTYPES,
    assert_close,
    check_depthwise,
    check_gelu_grn,
    check_gradient,
    check_gradients,
    depthwise_arrays,
    depthwise_gradient,
    gelu_grn_arrays,
    gelu_grn_gradient,
    plain_depthwise,
    random,
)

from mlx_convnextv2 import ConvNextV2Config
from mlx_convnextv2.inference.composition import plain_block
from mlx_convnextv2.inference.folds import bias_behind, scale_weight
from mlx_convnextv2.inference.gpu_block import FoldedBlock
from mlx_convnextv2.model.config import SIZES
from mlx_convnextv2.model.convnextv2 import ConvNextV2Layer
from mlx_convnextv2.ops import dispatch, gpu, plain


def stage_shapes(resolution: int) -> list[tuple[int, int]]:
    """(side, channels) of every stage of the eight sizes, each once."""
    shapes = {
        (resolution // 4 // 2**stage, channels)
        for size in SIZES
        for stage, channels in enumerate(ConvNextV2Config.from_size(size).hidden_sizes)
    }
    return sorted(shapes)


def one_of_each_tile() -> list[tuple[int, int]]:
    """Of all those stages the first with each tile, and so with each text of the kernel."""
    found: dict[tuple[int, ...], tuple[int, int]] = {}
    for side, channels in (*stage_shapes(224), *stage_shapes(384)):
        channels_per_thread, _, *tile = gpu.tile_of(1, side, side, channels)
        found.setdefault((channels_per_thread, *tile), (side, channels))
    return list(found.values())


TILES = one_of_each_tile()
PLAINLY = [TILES[0], max(TILES, key=lambda shape: shape[1])]  # the others take a compiler long
OTHERS = sorted({*stage_shapes(224), *stage_shapes(384)} - {*TILES})
STAGES = [
    *((*shape, mx.float32) for shape in PLAINLY),
    *(
        pytest.param(*shape, dtype, marks=pytest.mark.slow)
        for shapes, dtypes in (({*TILES} - {*PLAINLY}, DTYPES), (PLAINLY, DTYPES[1:]), (OTHERS, DTYPES[:1]))
        for shape in sorted(shapes)
        for dtype in dtypes
    ),
]


@pytest.mark.parametrize(("side", "channels", "dtype"), STAGES)
def test_every_stage_of_the_eight_sizes(side: int, channels: int, dtype: mx.Dtype, device) -> None:
    """At 224 and 384, in the tiles of the whole image on its first rows."""
    tile = gpu.tile_of(1, side, side, channels)
    rows = min(side, max(tile[2] + 1, 4000 // (side * channels) + 1))
    with mock.patch.object(gpu, "tile_of", return_value=tile):
        check_depthwise((1, rows, side, channels), dtype, device)
    check_gelu_grn((1, min(side * side, 40), 4 * channels), dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "channels"), TILES)
def test_whole_images(side: int, channels: int, device) -> None:
    check_depthwise((1, side, side, channels), mx.float32, device)
    check_gelu_grn((1, side * side, 4 * channels), mx.float32, device)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("side", "channels"), [(56, 40), (14, 384), (7, 768), (7, 2816)])
def test_gradients_of_the_stages_with_fewest_and_most_channels(side: int, channels: int, dtype, device) -> None:
    check_gradients((1, min(side, max(5, 4000 // (side * channels))), side, channels), dtype, device)


# A width of one, pixels that fill no tile, more channels than lanes or threads, many small images.
ODD = [
    (1, 1, 1, 1),
    (1, 1, 1, 5),
    (2, 1, 9, 33),
    (3, 9, 1, 31),
    (1, 2, 3, 257),
    (1, 5, 4, 513),
    (65, 2, 2, 8),
    (2, 5, 9, 40),
]
PLAIN = {((1, 1, 1, 5), mx.float32), ((1, 5, 4, 513), mx.float32), ((2, 5, 9, 40), mx.bfloat16)}


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        pytest.param(shape, dtype, marks=() if (shape, dtype) in PLAIN else pytest.mark.slow)
        for shape in ODD
        for dtype in DTYPES
    ],
    ids=str,
)
def test_odd_shapes(shape: tuple[int, int, int, int], dtype: mx.Dtype, device) -> None:
    batch, height, width, channels = shape
    check_depthwise(shape, dtype, device)
    check_gelu_grn((batch, height * width, channels), dtype, device)
    check_gradients(shape, dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [(1, 1), (1, 2), (1, 4), (2, 4), (4, 4), (8, 4)], ids=str)
def test_every_tile(tile: tuple[int, int], device) -> None:
    with mock.patch.object(gpu, "tile_of", return_value=(2, 64, *tile)):
        check_depthwise((2, 7, 6, 70), mx.float32, device)


@pytest.mark.slow
@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(1, 300)),
    dtype=st.sampled_from(DTYPES),
)
def test_drawn_shapes(shape: tuple[int, int, int, int], dtype: mx.Dtype) -> None:
    proof.require_compiler()
    batch, height, width, channels = shape
    check_depthwise(shape, dtype, proof.executed)
    check_gelu_grn((batch, height * width, 4 * channels), dtype, proof.executed)
    check_gradients((batch, height, width, max(channels, 8)), dtype, proof.executed)


def test_an_image_too_large_for_32_bits_is_plain(monkeypatch) -> None:
    """Places in the depthwise kernels are counted in 32 bits: more elements than that never reach them."""
    assert gpu.MOST_ELEMENTS < 2**31
    monkeypatch.setattr(gpu, "MOST_ELEMENTS", 2 * 7 * 6)
    calls: list[object] = []

    def call(*_: object, **options: object) -> list[mx.array]:
        calls.append(options)
        return [mx.zeros(1)] * 2

    monkeypatch.setattr(gpu.Kernel, "__call__", call)
    shape = (2, 7, 6, 3)
    check_depthwise(shape, mx.float32, contextlib.nullcontext)
    check_gradient(depthwise_gradient, plain_depthwise, depthwise_arrays(shape, mx.float32), contextlib.nullcontext)
    assert not calls
    gpu.depthwise_conv2d(random(3, 7, 6, 2), random(7, 7, 2), random(2))
    assert len(calls) == 1  # the bound is that of one image


def test_values_that_are_not_finite_stay_visible(device) -> None:
    hidden = random(1, 5, 8)
    hidden[0, 2, 3] = mx.inf
    hidden[0, 1, 1] = mx.nan
    with device():
        activations, sums = gpu.gelu_sum_of_squares(hidden)
        mx.eval(activations, sums)
    assert activations[0, 2, 3].item() == mx.inf
    assert mx.isnan(activations[0, 1, 1])
    assert mx.isnan(sums.sum(axis=1)[0, 1])


def test_large_float16_activations_do_not_overflow(device) -> None:
    x = mx.full((1, 10, 30, 8), 200.0, dtype=mx.float16)  # squares sum to 1.2e7
    ones = mx.ones((1, 1, 1, 8), dtype=mx.float16)
    with device():
        _, sums = gpu.gelu_sum_of_squares(x.reshape(1, 300, 8))
        scale = gpu.grn_scale(sums, ones.reshape(-1))
        gradients = gelu_grn_gradient(x, ones, ones, mx.ones_like(x))
        mx.eval(scale, gradients)
    assert mx.allclose(scale, mx.full((1, 8), 2.0))  # all norms are equal: 1 + 1 * norm / mean
    assert all(mx.isfinite(gradient).all() for gradient in gradients)


def test_a_dead_channel_and_infinity(device) -> None:
    """A channel that is zero everywhere has a gradient; GELU's slope is 1 at infinity and 0 at minus a large number."""
    x, weight, bias = gelu_grn_arrays((1, 3, 4, 8), mx.float32)
    x[..., 2] = 0
    check_gradient(gelu_grn_gradient, plain.gelu_grn, [x, weight, bias], device)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 1e4, -1e4
    with device():
        gradient = gelu_grn_gradient(x, mx.zeros_like(weight), bias, mx.ones_like(x))[0]
        assert gradient[0, 0, 0, :2].tolist() == [1, 0]


def test_gelu_is_exact_to_float32_rounding(device) -> None:
    """Against math.erfc in double precision: 2e-7 of |x| everywhere, and relatively where the result is small."""
    x = np.concatenate([np.linspace(-14, 14, 4001), np.geomspace(1e-6, 1, 200), -np.geomspace(1e-6, 1, 200)])
    x = x.astype(np.float32)
    exact = np.array([value * math.erfc(-value / math.sqrt(2)) / 2 for value in x.tolist()])
    with device():
        result, _ = gpu.gelu_sum_of_squares(mx.array(x).reshape(1, 1, -1))
        error = np.abs(np.array(result).reshape(-1).astype(np.float64) - exact)
    assert (error <= 2e-7 * np.abs(x)).all()
    tail = (x < -1) & (x > -6)
    assert (error[tail] <= 2e-6 * np.abs(exact[tail])).all()


def test_the_order_of_threads_shows_nowhere() -> None:
    """Every kernel, its threads in three shuffled orders: the same bits."""
    proof.require_compiler()
    shape, results = (2, 6, 5, 72), []
    x, weight, *vectors = depthwise_arrays(shape, mx.float32)
    x_of_gelu, *weights = gelu_grn_arrays(shape, mx.float32)
    forward = partial(gpu.depthwise_layer_norm_residual, eps=1e-6, residual_bias=random(72))
    for seed in range(3):
        with proof.executed(seed):
            output = forward(x, gpu.tap_major(weight), *vectors)
            activations, sums = gpu.gelu_sum_of_squares(output[0].reshape(2, 30, 72))
            scale = gpu.grn_scale(sums, vectors[0])
            forwards = (*output, activations, sums, scale, gpu.gelu_scaled(activations, scale))
            backwards = depthwise_gradient(x, weight, *vectors, random(*shape))
            backwards += gelu_grn_gradient(x_of_gelu, weights[0], weights[1], random(*shape))
        results.append([np.array(array) for array in (*forwards, *backwards)])
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_a_constant_before_a_linear_layer_is_one_behind_it() -> None:
    weight, bias, constant, x = random(5, 7), random(5), random(7), random(3, 7)
    expected = (x + constant) @ weight.T + bias
    assert mx.allclose(x @ weight.T + bias_behind(weight, bias, constant), expected, atol=1e-5)
    in_numpy = bias_behind(np.array(weight), np.array(bias), np.array(constant))
    np.testing.assert_allclose(in_numpy, np.array(bias_behind(weight, bias, constant)), rtol=1e-5)


@pytest.mark.parametrize(
    "size", [size if size in ("atto", "base") else pytest.param(size, marks=pytest.mark.slow) for size in SIZES]
)
def test_a_folded_block_is_the_block(size: str, device) -> None:
    """A block of the first stage of every size, with GRN's factors on pwconv2's input and on its weight."""
    channels = ConvNextV2Config.from_size(size).hidden_sizes[0]
    layer = ConvNextV2Layer(ConvNextV2Config(), channels)
    randomize(layer)
    for height, width, on_weight in ((3, 4, False), (12, 60, True)):
        assert scale_weight(1, height * width, channels) == on_weight
        x = random(1, height, width, channels)
        expected = plain_block(layer)(x)
        with device():
            assert_close(FoldedBlock.of(layer)(x), expected)


@pytest.mark.parametrize("dtype", [mx.float32, *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES[1:])], ids=str)
def test_the_operations_have_these_gradients(dtype: mx.Dtype, device, monkeypatch) -> None:
    """Through the functions that the model calls: every gradient in its argument's dtype."""
    monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "kernel")
    for ours, plain_form, make in (
        (partial(dispatch.depthwise_layer_norm, eps=1e-6), plain_depthwise, depthwise_arrays),
        (dispatch.gelu_grn, plain.gelu_grn, gelu_grn_arrays),
    ):
        arrays = make((2, 4, 5, 6), dtype)
        cotangent = random(2, 4, 5, 6, dtype=dtype, seed=9)
        exact = [array.astype(mx.float32) for array in arrays]
        expected = mx.vjp(plain_form, exact, [cotangent.astype(mx.float32)])[1]
        with device():
            gradients = mx.vjp(ours, arrays, [cotangent])[1]
            mx.eval(gradients)
        for array, gradient, reference in zip(arrays, gradients, expected, strict=True):
            assert gradient.dtype == array.dtype == dtype
            assert_close(gradient, reference, dtype)
