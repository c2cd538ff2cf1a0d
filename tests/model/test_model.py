"""The model beside formulas in float64, bad input, and half precision. test_goldens.py has transformers' numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from checkpoint_files import assert_close, parameters
from conftest import SMALL, randomize
from mlx.utils import tree_reduce

from mlx_convnextv2 import ConvNextV2Backbone, ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2Model, fuse
from mlx_convnextv2.model.convnextv2 import (
    ACT2FN,
    ConvNextV2DropPath,
    ConvNextV2GRN,
    ConvNextV2Layer,
    drop_path,
)
from mlx_convnextv2.model.loss import classification_loss

CLASSES = [ConvNextV2ForImageClassification, ConvNextV2Model, ConvNextV2Backbone]
UNIT_ROUNDOFF = {mx.float32: 2**-24, mx.float16: 2**-11, mx.bfloat16: 2**-8}
HALF = pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)


def build(model_class: Any = ConvNextV2ForImageClassification, **config: Any) -> Any:
    """A model of the small configuration with random weights, in inference mode."""
    return randomize(model_class(ConvNextV2Config(**{**SMALL, **config}))).eval()


def images(*shape: int, seed: int = 1) -> mx.array:
    return mx.array(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def normed(x: np.ndarray, norm: nn.LayerNorm, eps: float) -> np.ndarray:
    """The layer norm of the last axis, in float64."""
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x * np.array(norm.weight) + np.array(norm.bias)


class TestInput:
    def test_an_empty_batch_has_empty_logits(self):
        assert build(num_labels=7)(mx.zeros((0, 32, 32, 3))).logits.shape == (0, 7)

    def test_the_images_of_a_batch_do_not_see_each_other(self):
        model, pixel_values = build(), images(3, 33, 47, 3)
        for i, logits in enumerate(model(pixel_values).logits):
            assert_close(model(pixel_values[i : i + 1]).logits[0], logits, 1e-6)

    def test_pixels_beyond_the_last_whole_patch_are_dropped(self):
        model, pixel_values = build(), images(1, 35, 43, 3)
        assert_close(model(pixel_values[:, :32, :40]).logits, model(pixel_values).logits, 1e-6)
        # rows beyond the last whole pair of patches are not: the blocks before the downsampling look at them
        assert not np.allclose(model(pixel_values[:, :, :32]).logits, model(pixel_values).logits, rtol=1e-3)

    @pytest.mark.parametrize("model_class", CLASSES)
    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((1, 3, 64, 64), r"\(1, 3, 64, 64\) is channels-first.*transpose\(0, 2, 3, 1\)"),
            ((64, 64, 3), r"not \(64, 64, 3\)"),
            ((1, 64, 64, 4), r"not \(1, 64, 64, 4\)"),
            ((1, 15, 24, 3), "at least 16 x 24 pixels"),  # which follows from patch and stages
            ((1, 16, 23, 3), "at least 16 x 24 pixels"),
            ((1, 3, 64, 3), "at least 16 x 24 pixels"),
        ],
        ids=str,
    )
    def test_a_wrong_shape_is_an_error_that_names_the_expected_one(self, model_class, shape, message):
        model = build(model_class, patch_size=[2, 3])
        with pytest.raises(ValueError, match=message) as error:
            model(mx.zeros(shape))
        assert "(batch, height, width, 3)" in str(error.value)
        model(mx.zeros((1, 16, 24, 3)))

    @pytest.mark.parametrize("dtype", [mx.uint8, mx.int32, mx.bool_, mx.complex64], ids=str)
    def test_pixels_that_are_no_floats_are_an_error_that_names_the_processor(self, dtype):
        with pytest.raises(ValueError, match=r"floating point.*image processor"):
            build()(mx.zeros((1, 32, 32, 3), dtype=dtype))

    def test_inputs_that_are_no_mlx_arrays_are_named(self, small_model):
        pixels = np.zeros((1, 32, 32, 3), np.float32)
        with pytest.raises(TypeError, match=r"pixel_values must be an mx\.array, not ndarray"):
            small_model(pixels)
        with pytest.raises(TypeError, match=r"labels must be an mx\.array, not list"):
            small_model(mx.array(pixels), labels=[1])


class TestOutputs:
    @pytest.mark.parametrize("model_class", CLASSES)
    def test_hidden_states_come_when_asked_for(self, model_class):
        pixel_values = images(1, 32, 32, 3)
        model, telling = build(model_class), build(model_class, output_hidden_states=True)
        assert model(pixel_values).hidden_states is None
        assert telling(pixel_values, output_hidden_states=False).hidden_states is None
        for outputs in (model(pixel_values, output_hidden_states=True), telling(pixel_values)):
            assert [state.shape[-1] for state in outputs.hidden_states] == [8, 8, 12, 20, 33]

    @pytest.mark.parametrize(
        ("model_class", "arguments", "names"),
        [
            (ConvNextV2ForImageClassification, {}, ["logits", "hidden_states"]),
            (ConvNextV2ForImageClassification, {"labels": mx.array([0, 1])}, ["loss", "logits", "hidden_states"]),
            (ConvNextV2Model, {}, ["last_hidden_state", "pooler_output", "hidden_states"]),
            (ConvNextV2Backbone, {}, ["feature_maps", "hidden_states"]),
        ],
    )
    @pytest.mark.parametrize("hidden", [False, True])
    def test_outputs_are_a_mapping_a_sequence_and_without_return_dict_a_tuple(
        self, model_class, arguments, names, hidden
    ):
        pixel_values, kept = images(2, 32, 32, 3), names if hidden else names[:-1]
        arguments = {"output_hidden_states": hidden, **arguments}
        outputs = build(model_class)(pixel_values, **arguments)
        assert list(outputs.keys()) == kept  # a field that is None is no key
        assert len(outputs) == len(kept)
        assert dict(outputs) == dict(outputs.items()) == {name: getattr(outputs, name) for name in kept}
        assert tuple(outputs) == outputs.to_tuple() == outputs[:9]  # and has no position
        assert all(outputs[name] is outputs[i] for i, name in enumerate(kept))
        assert [name in outputs for name in names] == [name in kept for name in names]
        for values in (
            build(model_class)(pixel_values, return_dict=False, **arguments),
            build(model_class, return_dict=False)(pixel_values, **arguments),
        ):
            assert isinstance(values, tuple)
            flat, expected = (
                [x for v in found for x in (v if isinstance(v, tuple) else [v])] for found in (values, outputs)
            )
            assert all(mx.array_equal(*pair) for pair in zip(flat, expected, strict=True))
        assert build(model_class, return_dict=False)(pixel_values, return_dict=True).keys()

    def test_a_name_that_is_no_field_is_a_key_error(self):
        outputs = build(ConvNextV2Backbone)(images(1, 32, 32, 3))
        assert outputs["attentions"] is None  # for code that reads the outputs of any backbone
        for name in ("logits", "to_tuple"):
            with pytest.raises(KeyError, match=name):
                outputs[name]


class TestParameters:
    @staticmethod
    def expected(prefix: str) -> dict[str, tuple[int, ...]]:
        """Hugging Face's keys, with MLX's shapes: convolutions (out, height, width, in)."""
        sizes = SMALL["hidden_sizes"]
        shapes: dict[str, tuple[int, ...]] = {"embeddings.patch_embeddings": (8, 4, 4, 3), "embeddings.layernorm": (8,)}
        for i, (depth, dim) in enumerate(zip(SMALL["depths"], sizes, strict=True)):
            stage = f"encoder.stages.{i}"
            if i > 0:
                shapes[f"{stage}.downsampling_layer.0"] = (sizes[i - 1],)
                shapes[f"{stage}.downsampling_layer.1"] = (dim, 2, 2, sizes[i - 1])
            for j in range(depth):
                shapes[f"{stage}.layers.{j}.dwconv"] = (dim, 7, 7, 1)
                shapes[f"{stage}.layers.{j}.layernorm"] = (dim,)
                shapes[f"{stage}.layers.{j}.pwconv1"] = (4 * dim, dim)
                shapes[f"{stage}.layers.{j}.grn"] = (1, 1, 1, 4 * dim)
                shapes[f"{stage}.layers.{j}.pwconv2"] = (dim, 4 * dim)
        return {f"{prefix}{name}": shape for name, shape in shapes.items()}

    @pytest.mark.parametrize(
        ("model_class", "prefix", "more"),
        [
            (ConvNextV2ForImageClassification, "convnextv2.", {"convnextv2.layernorm": (33,), "classifier": (7, 33)}),
            (ConvNextV2Model, "", {"layernorm": (33,)}),
            (ConvNextV2Backbone, "", {"hidden_states_norms.stem": (8,), "hidden_states_norms.stage3": (20,)}),
        ],
    )
    def test_names_are_hugging_faces(self, model_class, prefix, more):
        shapes = {**self.expected(prefix), **more}
        expected = {f"{name}.weight": shape for name, shape in shapes.items()}
        for name, shape in shapes.items():  # a bias has the length of the outputs; GRN's has its weight's shape
            expected[f"{name}.bias"] = shape if name.endswith("grn") else shape[:1]
        model = model_class(ConvNextV2Config(**SMALL, num_labels=7, out_features=["stem", "stage3"]))
        assert {name: parameter.shape for name, parameter in parameters(model).items()} == expected

    def test_initial_weights_are_normal_of_the_configured_width(self):
        mx.random.seed(0)
        config = {"hidden_sizes": [64, 96], "depths": [1, 1], "num_stages": 2, "num_labels": 200}
        model = ConvNextV2ForImageClassification(ConvNextV2Config(**config, initializer_range=0.05))
        measured = 0
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                weight = np.array(module.weight)
                # the standard error of a std is std / sqrt(2 n); five of them hold for every weight
                assert abs(weight.std() - 0.05) < 5 * 0.05 / math.sqrt(2 * weight.size), name
                assert abs(weight.mean()) < 5 * 0.05 / math.sqrt(weight.size), name
                assert np.abs(weight).max() > 3 * 0.05, name  # a uniform distribution of this std ends at 1.73
                assert not module.bias.any(), name
                measured += 1
            elif isinstance(module, nn.LayerNorm | ConvNextV2GRN):
                assert (module.weight == isinstance(module, nn.LayerNorm)).all(), name
                assert not module.bias.any(), name
        assert measured == 9  # stem, downsampling, two blocks of three, head
        zeros = ConvNextV2ForImageClassification(ConvNextV2Config(**config, initializer_range=0))
        assert not zeros.classifier.weight.any()

    def test_without_labels_there_is_no_head(self):
        model, pixel_values = build(num_labels=0), images(2, 32, 32, 3)
        assert not any(name.startswith("classifier") for name in parameters(model))
        assert mx.array_equal(model(pixel_values).logits, model.convnextv2(pixel_values).pooler_output)
        with pytest.raises(ValueError, match="num_labels"):
            model(pixel_values, labels=mx.array([0, 1]))


class TestDropPath:
    X = np.random.RandomState(2).uniform(1, 2, (4096, 3, 2, 1)).astype(np.float32)

    def test_outside_training_it_is_the_identity(self):
        module, x = ConvNextV2DropPath(0.4), mx.array(self.X)
        module.eval()
        assert module(x) is x
        assert drop_path(x, 0.4) is x
        assert drop_path(x, 0.0, training=True) is x

    @pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
    def test_whole_samples_are_kept_and_scaled_or_dropped(self, dtype):
        mx.random.seed(0)
        x = mx.array(self.X, dtype)
        y = ConvNextV2DropPath(0.4)(x)
        assert y.dtype == dtype
        kept = np.array((y != 0).all(axis=(1, 2, 3)))
        assert (kept | np.array((y == 0).all(axis=(1, 2, 3)))).all()
        # 0.6 of the samples are kept; four standard errors of a binomial share are 4 sqrt(0.6 * 0.4 / 4096) = 0.031
        assert abs(kept.mean() - 0.6) < 0.031
        expected = np.where(kept[:, None, None, None], np.array(x.astype(mx.float32)) / 0.6, 0)
        assert_close(y, expected, 4 * UNIT_ROUNDOFF[dtype])

    def test_rates_rise_linearly_over_all_blocks(self):
        config = {"hidden_sizes": [4] * 4, "depths": [1, 3, 0, 2], "drop_path_rate": 0.25}
        model = ConvNextV2Model(ConvNextV2Config(**config))
        rates = [[layer.drop_path.drop_prob for layer in stage.layers] for stage in model.encoder.stages]
        # six blocks: multiples of 0.25 / 5
        assert [len(stage) for stage in rates] == [1, 3, 0, 2]
        assert [rate for stage in rates for rate in stage] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25])
        single = ConvNextV2Model(ConvNextV2Config(num_stages=1, hidden_sizes=[4], depths=[1], drop_path_rate=0.5))
        assert single.encoder.stages[0].layers[0].drop_path.drop_prob == 0

    def test_a_dropped_block_passes_its_input_on(self):
        mx.random.seed(0)
        layer = ConvNextV2Layer(ConvNextV2Config(**SMALL), 6, drop_path=0.5)
        x = images(64, 5, 4, 6)
        kept = np.array(layer.eval()(x)) - np.array(x)  # the block's branch alone
        branch = np.array(layer.train()(x)) - np.array(x)
        dropped = ~branch.any(axis=(1, 2, 3))
        assert 0 < dropped.sum() < 64
        assert_close(branch[~dropped], kept[~dropped] / 0.5)


def numpy_grn(x: Any, weight: Any, bias: Any) -> np.ndarray:
    """Section 4 of the paper, with the 1e-6 of its code, in float64."""
    x, weight, bias = (np.array(array.astype(mx.float32), np.float64) for array in (x, weight, bias))
    gx = np.sqrt((x**2).sum(axis=(1, 2), keepdims=True))
    nx = gx / (gx.mean(axis=-1, keepdims=True) + 1e-6)
    return weight * (x * nx) + bias + x


class TestGRN:
    @staticmethod
    def grn(channels: int, dtype: mx.Dtype = mx.float32) -> ConvNextV2GRN:
        grn = ConvNextV2GRN(channels)
        grn.weight, grn.bias = images(1, 1, 1, channels, seed=3), images(1, 1, 1, channels, seed=4)
        grn.set_dtype(dtype)
        return grn

    @pytest.mark.parametrize("scale", [1e-7, 1e3])
    @pytest.mark.parametrize("shape", [(1, 7, 7, 12), (3, 5, 2, 1), (2, 1, 1, 33)])
    def test_it_is_the_papers_formula(self, shape, scale):
        grn, x = self.grn(shape[-1]), images(*shape) * scale
        grn.bias = grn.bias * scale  # else it hides the rest where the scale is small
        assert_close(grn(x), numpy_grn(x, grn.weight, grn.bias), 1e-6)

    @HALF
    def test_half_precision_neither_overflows_nor_loses_the_sum(self, dtype):
        grn, x = self.grn(8, dtype), (images(1, 56, 56, 8) * 10).astype(dtype)
        # 3136 squares of mean 100 are 3e5; float16 ends at 65504, and bfloat16 stops counting at 256 ones
        assert grn(x).dtype == dtype
        # five roundings, each of a term that may be larger than the sum
        assert_close(grn(x), numpy_grn(x, grn.weight, grn.bias), 5 * UNIT_ROUNDOFF[dtype])

    @pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
    def test_a_channel_that_is_zero_everywhere_has_the_residuals_gradient(self, dtype):
        grn, x, upstream = self.grn(4, dtype), images(2, 3, 3, 4), images(2, 3, 3, 4, seed=5).astype(dtype)
        for zero in ([1], [0, 1, 2, 3]):
            dead = np.array(x)
            dead[..., zero] = 0
            gradient = mx.grad(lambda x: (grn(x) * upstream).sum())(mx.array(dead, dtype))
            assert mx.isfinite(gradient).all()
            # the norm of such a channel is 0 and its derivative is taken as 0, so only the term + x is left
            assert (gradient[..., zero] == upstream[..., zero]).all()

    def test_a_black_image_has_a_finite_gradient(self):
        # zero biases and black pixels: every activation is zero, in every block. Not in float16, where the norms' small
        # eps makes a gradient too large, as in PyTorch
        model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL))
        black = mx.zeros((2, 32, 32, 3))
        gradients = nn.value_and_grad(model, lambda: model(black, labels=mx.array([0, 0])).loss)()[1]
        assert tree_reduce(lambda finite, gradient: finite and mx.isfinite(gradient).all(), gradients, True)
        assert gradients["convnextv2"]["embeddings"]["patch_embeddings"]["bias"].any()


class TestLayerNorm:
    # numbers of about the size that eps decides about: their variance is 1e-6
    X = np.where(np.arange(8) % 2, 1e-3, -1e-3)

    @pytest.mark.parametrize("eps", [1e-12, 1e-3])
    def test_layer_norm_eps_is_the_last_norms_alone_and_the_others_is_1e_6(self, eps):
        config = ConvNextV2Config(hidden_sizes=[8] * 4, depths=[1] * 4, layer_norm_eps=eps)
        norms = {
            name: module
            for model in (ConvNextV2Model(config), ConvNextV2Backbone(config))
            for name, module in model.named_modules()
            if isinstance(module, nn.LayerNorm)
        }
        assert len(norms) == 10  # stem, three before downsampling, four blocks, the last one, the backbone's own
        for name, norm in norms.items():
            expected = self.X / math.sqrt(1e-6 + (eps if name == "layernorm" else 1e-6))
            assert_close(norm(mx.array(self.X.astype(np.float32))), expected)

    def test_a_small_last_eps_survives_half_precision(self):
        model = ConvNextV2Model(ConvNextV2Config(hidden_sizes=[8], depths=[0], num_stages=1))
        model.set_dtype(mx.float16)
        assert_close(model.layernorm(mx.array(self.X, mx.float16)), self.X / 1e-3, 1e-3)


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def selu(x: float) -> float:
    # the two constants as the paper's authors published them (arXiv:1706.02515)
    return 1.0507009873554804934193349852946 * (x if x > 0 else 1.6732632423543772848170429916717 * math.expm1(x))


FORMULAS: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": lambda x: max(x, 0.0),
    "silu": silu,
    "swish": silu,
    "selu": selu,
}


@pytest.mark.parametrize("name", ACT2FN)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_an_activation_is_its_formula_and_keeps_its_dtype(name, dtype):
    # up to 200, whose cube is beyond float16
    x = mx.array([*np.linspace(-200, 200, 801), *np.linspace(-12, 12, 801), 1e-6, -1e-6]).astype(dtype)
    inputs = np.array(x.astype(mx.float32), np.float64)
    y = ACT2FN[name](x)
    assert y.dtype == dtype
    difference = np.abs(np.array(y.astype(mx.float32)) - [FORMULAS[name](value) for value in inputs])
    # the inner steps round too: a few units in the last place of the input
    assert (difference <= 8 * UNIT_ROUNDOFF[dtype] * np.maximum(np.abs(inputs), 1)).all()


class TestLoss:  # whose three kinds test_goldens.py compares with transformers'
    LOGITS = mx.array(np.random.RandomState(6).standard_normal((5, 7)).astype(np.float32) * 3)
    TARGETS = np.random.RandomState(8).randint(0, 2, (5, 7)).astype(np.float32)

    @pytest.mark.parametrize("dtype", [mx.int8, mx.int64, mx.uint32], ids=str)  # what mx.argmax gives is unsigned
    def test_integers_of_any_type_and_shape_mean_cross_entropy(self, dtype):
        labels = mx.array([3, 0, 6, 6, 1])
        expected = classification_loss(self.LOGITS, labels, "single_label_classification")
        assert expected.shape == ()
        for shape in ((5,), (5, 1)):
            assert classification_loss(self.LOGITS, labels.astype(dtype).reshape(shape)) == expected
        counted = classification_loss(self.LOGITS[::2], labels[::2])
        assert_close(classification_loss(self.LOGITS, mx.array([3, -100, 6, -100, 1])), counted, 1e-6)

    @pytest.mark.parametrize("shape", [(5,), (5, 1)])
    @pytest.mark.parametrize("dtype", [mx.float32, mx.int32], ids=str)
    def test_one_label_means_squared_error(self, shape, dtype):
        targets = mx.array([1, -2, 3, 0, 5])
        loss = classification_loss(self.LOGITS[:, :1], targets.astype(dtype).reshape(shape))
        assert_close(loss, mx.square(self.LOGITS[:, 0] - targets).mean(), 1e-6)

    def test_binary_cross_entropy_of_a_large_logit_is_finite(self):
        loss = classification_loss(mx.array([[200.0, -200.0]]), mx.array([[0.0, 1.0]]))
        assert loss.item() == pytest.approx(200, rel=1e-6)

    @pytest.mark.parametrize("problem_type", [None, "multi_label_classification", "regression"])
    def test_the_model_takes_the_problem_from_its_configuration(self, problem_type):
        model, labels = build(num_labels=7, problem_type=problem_type), mx.array(self.TARGETS[:2])
        outputs = model(images(2, 32, 32, 3), labels=labels)
        expected = classification_loss(outputs.logits, labels, problem_type or "multi_label_classification")
        assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert model.config.problem_type == problem_type  # inferring it does not fix it for the next call

    @pytest.mark.parametrize(
        ("labels", "problem_type"),
        [
            *((mx.array([0, 1, 2]), None), (mx.zeros((5, 7), mx.int32), None), (mx.array(3), None)),
            *((mx.zeros((5,)), None), (mx.zeros((7, 5)), None), (mx.zeros((35,)), None)),
            *((mx.zeros((7, 5)), "regression"), (mx.zeros((5,)), "regression")),
            (mx.zeros((5,)), "single_label_classification"),  # classes are whole numbers
        ],
        ids=lambda value: f"{value.dtype} {value.shape}" if isinstance(value, mx.array) else str(value),
    )
    def test_labels_that_do_not_fit_are_an_error_that_names_the_expected_shape(self, labels, problem_type):
        with pytest.raises(ValueError, match="labels must"):
            mx.eval(classification_loss(self.LOGITS, labels, problem_type))

    @pytest.mark.parametrize("label", [7, -1])
    def test_a_class_that_does_not_exist_is_an_error_that_names_it_and_nan_where_the_loss_is_compiled(self, label):
        logits, labels = self.LOGITS, mx.array([0, label, 1, 2, 3])
        with pytest.raises(ValueError, match=rf"classes from 0 to 6.* not {label}$"):
            classification_loss(logits, labels)
        assert mx.isnan(mx.compile(classification_loss)(logits, labels))


class TestHalfPrecision:
    @HALF
    @pytest.mark.parametrize("act", ["gelu", "relu"])
    def test_it_stays_close_to_float32(self, dtype, act):
        pixel_values = images(2, 41, 64, 3)
        whole, half = build(num_labels=7, hidden_act=act), build(num_labels=7, hidden_act=act)
        half.set_dtype(dtype)
        expected = whole(pixel_values, output_hidden_states=True)
        outputs = half(pixel_values, output_hidden_states=True)
        # some ten roundings in each of five blocks, which add up like a random walk: six units were measured
        tolerance = 12 * UNIT_ROUNDOFF[dtype]
        for ours, theirs in zip(outputs.hidden_states, expected.hidden_states, strict=True):
            assert_close(ours, theirs, tolerance)
        assert_close(outputs.logits, expected.logits, tolerance)
        predicted = fuse(half)(pixel_values)
        assert predicted.dtype == dtype
        assert_close(predicted, expected.logits, tolerance)

    @pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
    @pytest.mark.parametrize("pixels", [mx.float32, mx.float16], ids=str)
    def test_outputs_have_the_weights_dtype_whatever_the_pixels(self, dtype, pixels):
        pixel_values = images(1, 32, 32, 3).astype(pixels)
        model, backbone = build(), build(ConvNextV2Backbone)
        model.set_dtype(dtype)
        backbone.set_dtype(dtype)
        outputs = model.convnextv2(pixel_values, output_hidden_states=True)
        arrays = [model(pixel_values).logits, *outputs.to_tuple()[:2], *outputs.hidden_states]
        arrays += backbone(pixel_values).feature_maps
        assert {array.dtype for array in arrays} == {dtype}
        assert model(pixel_values, labels=mx.array([1])).loss.dtype == mx.float32

    def test_pooling_a_large_float16_map_does_not_overflow(self):
        model = ConvNextV2Model(ConvNextV2Config(num_stages=1, hidden_sizes=[6], depths=[0], patch_size=1))
        model.embeddings.layernorm.bias = mx.array([30.0, 31, 32, 33, 34, 35])
        expected = model(mx.zeros((1, 64, 64, 3))).pooler_output
        model.set_dtype(mx.float16)
        # 4096 times 30 is beyond 65504
        assert_close(model(mx.zeros((1, 64, 64, 3))).pooler_output, expected, 1e-3)


@pytest.mark.parametrize(
    ("config", "features", "channels"),
    [
        ({}, ["stage4"], [33]),
        ({"out_features": ["stem", "stage2", "stage3"]}, ["stem", "stage2", "stage3"], [8, 12, 20]),
        ({"out_indices": [-4, -2]}, ["stage1", "stage3"], [8, 20]),
        ({"out_features": []}, [], []),
    ],
    ids=str,
)
def test_a_backbone_returns_the_stages_asked_for_each_through_its_own_norm(config, features, channels):
    backbone = build(ConvNextV2Backbone, **config)
    assert (backbone.out_features, backbone.channels) == (features, channels)
    assert list(backbone.hidden_states_norms) == features
    outputs = backbone(images(1, 64, 40, 3), output_hidden_states=True)
    for name, feature_map in zip(features, outputs.feature_maps, strict=True):
        x = np.array(outputs.hidden_states[backbone.stage_names.index(name)], np.float64)
        assert_close(feature_map, normed(x, backbone.hidden_states_norms[name], 1e-6))
    assert backbone.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert backbone.num_features == [8, 8, 12, 20, 33]
    assert backbone.out_feature_channels == dict(zip(backbone.stage_names, backbone.num_features, strict=True))


class TestFuse:
    @pytest.mark.parametrize(
        ("config", "shape"),
        [
            ({"num_labels": 0}, (1, 45, 67, 3)),
            ({"return_dict": False, "output_hidden_states": True}, (1, 32, 32, 3)),
            ({"drop_path_rate": 0.9, "hidden_act": "selu"}, (8, 32, 32, 3)),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("training", [False, True])
    def test_it_equals_the_model_in_inference_mode_and_leaves_its_mode_as_it_is(self, config, shape, training):
        model, pixel_values = build(**config), images(*shape)
        expected = model(pixel_values, return_dict=True).logits
        model.train(training)
        predict = fuse(model)
        assert_close(predict(pixel_values), expected)
        with pytest.raises(ValueError, match="channels-first"):
            predict(images(1, 3, 32, 32))
        assert {module.training for module in model.modules()} == {training}
        if training and "drop_path_rate" in config:
            mx.random.seed(0)
            assert not np.allclose(model(pixel_values).logits, expected)  # whose blocks are dropped in training alone

    @pytest.mark.parametrize("path", [None, "plain", "numpy"])
    def test_a_model_without_a_classifier_gives_its_pooled_output(self, path):
        model, pixel_values = build(), images(2, 40, 36, 3)
        embed = fuse(model.convnextv2, path)
        assert_close(embed(pixel_values), model.convnextv2(pixel_values).pooler_output)
        assert mx.array_equal(embed(pixel_values), fuse(model, path, pooled=True)(pixel_values))
