"""The GPU kernels against plain MLX: executed on the CPU by the proof, and with the marker gpu on a GPU itself."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import proof
import pytest
from conftest import SMALL, randomize
from hypothesis import given, settings, strategies as st
from mlx.utils import tree_flatten

from mlx_convnextv2 import ConvNextV2Backbone, ConvNextV2Config, ConvNextV2ForImageClassification, fuse, load
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.inference.composition import plain_block
from mlx_convnextv2.inference.folds import bias_behind, scale_weight
from mlx_convnextv2.inference.gpu_block import FoldedBlock
from mlx_convnextv2.model.config import SIZES
from mlx_convnextv2.model.convnextv2 import ConvNextV2Layer
from mlx_convnextv2.model.quantization import quantize
from mlx_convnextv2.ops import dispatch, gpu, plain

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
# As a part of the largest magnitude: 1e-5 in float32, else the type's own rounding.
TOLERANCES = {mx.float32: 1e-5, mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}


@pytest.fixture(params=["proof", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """How kernels are run: a context to call them in."""
    if request.param == "proof":
        proof.require_compiler()
        yield proof.executed
        return
    if not (mx.metal.is_available() or mx.cuda.is_available()):
        pytest.skip("MLX has no GPU here")
    before = mx.default_device()
    mx.set_default_device(mx.gpu)
    yield contextlib.nullcontext
    mx.set_default_device(before)


def random(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0, spread: float = 1.0) -> mx.array:
    values = np.random.RandomState(seed + sum(shape)).standard_normal(shape) * spread
    return mx.array(values.astype(np.float32)).astype(dtype)


def assert_close(result: mx.array, expected: mx.array, dtype: mx.Dtype) -> None:
    """Within the dtype's tolerance of a float32 result, and nothing left unwritten."""
    assert result.shape == expected.shape
    difference = mx.abs(result.astype(mx.float32) - expected).max().item()
    assert difference <= TOLERANCES[dtype] * mx.abs(expected).max().item()  # false for NaN


def check_depthwise(shape: tuple[int, int, int, int], dtype: mx.Dtype, run: Callable) -> None:
    """The three forms of the depthwise kernel against the plain version in float32, on the same rounded inputs."""
    channels = shape[-1]
    x, weight = random(*shape, dtype=dtype), random(channels, 7, 7, 1, dtype=dtype, seed=1, spread=0.2)
    bias, norm_weight, norm_bias, residual_bias = (random(channels, dtype=dtype, seed=s) for s in range(2, 6))
    taps = gpu.tap_major(weight)
    exact = [array.astype(mx.float32) for array in (x, weight, bias, norm_weight, norm_bias)]
    convolved = mx.conv2d(exact[0], exact[1], padding=3, groups=channels) + exact[2]
    normed = plain.depthwise_layer_norm(*exact, 1e-6)
    with run():
        without_norm = gpu.depthwise_conv2d(x, taps, bias)
        without_residual = gpu.depthwise_layer_norm(x, taps, bias, norm_weight, norm_bias, 1e-6)
        whole, residual = gpu.depthwise_layer_norm_residual(
            x, taps, bias, norm_weight, norm_bias, 1e-6, residual_bias.astype(mx.float32)
        )
        mx.eval(without_norm, without_residual, whole, residual)
    assert {a.dtype for a in (without_norm, without_residual, whole, residual)} == {dtype}
    assert_close(without_norm, convolved, dtype)
    assert_close(whole, normed, dtype)
    assert mx.array_equal(whole, without_residual)
    assert_close(residual, exact[0] + residual_bias.astype(mx.float32), dtype)


def check_gelu_grn(shape: tuple[int, int, int], dtype: mx.Dtype, run: Callable) -> None:
    """GELU, its sums of squares, GRN's factors and their use against the plain version in float32."""
    batch, pixels, channels = shape
    hidden, weight = random(*shape, dtype=dtype, spread=2), random(channels, dtype=dtype, seed=1)
    exact = hidden.astype(mx.float32)
    with run():
        activations, sums = gpu.gelu_sum_of_squares(hidden)
        sums_alone = gpu.sum_of_squares_of_gelu(hidden)
        scale = gpu.grn_scale(sums, weight)
        scaled = gpu.gelu_scaled(hidden, scale)
        mx.eval(activations, sums, sums_alone, scale, scaled)
    assert activations.dtype == scaled.dtype == dtype
    assert sums.dtype == scale.dtype == mx.float32
    assert_close(activations, plain.gelu(exact), dtype)
    assert_close(sums.sum(axis=1), mx.square(activations.astype(mx.float32)).sum(axis=1), mx.float32)
    assert mx.array_equal(sums, sums_alone)
    four_d = (batch, 1, pixels, channels)
    expected = plain.gelu_grn(exact.reshape(four_d), weight.astype(mx.float32).reshape(1, 1, 1, -1), mx.zeros(1))
    assert_close(scaled, expected.reshape(shape), dtype)


def stage_shapes(resolution: int) -> list[tuple[int, int]]:
    """(side, channels) of every stage of the eight sizes, each once."""
    shapes = {
        (resolution // 4 // 2**stage, channels)
        for size in SIZES
        for stage, channels in enumerate(ConvNextV2Config.from_size(size).hidden_sizes)
    }
    return sorted(shapes)


SLOW_DTYPES = [mx.float32, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in DTYPES[1:])]


def one_of_each_tile() -> list[tuple[int, int]]:
    """Of all those stages the first with each tile, and so with each text of the kernel."""
    found: dict[tuple[int, ...], tuple[int, int]] = {}
    for side, channels in (*stage_shapes(224), *stage_shapes(384)):
        channels_per_thread, _, *tile = gpu.tile_of(1, side, side, channels)
        found.setdefault((channels_per_thread, *tile), (side, channels))
    return list(found.values())


TILES = one_of_each_tile()
OTHERS = sorted({*stage_shapes(224), *stage_shapes(384)} - {*TILES})
STAGES = [
    *((*shape, mx.float32) for shape in TILES),
    *(pytest.param(*shape, dtype, marks=pytest.mark.slow) for shape in TILES for dtype in DTYPES[1:]),
    *(pytest.param(*shape, mx.float32, marks=pytest.mark.slow) for shape in OTHERS),
]


class TestStageShapes:
    """Every stage of the eight sizes at 224 and 384, in the tiles of the whole image on its first rows."""

    @pytest.mark.parametrize(("side", "channels", "dtype"), STAGES)
    def test_depthwise(self, side: int, channels: int, dtype: mx.Dtype, device: Callable) -> None:
        tile = gpu.tile_of(1, side, side, channels)
        rows = min(side, max(tile[2] + 1, 4000 // (side * channels) + 1))
        with mock.patch.object(gpu, "tile_of", return_value=tile):
            check_depthwise((1, rows, side, channels), dtype, device)

    @pytest.mark.parametrize(("side", "channels", "dtype"), STAGES)
    def test_gelu_grn(self, side: int, channels: int, dtype: mx.Dtype, device: Callable) -> None:
        check_gelu_grn((1, min(side * side, 40), 4 * channels), dtype, device)

    @pytest.mark.slow
    @pytest.mark.parametrize(("side", "channels"), TILES)
    def test_whole_images(self, side: int, channels: int, device: Callable) -> None:
        check_depthwise((1, side, side, channels), mx.float32, device)
        check_gelu_grn((1, side * side, 4 * channels), mx.float32, device)


class TestOddShapes:
    @pytest.mark.parametrize("dtype", SLOW_DTYPES, ids=str)
    @pytest.mark.parametrize(
        "shape",
        [(1, 1, 1, 1), (1, 1, 1, 5), (2, 1, 9, 33), (3, 9, 1, 31), (1, 2, 3, 257), (1, 5, 4, 513), (65, 2, 2, 8)],
        ids=str,
    )
    def test_depthwise(self, shape: tuple[int, int, int, int], dtype: mx.Dtype, device: Callable) -> None:
        check_depthwise(shape, dtype, device)

    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    def test_depthwise_in_half_precision(self, dtype: mx.Dtype, device: Callable) -> None:
        check_depthwise((2, 5, 9, 33), dtype, device)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (1, 257, 33), (3, 8, 300)], ids=str)
    def test_gelu_grn(self, shape: tuple[int, int, int], dtype: mx.Dtype, device: Callable) -> None:
        check_gelu_grn(shape, dtype, device)

    @pytest.mark.slow
    @pytest.mark.parametrize("tile", [(1, 1), (1, 2), (1, 4), (2, 4), (4, 4), (8, 4)], ids=str)
    def test_every_tile(self, tile: tuple[int, int], device: Callable) -> None:
        with mock.patch.object(gpu, "tile_of", return_value=(2, 64, *tile)):
            check_depthwise((2, 7, 6, 70), mx.float32, device)

    def test_an_image_too_large_for_32_bits_is_plain(self, monkeypatch) -> None:
        """Places in the depthwise kernel are counted in 32 bits: more elements than that never reach it."""
        assert gpu.MOST_ELEMENTS < 2**31
        monkeypatch.setattr(gpu, "MOST_ELEMENTS", 2 * 7 * 6)
        calls = []
        monkeypatch.setattr(gpu.Kernel, "__call__", lambda *_, **options: calls.append(options) or [mx.zeros(1)] * 2)
        check_depthwise((2, 7, 6, 3), mx.float32, contextlib.nullcontext)
        assert not calls
        gpu.depthwise_conv2d(random(3, 7, 6, 2), random(7, 7, 2), random(2))
        assert len(calls) == 1  # the bound is that of one image

    @pytest.mark.slow
    @settings(max_examples=25)
    @given(
        batch=st.integers(1, 3),
        height=st.integers(1, 12),
        width=st.integers(1, 12),
        channels=st.integers(1, 300),
        dtype=st.sampled_from(DTYPES),
    )
    def test_drawn(self, batch: int, height: int, width: int, channels: int, dtype: mx.Dtype) -> None:
        proof.require_compiler()
        check_depthwise((batch, height, width, channels), dtype, proof.executed)
        check_gelu_grn((batch, height * width, 4 * channels), dtype, proof.executed)

    def test_values_that_are_not_finite_stay_visible(self, device: Callable) -> None:
        hidden = random(1, 5, 8)
        hidden[0, 2, 3] = mx.inf
        hidden[0, 1, 1] = mx.nan
        with device():
            activations, sums = gpu.gelu_sum_of_squares(hidden)
            mx.eval(activations, sums)
        assert activations[0, 2, 3].item() == mx.inf
        assert math.isnan(activations[0, 1, 1].item())
        assert math.isnan(sums.sum(axis=1)[0, 1].item())

    def test_large_float16_activations_do_not_overflow(self, device: Callable) -> None:
        hidden = mx.full((1, 300, 32), 200.0).astype(mx.float16)  # squares sum to 1.2e7
        with device():
            _, sums = gpu.gelu_sum_of_squares(hidden)
            scale = gpu.grn_scale(sums, mx.ones(32).astype(mx.float16))
            mx.eval(scale)
        assert mx.allclose(scale, mx.full((1, 32), 2.0))  # all norms are equal: 1 + 1 * norm / mean


def test_gelu_is_exact_to_float32_rounding(device: Callable) -> None:
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


class TestDeterminism:
    def test_the_order_of_threads_shows_nowhere(self) -> None:
        """Every kernel, its threads in three shuffled orders: the same bits."""
        proof.require_compiler()
        x, weight = random(1, 6, 5, 72), random(72, 7, 7, 1, seed=1)
        vectors = [random(72, seed=s) for s in range(2, 6)]
        results = []
        for seed in range(3):
            with proof.executed(seed):
                output, residual = gpu.depthwise_layer_norm_residual(
                    x, gpu.tap_major(weight), *vectors[:3], 1e-6, vectors[3]
                )
                activations, sums = gpu.gelu_sum_of_squares(output.reshape(1, 30, 72))
                scale = gpu.grn_scale(sums, vectors[0])
                scaled = gpu.gelu_scaled(activations, scale)
            results.append([np.array(a) for a in (output, residual, activations, sums, scale, scaled)])
        for other in results[1:]:
            for first, second in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(first, second)


@pytest.fixture
def model() -> ConvNextV2ForImageClassification:
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=7))
    randomize(model)
    return model.eval()


class TestFolds:
    def test_a_constant_before_a_linear_layer_is_one_behind_it(self) -> None:
        weight, bias, constant, x = random(5, 7), random(5), random(7), random(3, 7)
        expected = (x + constant) @ weight.T + bias
        assert mx.allclose(x @ weight.T + bias_behind(weight, bias, constant), expected, atol=1e-5)
        in_numpy = bias_behind(np.array(weight), np.array(bias), np.array(constant))
        np.testing.assert_allclose(in_numpy, np.array(bias_behind(weight, bias, constant)), rtol=1e-5)

    @pytest.mark.parametrize("pixels", [(3, 4), (12, 50)], ids=["on-the-input", "on-the-weight"])
    @pytest.mark.parametrize(
        "size", [pytest.param(size, marks=pytest.mark.slow) if size in ("large", "huge") else size for size in SIZES]
    )
    def test_a_folded_block_is_the_block(self, size: str, pixels: tuple[int, int], device: Callable) -> None:
        """A block of the first stage of every size, and GRN's factors on either side of pwconv2."""
        channels = ConvNextV2Config.from_size(size).hidden_sizes[0]
        layer = ConvNextV2Layer(ConvNextV2Config(), channels)
        randomize(layer)
        x = random(1, *pixels, channels)
        expected = plain_block(layer)(x)
        with device():
            assert_close(FoldedBlock.of(layer)(x), expected, mx.float32)


class TestModels:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_fused(self, model: ConvNextV2ForImageClassification, dtype: mx.Dtype, device: Callable) -> None:
        """Both of GRN's ways are taken: on pwconv2's weight in the first stages, on its input in the last."""
        pixel_values = random(2, 75, 98, 3)
        expected = model(pixel_values).logits
        model.set_dtype(dtype)
        own = model(pixel_values).logits.astype(mx.float32)
        with device():
            logits = fuse(model, "kernel")(pixel_values)
            mx.eval(logits)
        assert logits.dtype == dtype
        # Rounding accumulates over the layers: the kernels stay as near the exact logits as plain MLX does.
        scale = mx.abs(expected).max().item()
        allowed = max(1e-5 * scale, 2 * mx.abs(own - expected).max().item())
        assert mx.abs(logits.astype(mx.float32) - expected).max().item() <= allowed
        assert mx.array_equal(logits.argmax(-1), expected.argmax(-1))

    def test_fused_without_a_classifier(self, model: ConvNextV2ForImageClassification, device: Callable) -> None:
        body, pixel_values = model.convnextv2, random(1, 64, 40, 3)
        expected = body(pixel_values).pooler_output
        with device():
            embeddings = fuse(body, "kernel")(pixel_values)
            mx.eval(embeddings)
        assert_close(embeddings, expected, mx.float32)

    def test_both_ways_of_grn_are_taken(self) -> None:
        sides = [(18, 24, 8), (9, 12, 12), (4, 6, 20), (2, 3, 33)]
        assert {scale_weight(2, height * width, channels) for height, width, channels in sides} == {True, False}

    def test_faithful(self, model: ConvNextV2ForImageClassification, device: Callable, monkeypatch) -> None:
        pixel_values = random(1, 40, 33, 3)
        expected = model(pixel_values, output_hidden_states=True)
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "kernel")
        with device():
            outputs = model(pixel_values, output_hidden_states=True)
            mx.eval(outputs.logits, outputs.hidden_states)
        assert_close(outputs.logits, expected.logits, mx.float32)
        for hidden_state, reference in zip(outputs.hidden_states, expected.hidden_states, strict=True):
            assert_close(hidden_state, reference, mx.float32)

    def test_quantized(self, model: ConvNextV2ForImageClassification, device: Callable) -> None:
        config = ConvNextV2Config(hidden_sizes=[32, 64], depths=[1, 1], num_stages=2, num_labels=5)
        model = ConvNextV2ForImageClassification(config)
        randomize(model)
        quantize(model.eval(), bits=8, group_size=32)
        pixel_values = random(1, 32, 32, 3)
        expected = model(pixel_values).logits
        with device():
            assert_close(fuse(model, "kernel")(pixel_values), expected, mx.float32)

    def test_the_demo_checkpoint(self, device: Callable) -> None:
        model, processor = load(DEMO)
        pixel_values = processor(DEMO / "images" / "digit-8.png")
        expected = model(pixel_values).logits
        with device():
            assert_close(fuse(model, "kernel")(pixel_values), expected, mx.float32)

    def test_gradients_equal_the_plain_path(
        self, model: ConvNextV2ForImageClassification, device: Callable, monkeypatch
    ) -> None:
        pixel_values, labels = random(2, 33, 40, 3), mx.array([1, 4])

        def loss(model: nn.Module) -> mx.array:
            return model(pixel_values, labels=labels).loss

        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "plain")
        expected_loss, expected = nn.value_and_grad(model, loss)(model)
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "kernel")
        with device():
            value, gradients = nn.value_and_grad(model, loss)(model)
            mx.eval(value, gradients)
        assert abs(value.item() - expected_loss.item()) <= 1e-5 * abs(expected_loss.item())
        expected_gradients = dict(tree_flatten(expected))
        for name, gradient in tree_flatten(gradients):
            reference = expected_gradients[name]
            assert mx.abs(gradient - reference).max() <= 1e-5 * max(mx.abs(reference).max().item(), 1e-3), name

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("size", SIZES)
    def test_every_size_on_a_gpu(self, size: str, dtype: mx.Dtype) -> None:
        if not (mx.metal.is_available() or mx.cuda.is_available()):
            pytest.skip("MLX has no GPU here")
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
        randomize(model)
        model.eval()
        pixel_values = random(2, 224, 224, 3)
        with mx.stream(mx.gpu):
            expected = fuse(model, "plain")(pixel_values)
            model.set_dtype(dtype)
            own = fuse(model, "plain")(pixel_values).astype(mx.float32)
            logits = fuse(model, "kernel")(pixel_values).astype(mx.float32)
            allowed = max(1e-5 * mx.abs(expected).max().item(), 2 * mx.abs(own - expected).max().item())
            assert mx.abs(logits - expected).max().item() <= allowed


class TestChoice:
    @pytest.mark.parametrize(("platform", "path"), [("linux", "numpy"), ("darwin", "plain")])
    def test_a_cpu_takes_numpy_where_mlx_is_scalar(self, platform: str, path: str, monkeypatch) -> None:
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
        monkeypatch.setattr("sys.platform", platform)
        assert dispatch.choose(mx.float32, 96) == path

    def test_a_gpu_takes_kernels_for_what_they_can(self, monkeypatch) -> None:
        monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
        assert dispatch.choose(mx.bfloat16, 2816) == "kernel"
        assert dispatch.choose(mx.float32, gpu.MOST_CHANNELS + 1) == "plain"
        assert dispatch.choose(mx.float64, 96) == "plain"
        assert dispatch.choose(mx.float32, 96, "plain") == "plain"

    def test_the_argument_comes_before_the_variable(self, monkeypatch) -> None:
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "kernel")
        assert dispatch.choose(mx.float32, 96) == "kernel"
        assert dispatch.choose(mx.float32, 96, "plain") == "plain"
        assert dispatch.choose(mx.float32, 96, "auto") == "kernel"

    @pytest.mark.parametrize("path", ["metal", "Kernel"])
    def test_an_unknown_path_is_an_error(self, path: str, model, monkeypatch) -> None:
        with pytest.raises(ValueError, match=r"path must be one of auto, plain, kernel, numpy"):
            fuse(model, path)
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", path)
        with pytest.raises(ValueError, match=r"MLX_CONVNEXTV2_OPS must be one of auto, plain, kernel, numpy"):
            model(random(1, 32, 32, 3))

    def test_kernels_without_a_gpu_are_an_error_that_says_so(self, model) -> None:
        if mx.metal.is_available() or mx.cuda.is_available():
            pytest.skip("MLX has a GPU here")
        with pytest.raises(ValueError, match='"kernel" needs a GPU'):
            fuse(model, "kernel")(random(1, 32, 32, 3))

    def test_numpy_refuses_what_it_cannot_compute(self, model) -> None:
        model.convnextv2.encoder.stages[0].layers[0].act = mx.tanh
        with pytest.raises(ValueError, match="numpy does not know"):
            fuse(model, "numpy")

    def test_a_backbone_is_not_fused(self) -> None:
        with pytest.raises(TypeError, match="not a ConvNextV2Backbone"):
            fuse(ConvNextV2Backbone(ConvNextV2Config(**SMALL)))


class TestExport:
    def test_mlx_takes_the_kernels_into_a_graph(self, model: ConvNextV2ForImageClassification, tmp_path) -> None:
        """Traced and saved without a GPU; the file holds the very text of the kernels."""
        predict = fuse(model, "kernel")
        mx.export_function(str(tmp_path / "model.mlxfn"), predict, random(1, 32, 32, 3))
        content = (tmp_path / "model.mlxfn").read_bytes()
        for headers in (gpu.DEPTHWISE_HEADERS, gpu.GELU_HEADERS, gpu.GRN_HEADERS):
            assert gpu.source("metal", headers).encode() in content
        names = {launch.name for launch in proof.launches(predict, random(1, 96, 96, 3))}
        for kernel in ("depthwise_layer_norm_residual", "gelu_sum_of_squares", "sum_of_squares_of_gelu", "grn_scale"):
            assert any(f"convnextv2_{kernel}_" in name for name in names), kernel

    def test_a_graph_with_kernels_is_the_weights_and_two_percent(self, tmp_path) -> None:
        """The smallest published size in float32, one batch: each of its launches holds the text of its kernel."""
        atto = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("atto"))
        mx.eval(atto.parameters())
        mx.export_function(str(tmp_path / "model.mlxfn"), fuse(atto, "kernel"), random(1, 224, 224, 3))
        weights = sum(array.nbytes for _, array in tree_flatten(atto.parameters()))
        assert weights <= (tmp_path / "model.mlxfn").stat().st_size <= 1.02 * weights

    def test_compiled_graphs_hold_the_kernels_too(self, model: ConvNextV2ForImageClassification) -> None:
        predict, pixel_values = fuse(model, "kernel"), random(1, 64, 64, 3)
        names = [launch.name for launch in proof.launches(predict, pixel_values)]
        compiled = [launch.name for launch in proof.launches(mx.compile(predict), pixel_values)]
        assert len(names) >= 3 * sum(model.config.depths)
        assert sorted(names) == sorted(compiled)
