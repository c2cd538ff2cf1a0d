"""The numpy operations beside MLX's plain ones, and the whole model in both forms."""

from __future__ import annotations

import math
import threading
import time

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from checkpoint_files import assert_close
from conftest import small_classifier
from hypothesis import given, settings, strategies as st

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, fuse
from mlx_convnextv2.inference import numpy_block, numpy_classifier
from mlx_convnextv2.model.config import ACTIVATIONS, SIZES
from mlx_convnextv2.model.convnextv2 import ACT2FN, ConvNextV2GRN, ConvNextV2Layer, ConvNextV2LayerNorm
from mlx_convnextv2.model.quantization import quantize
from mlx_convnextv2.ops import activations, dispatch
from mlx_convnextv2.ops.numpy_depthwise import depthwise_conv2d, repeat_kernel
from mlx_convnextv2.runtime import numpy_blas, threads

UNIT_ROUNDOFF = {mx.float16: 2**-11, mx.bfloat16: 2**-8}


def normal(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def build(**config) -> ConvNextV2ForImageClassification:
    return small_classifier(**{"num_labels": 5, **config})


def plain_logits(model: ConvNextV2ForImageClassification, pixel_values: mx.array) -> mx.array:
    """By MLX's own operations: the model itself computes in numpy here, too."""
    with dispatch.path("plain"):
        return model(pixel_values).logits


def assert_equals_plain(model: ConvNextV2ForImageClassification, pixel_values: mx.array) -> None:
    assert numpy_classifier.supports(model)
    assert_close(numpy_classifier.NumpyClassifier(model)(pixel_values), plain_logits(model, pixel_values))


class TestActivations:
    def test_error_of_erf(self):
        """At most 5e-7 over all of float32's range that matters, and the limits beyond."""
        x = np.linspace(-12, 12, 200_001, dtype=np.float32)
        ours = np.empty_like(x)
        activations.tanh_of_polynomial(x, activations.ERF, ours)
        exact = np.array([math.erf(value / math.sqrt(2)) for value in x.tolist()])
        assert np.abs(ours - exact).max() <= 5e-7
        ends = np.array([-np.inf, -1e30, -0.0, 0.0, 1e30, np.inf], np.float32)
        with np.errstate(over="ignore"):
            activations.tanh_of_polynomial(ends, activations.ERF, ours := np.empty_like(ends))
        assert ours.tolist() == [-1, -1, 0, 0, 1, 1]

    def test_erf_coefficients_are_the_fit(self):
        """A least-squares fit, weighted anew until its largest error stops falling (Lawson 1961), is no better."""
        x = np.linspace(1e-4, 7, 4001)
        erf = np.array([math.erf(value / math.sqrt(2)) for value in x])
        erfc = np.array([math.erfc(value / math.sqrt(2)) for value in x])
        target = np.log((1 + erf) / erfc) / 2 / x  # atanh(erf) / x
        slope = erfc * (1 + erf) * x  # of tanh there: what an error of the polynomial does to erf
        powers = np.vander((x / 7) ** 2, len(activations.ERF))
        weights, best = np.ones_like(x), 1.0
        for _ in range(300):
            rows = (slope * np.sqrt(weights))[:, None]
            solution = np.linalg.lstsq(powers * rows, target * rows[:, 0], rcond=None)[0]
            error = np.abs((powers @ solution - target) * slope)
            best = min(best, error.max())
            weights *= np.sqrt(error / error.max() + 1e-3)
            weights /= weights.max()
        ours = np.polyval(activations.ERF, x**2)
        assert np.abs((ours - target) * slope).max() <= 2 * best

    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_each_equals_the_plain_one(self, name):
        x = np.concatenate([np.linspace(-30, 30, 100_001), [-1e4, 1e4, 0.0]]).astype(np.float32)  # in several chunks
        ours = x * np.float32(activations.scale_before(name))
        with np.errstate(over="ignore"):  # of the polynomial, whose tanh is then 1
            activations.activate(ours, name)
        expected = np.array(ACT2FN[name](mx.array(x)))
        assert np.abs(ours - expected).max() <= 1e-6 * 1e4  # of the largest input
        near = np.abs(x) < 8
        assert np.abs(ours - expected)[near].max() <= 2e-6


class TestOperations:
    # width 1, fewer columns than a loop takes, a whole number of loops, and a rest
    @pytest.mark.parametrize(
        ("height", "width", "channels"), [(1, 1, 3), (5, 2, 8), (7, 14, 96), (4, 67, 33), (3, 9, 700)]
    )
    def test_depthwise_conv2d(self, height, width, channels):
        image, kernel = normal(height, width, channels), normal(channels, 7, 7, 1, seed=2)
        padded = np.pad(image, ((3, 3), (3, 3), (0, 0)))
        ours = np.empty_like(image)
        repeated = repeat_kernel(kernel[..., 0].transpose(1, 2, 0))
        depthwise_conv2d(padded, repeated, out=ours)
        expected = mx.conv2d(mx.array(image[None]), mx.array(kernel), padding=3, groups=channels)
        assert_close(ours, expected[0])

    def test_layer_norm(self):
        module = ConvNextV2LayerNorm(33)
        module.weight, module.bias = mx.array(normal(33)), mx.array(normal(33, seed=2))
        x = normal(50, 33, seed=3) * 10 + 5
        expected = module(mx.array(x))
        numpy_block.LayerNorm.of(module)(x)
        assert_close(x, expected)

    @pytest.mark.parametrize("first", [True, False])
    def test_patch_projection(self, first):
        """A norm before or after, and rows and columns that fill no patch."""
        convolution = nn.Conv2d(6, 10, (2, 3), stride=(2, 3))
        norm = ConvNextV2LayerNorm(6 if first else 10)
        norm.weight, norm.bias = mx.array(normal(*norm.weight.shape)), mx.array(normal(*norm.bias.shape, seed=2))
        x = normal(9, 13, 6)
        ours = np.empty((4, 4, 10), np.float32)
        norms = {"norm_before": norm} if first else {"norm_after": norm}
        numpy_block.PatchProjection(convolution, **norms)(x, ours)
        image = mx.array(x[None])
        assert_close(ours, (convolution(norm(image)) if first else norm(convolution(image)))[0])

    @pytest.mark.parametrize("zero_channel", [False, True])
    def test_global_response_norm(self, zero_channel):
        layer = ConvNextV2Layer(ConvNextV2Config(), 4)
        layer.grn.weight, layer.grn.bias = mx.array(normal(1, 1, 1, 16)), mx.zeros((1, 1, 1, 16))
        x = normal(3, 5, 16)
        x[..., 0] *= not zero_channel
        factor = numpy_block.Block(layer, "gelu").global_response_norm(np.square(x).sum(axis=(0, 1)))
        assert isinstance(layer.grn, ConvNextV2GRN)
        assert_close(x * factor, layer.grn(mx.array(x[None]))[0])

    # positions more and fewer than channels: GRN's factor on the weight and on the activations
    @pytest.mark.parametrize(("height", "width"), [(9, 5), (2, 3)])
    @pytest.mark.parametrize("workers", [1, 3])
    def test_block(self, height, width, workers):
        model = build(hidden_sizes=[24], depths=[1], num_stages=1)
        layer = model.convnextv2.encoder.stages[0].layers[0]
        x = normal(height, width, 24)
        padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
        numpy_block.Block(layer, "gelu")(padded, [(row, row + 1) for row in range(height)], workers)
        assert_close(padded[3:-3, 3:-3], layer(mx.array(x[None]))[0])
        padded[3:-3, 3:-3] = 0
        assert not padded.any()  # the border stays zero


class TestModel:
    @pytest.mark.parametrize(
        "size", [pytest.param(size, marks=pytest.mark.slow if size in ("large", "huge") else ()) for size in SIZES]
    )
    def test_widths_of_each_size(self, size):
        model = build(hidden_sizes=SIZES[size]["hidden_sizes"], depths=[1, 1, 1, 1])
        assert_equals_plain(model, mx.array(normal(1, 64, 64, 3)))

    @pytest.mark.slow
    @pytest.mark.parametrize("size", [name for name in SIZES if name != "huge"])
    def test_each_size(self, size):
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
        model.eval()
        for stage in model.convnextv2.encoder.stages:
            for layer in stage.layers:
                layer.grn.weight = mx.random.normal(layer.grn.weight.shape)
                layer.grn.bias = mx.random.normal(layer.grn.bias.shape)
        assert_equals_plain(model, mx.array(normal(1, 224, 224, 3)))

    # The same draws each time, for once in thousands terms cancel, and the only logit is what rounding left.
    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(data=st.data())
    def test_any_configuration(self, data):
        stages = data.draw(st.integers(1, 4))
        patch = data.draw(st.sampled_from([1, 2, 4, [2, 3]]))
        config = {
            "num_stages": stages,
            "hidden_sizes": data.draw(st.lists(st.integers(1, 40), min_size=stages, max_size=stages)),
            "depths": data.draw(st.lists(st.integers(0, 2), min_size=stages, max_size=stages)),
            "patch_size": patch,
            "num_channels": data.draw(st.integers(1, 4)),
            "hidden_act": data.draw(st.sampled_from(ACTIVATIONS)),
            "num_labels": data.draw(st.integers(0, 3)),
            "layer_norm_eps": data.draw(st.sampled_from([1e-12, 1e-3])),
            "id2label": None,
        }
        model = build(**config)
        least_height, least_width = model.config.min_image_shape
        height, width = least_height + data.draw(st.integers(0, 40)), least_width + data.draw(st.integers(0, 40))
        shape = (data.draw(st.integers(1, 3)), height, width, config["num_channels"])
        # LayerNorm of one or two channels turns rounding into signs: the plain form itself is not defined there to 1e-5
        if min(config["hidden_sizes"]) > 2:
            assert_equals_plain(model, mx.array(normal(*shape)))
        else:
            assert (
                numpy_classifier.NumpyClassifier(model)(mx.array(normal(*shape))).shape
                == model(mx.zeros(shape)).logits.shape
            )

    @pytest.mark.parametrize("workers", [1, 2, 5])
    @pytest.mark.parametrize("batch", [0, 1, 2, 5])
    def test_batches_and_workers(self, small_model, batch, workers):
        predict = numpy_classifier.NumpyClassifier(small_model)
        predict.workers = workers
        pixel_values = mx.array(normal(batch, 45, 70, 3))
        if batch == 0:
            assert predict(pixel_values).shape == (0, 7)
        else:
            assert_close(predict(pixel_values), plain_logits(small_model, pixel_values))

    def test_strips_of_a_large_image(self, small_model, monkeypatch):
        monkeypatch.setattr(numpy_classifier, "STRIP", 500)
        assert_equals_plain(small_model, mx.array(normal(1, 150, 90, 3)))

    @pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
    def test_half_precision(self, dtype):
        """float32 inside: nearer to the float32 model of the same weights than the type's rounding of the result."""
        model = build()
        model.set_dtype(dtype)
        pixel_values = mx.array(normal(2, 64, 64, 3))
        ours = numpy_classifier.NumpyClassifier(model)(pixel_values)
        assert ours.dtype == dtype
        model.set_dtype(mx.float32)
        assert_close(ours.astype(mx.float32), plain_logits(model, pixel_values), UNIT_ROUNDOFF[dtype])

    def test_float32_weights_are_not_copied(self, small_model):
        block = numpy_classifier.NumpyClassifier(small_model).stages[0][1][0]
        layer = small_model.convnextv2.encoder.stages[0].layers[0]
        for ours, theirs in ((block.expand, layer.pwconv1.weight), (block.project, layer.pwconv2.weight)):
            assert np.shares_memory(ours, np.array(theirs, copy=False))

    def test_a_transposed_array_of_pixels(self, small_model):
        pixel_values = mx.array(normal(2, 3, 40, 50)).transpose(0, 2, 3, 1)
        assert_close(
            numpy_classifier.NumpyClassifier(small_model)(pixel_values), plain_logits(small_model, pixel_values)
        )

    def test_bad_pixels_are_refused_as_by_the_model(self, small_model):
        predict = numpy_classifier.NumpyClassifier(small_model)
        with pytest.raises(ValueError, match="channels-first"):
            predict(mx.zeros((1, 3, 64, 64)))
        with pytest.raises(ValueError, match="at least 32 x 32"):
            predict(mx.zeros((1, 31, 64, 3)))

    def test_several_threads_at_once(self, small_model):
        """Each gets the answers to its own images, of its own shape."""
        predict = numpy_classifier.NumpyClassifier(small_model)
        images = [normal(1, 40 + 9 * i, 60, 3, seed=i) for i in range(4)]
        expected = [np.array(predict(mx.array(image))) for image in images]
        wrong = []

        def work(i: int) -> None:
            for _ in range(20):
                if not np.array_equal(np.array(predict(mx.array(images[i]))), expected[i]):
                    wrong.append(i)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert not wrong


class TestSupports:
    @pytest.mark.parametrize(
        ("mode", "bits", "group_size"),
        [("affine", 8, 32), ("affine", 4, 64), ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)],
    )
    def test_quantized_models_are(self, mode: str, bits: int, group_size: int):
        """They equal MLX's products with the quantized weights."""
        model = build(hidden_sizes=[64, 64, 64, 64])
        quantize(model, bits, group_size, mode)
        assert numpy_classifier.supports(model)
        pixel_values = mx.array(normal(2, 48, 32, 3))
        assert_close(numpy_classifier.NumpyClassifier(model)(pixel_values), plain_logits(model, pixel_values))

    def test_a_layer_of_ones_own_is_not(self):
        class Scaled(nn.Linear):
            def __call__(self, x: mx.array) -> mx.array:
                return 2 * super().__call__(x)

        model = build()
        model.classifier = Scaled(model.config.hidden_sizes[-1], model.config.num_labels)
        assert not numpy_classifier.supports(model)
        pixel_values = mx.array(normal(1, 32, 32, 3))
        assert mx.array_equal(fuse(model)(pixel_values), plain_logits(model, pixel_values))

    def test_another_stride_is_not(self):
        """The patches overlap then, or leave gaps."""
        model = build()
        model.convnextv2.embeddings.patch_embeddings.stride = (2, 2)
        assert not numpy_classifier.supports(model)
        pixel_values = mx.array(normal(1, 64, 64, 3))
        assert mx.array_equal(fuse(model)(pixel_values), plain_logits(model, pixel_values))

    def test_a_head_without_a_bias_is_not(self):
        model = build()
        model.classifier = nn.Linear(model.config.hidden_sizes[-1], 5, bias=False)
        pixel_values = mx.array(normal(1, 32, 32, 3))
        assert mx.array_equal(fuse(model)(pixel_values), plain_logits(model, pixel_values))

    def test_an_activation_of_ones_own_is_not(self):
        model = build()
        model.convnextv2.encoder.stages[1].layers[0].act = mx.tanh
        assert not numpy_classifier.supports(model)


class TestThreads:
    def test_for_each_does_every_item_once(self):
        done: list[int] = []
        threads.for_each(done.append, range(1000), workers=4)
        assert sorted(done) == list(range(1000))

    def test_for_each_raises_what_an_item_raises(self):
        def fail(item: int) -> None:
            if item == 3:
                raise ValueError("three")

        with pytest.raises(ValueError, match="three"):
            threads.for_each(fail, range(100), workers=2)

    def test_for_each_ends_with_its_threads_at_rest(self):
        """What the caller does after an error must not share its scratch arrays with an item that still runs."""
        both, done = threading.Barrier(2), []

        def fail_in_the_caller(_: int) -> None:
            both.wait(timeout=600)
            if threading.current_thread() is threading.main_thread():
                raise MemoryError
            time.sleep(0.2)
            done.append(True)

        with pytest.raises(MemoryError):
            threads.for_each(fail_in_the_caller, range(2), workers=2)
        assert done

    def test_the_blas_gets_its_threads_back(self):
        blas = numpy_blas.find_blas()
        if blas is None:
            pytest.skip("numpy has another BLAS")
        before = blas._get_threads()
        with blas.one_thread():
            assert blas._get_threads() == 1
            with blas.one_thread():
                assert blas._get_threads() == 1
            assert blas._get_threads() == 1
        assert blas._get_threads() == before

    def test_threads_that_look_for_the_blas_together_find_one(self):
        numpy_blas._find_blas.cache_clear()
        together, found = threading.Barrier(8), []

        def find() -> None:
            together.wait(timeout=600)
            found.append(numpy_blas.find_blas())

        seekers = [threading.Thread(target=find) for _ in range(8)]
        for seeker in seekers:
            seeker.start()
        for seeker in seekers:
            seeker.join()
        assert len(found) == 8
        assert len(set(map(id, found))) == 1

    def test_without_openblas_the_numbers_are_the_same(self, small_model, monkeypatch):
        monkeypatch.setattr(numpy_classifier, "find_blas", lambda: None)
        assert_equals_plain(small_model, mx.array(normal(3, 64, 64, 3)))


class TestFuse:
    @pytest.fixture(autouse=True)
    def _on_a_cpu(self):
        if mx.default_device() != mx.Device(mx.cpu):
            pytest.skip("for a CPU")

    def test_plain_is_the_model_itself(self, small_model, monkeypatch):
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "plain")
        pixel_values = mx.array(normal(1, 64, 64, 3))
        assert mx.array_equal(fuse(small_model)(pixel_values), plain_logits(small_model, pixel_values))

    def test_another_value_is_an_error(self, small_model, monkeypatch):
        monkeypatch.setenv("MLX_CONVNEXTV2_OPS", "fast")
        with pytest.raises(ValueError, match="must be one of auto, plain, kernel, numpy"):
            fuse(small_model)
