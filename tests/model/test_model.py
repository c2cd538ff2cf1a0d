"""The model without transformers at hand: shapes, bad input, each formula beside a float64 one, and half precision."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from checkpoint_files import assert_close
from conftest import SMALL, randomize
from mlx.utils import tree_flatten

from mlx_convnextv2 import ConvNextV2Backbone, ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2Model, fuse
from mlx_convnextv2.model.convnextv2 import (
    ACT2FN,
    ConvNextV2DropPath,
    ConvNextV2GRN,
    ConvNextV2Layer,
    ConvNextV2LayerNorm,
    drop_path,
)
from mlx_convnextv2.model.loss import classification_loss

CLASSES = [ConvNextV2ForImageClassification, ConvNextV2Model, ConvNextV2Backbone]
UNIT_ROUNDOFF = {mx.float16: 2**-11, mx.bfloat16: 2**-8}


def build(model_class=ConvNextV2ForImageClassification, **config):
    """A model of the small configuration with random weights, in inference mode."""
    model = model_class(ConvNextV2Config(**{**SMALL, **config}))
    randomize(model)
    return model.eval()


def images(*shape: int, seed: int = 1) -> mx.array:
    return mx.array(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


class TestShapes:
    # (configuration, input, stem and stages): every side is divided and rounded down, by the patch, then by 2 a stage
    CASES = (
        ({}, (1, 32, 32, 3), [(8, 8, 8), (8, 8, 8), (4, 4, 12), (2, 2, 20), (1, 1, 33)]),
        ({}, (3, 39, 75, 3), [(9, 18, 8), (9, 18, 8), (4, 9, 12), (2, 4, 20), (1, 2, 33)]),
        ({}, (2, 101, 32, 3), [(25, 8, 8), (25, 8, 8), (12, 4, 12), (6, 2, 20), (3, 1, 33)]),
        ({"patch_size": [2, 3]}, (1, 17, 26, 3), [(8, 8, 8), (8, 8, 8), (4, 4, 12), (2, 2, 20), (1, 1, 33)]),
        ({"patch_size": 1, "num_channels": 5}, (1, 9, 11, 5), [(9, 11, 8)] * 2 + [(4, 5, 12), (2, 2, 20), (1, 1, 33)]),
        ({"num_stages": 1, "hidden_sizes": [5], "depths": [2], "patch_size": 7}, (2, 8, 15, 3), [(1, 2, 5)] * 2),
        ({"num_stages": 2, "hidden_sizes": [6, 6], "depths": [0, 1]}, (1, 13, 21, 3), [(3, 5, 6)] * 2 + [(1, 2, 6)]),
        (
            {"num_stages": 5, "hidden_sizes": [9, 7, 5, 3, 1], "depths": [1, 0, 2, 0, 1], "patch_size": 1},
            (2, 16, 35, 3),
            [(16, 35, 9), (16, 35, 9), (8, 17, 7), (4, 8, 5), (2, 4, 3), (1, 2, 1)],
        ),
        ({"depths": [0, 0, 0, 0]}, (1, 32, 33, 3), [(8, 8, 8), (8, 8, 8), (4, 4, 12), (2, 2, 20), (1, 1, 33)]),
    )  # fmt: skip

    @pytest.mark.parametrize(("config", "shape", "expected"), CASES, ids=[f"{c} {s}" for c, s, _ in CASES])
    def test_every_output_has_its_shape(self, config, shape, expected):
        expected = [(shape[0], *rest) for rest in expected]
        pixel_values = images(*shape)
        outputs = build(num_labels=7, **config)(pixel_values, output_hidden_states=True)
        assert [state.shape for state in outputs.hidden_states] == expected
        assert outputs.logits.shape == (shape[0], 7)
        outputs = build(ConvNextV2Model, **config)(pixel_values)
        assert outputs.last_hidden_state.shape == expected[-1]
        assert outputs.pooler_output.shape == (shape[0], expected[-1][-1])
        names = ConvNextV2Config(**{**SMALL, **config}).stage_names
        outputs = build(ConvNextV2Backbone, **config, out_features=names)(pixel_values)
        assert [feature_map.shape for feature_map in outputs.feature_maps] == expected
        assert np.isfinite(np.array(outputs.feature_maps[-1])).all()

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
class TestBadInput:
    CASES = (
        ((1, 3, 64, 64), r"\(1, 3, 64, 64\) is channels-first.*transpose\(0, 2, 3, 1\)"),
        ((64, 64, 3), r"not \(64, 64, 3\)"),
        ((1, 1, 64, 64, 3), r"not \(1, 1, 64, 64, 3\)"),
        ((1, 64, 64, 4), r"not \(1, 64, 64, 4\)"),
        ((1, 64, 64, 1), r"not \(1, 64, 64, 1\)"),
        ((1, 31, 64, 3), "at least 32 x 32 pixels"),
        ((1, 64, 31, 3), "at least 32 x 32 pixels"),
        ((1, 3, 64, 3), "at least 32 x 32 pixels"),
    )

    @pytest.mark.parametrize(("shape", "message"), CASES, ids=[str(shape) for shape, _ in CASES])
    def test_a_wrong_shape_is_an_error_that_names_the_expected_one(self, model_class, shape, message):
        with pytest.raises(ValueError, match=message) as error:
            build(model_class)(mx.zeros(shape))
        assert "(batch, height, width, 3)" in str(error.value)

    def test_the_smallest_size_follows_from_patch_and_stages(self, model_class):
        model = build(model_class, patch_size=[2, 3])
        model(mx.zeros((1, 16, 24, 3)))
        for shape in ((1, 15, 24, 3), (1, 16, 23, 3)):
            with pytest.raises(ValueError, match="at least 16 x 24 pixels"):
                model(mx.zeros(shape))

    @pytest.mark.parametrize("dtype", [mx.uint8, mx.int32, mx.bool_, mx.complex64], ids=str)
    def test_pixels_that_are_no_floats_are_an_error_that_names_the_processor(self, model_class, dtype):
        with pytest.raises(ValueError, match=r"floating point.*image processor"):
            build(model_class)(mx.zeros((1, 32, 32, 3), dtype=dtype))


class TestOutputs:
    @pytest.mark.parametrize("model_class", CLASSES)
    def test_hidden_states_come_when_asked_for(self, model_class):
        pixel_values = images(1, 32, 32, 3)
        model, telling = build(model_class), build(model_class, output_hidden_states=True)
        assert model(pixel_values).hidden_states is None
        assert telling(pixel_values, output_hidden_states=False).hidden_states is None
        for outputs in (model(pixel_values, output_hidden_states=True), telling(pixel_values)):
            assert isinstance(outputs.hidden_states, tuple)
            assert [state.shape[-1] for state in outputs.hidden_states] == [8, 8, 12, 20, 33]

    def test_the_last_hidden_state_comes_before_any_norm(self):
        outputs = build(ConvNextV2Model)(images(1, 64, 64, 3), output_hidden_states=True)
        assert (outputs.last_hidden_state == outputs.hidden_states[-1]).all()
        pooled = np.array(outputs.last_hidden_state, np.float64).mean(axis=(1, 2))
        normed = (pooled - pooled.mean(-1, keepdims=True)) / np.sqrt(pooled.var(-1, keepdims=True) + 1e-12)
        norm = build(ConvNextV2Model).layernorm
        assert_close(outputs.pooler_output, normed * np.array(norm.weight) + np.array(norm.bias))

    @pytest.mark.parametrize("hidden", [False, True])
    def test_without_return_dict_come_tuples_of_the_same(self, hidden):
        pixel_values, labels = images(2, 32, 32, 3), mx.array([0, 1])
        expected = {
            ConvNextV2ForImageClassification: ["logits", "hidden_states"],
            ConvNextV2Model: ["last_hidden_state", "pooler_output", "hidden_states"],
            ConvNextV2Backbone: ["feature_maps", "hidden_states"],
        }
        calls = [(model_class, {}, names) for model_class, names in expected.items()]
        calls.append((ConvNextV2ForImageClassification, {"labels": labels}, ["loss", "logits", "hidden_states"]))
        for model_class, arguments, names in calls:
            outputs = build(model_class)(pixel_values, output_hidden_states=hidden, **arguments)
            for values in (
                build(model_class)(pixel_values, output_hidden_states=hidden, return_dict=False, **arguments),
                build(model_class, return_dict=False)(pixel_values, output_hidden_states=hidden, **arguments),
            ):
                assert isinstance(values, tuple)
                assert len(values) == len(names) - (not hidden)
                for name, value in zip(names, values, strict=False):
                    for ours, theirs in zip(listed(value), listed(getattr(outputs, name)), strict=True):
                        assert (ours == theirs).all()

    def test_return_dict_wins_over_the_configuration(self):
        assert build(return_dict=False)(images(1, 32, 32, 3), return_dict=True).logits.shape == (1, 2)

    def test_outputs_are_read_by_name_and_by_position(self):
        outputs = build()(images(2, 32, 32, 3), labels=mx.array([0, 1]), output_hidden_states=True)
        assert outputs[0] is outputs["loss"] is outputs.loss
        assert outputs[1] is outputs["logits"] is outputs.logits
        assert outputs[-1] is outputs.hidden_states
        assert outputs[:2] == (outputs.loss, outputs.logits)
        loss, logits, hidden_states = outputs
        assert (loss, logits, hidden_states) == outputs.to_tuple()

    def test_a_field_that_is_none_has_no_position(self):
        outputs = build()(images(2, 32, 32, 3))
        assert outputs.loss is None
        assert outputs[0] is outputs.logits
        with pytest.raises(IndexError):
            outputs[1]

    def test_outputs_are_a_mapping_of_what_is_there(self):
        outputs = build()(images(2, 32, 32, 3), output_hidden_states=True)
        assert list(outputs.keys()) == ["logits", "hidden_states"]
        assert "logits" in outputs
        assert "loss" not in outputs
        assert len(outputs) == 2
        assert (
            dict(outputs)
            == dict(outputs.items())
            == {
                "logits": outputs.logits,
                "hidden_states": outputs.hidden_states,
            }
        )

    def test_a_backbone_has_no_attentions_but_says_so(self):
        outputs = build(ConvNextV2Backbone)(images(1, 32, 32, 3))
        assert outputs.attentions is None
        assert "attentions" not in outputs

    @pytest.mark.parametrize("name", ["attentions", "to_tuple"])
    def test_a_name_that_is_no_field_is_a_key_error(self, name):
        with pytest.raises(KeyError, match=name):
            build()(images(1, 32, 32, 3))[name]


def listed(value) -> list:
    return list(value) if isinstance(value, tuple) else [value]


class TestParameters:
    @staticmethod
    def expected(prefix: str, depths=SMALL["depths"], sizes=SMALL["hidden_sizes"]) -> dict:
        """Hugging Face's keys, with MLX's shapes: convolutions (out, height, width, in)."""
        shapes = {
            f"{prefix}embeddings.patch_embeddings": (sizes[0], 4, 4, 3),
            f"{prefix}embeddings.layernorm": (sizes[0],),
        }
        for i, (depth, dim) in enumerate(zip(depths, sizes, strict=True)):
            stage = f"{prefix}encoder.stages.{i}"
            if i > 0:
                shapes[f"{stage}.downsampling_layer.0"] = (sizes[i - 1],)
                shapes[f"{stage}.downsampling_layer.1"] = (dim, 2, 2, sizes[i - 1])
            for j in range(depth):
                shapes[f"{stage}.layers.{j}.dwconv"] = (dim, 7, 7, 1)
                shapes[f"{stage}.layers.{j}.layernorm"] = (dim,)
                shapes[f"{stage}.layers.{j}.pwconv1"] = (4 * dim, dim)
                shapes[f"{stage}.layers.{j}.grn"] = (1, 1, 1, 4 * dim)
                shapes[f"{stage}.layers.{j}.pwconv2"] = (dim, 4 * dim)
        return shapes

    @pytest.mark.parametrize("model_class", CLASSES)
    def test_names_are_hugging_faces(self, model_class):
        model = model_class(ConvNextV2Config(**SMALL, num_labels=7, out_features=["stem", "stage3"]))
        shapes = self.expected("convnextv2." if model_class is ConvNextV2ForImageClassification else "")
        if model_class is ConvNextV2ForImageClassification:
            shapes |= {"convnextv2.layernorm": (33,), "classifier": (7, 33)}
        elif model_class is ConvNextV2Model:
            shapes |= {"layernorm": (33,)}
        else:
            shapes |= {"hidden_states_norms.stem": (8,), "hidden_states_norms.stage3": (20,)}
        parameters = {name: parameter.shape for name, parameter in tree_flatten(model.parameters())}
        expected = {f"{name}.weight": shape for name, shape in shapes.items()}
        for name, shape in shapes.items():  # a bias has the length of the outputs; GRN's has its weight's shape
            expected[f"{name}.bias"] = shape if name.endswith("grn") else shape[:1]
        assert parameters == expected

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
            elif isinstance(module, nn.LayerNorm):
                assert (module.weight == 1).all(), name
                assert not module.bias.any(), name
            elif isinstance(module, ConvNextV2GRN):
                assert not module.weight.any(), name
                assert not module.bias.any(), name
        assert measured == 9  # stem, downsampling, two blocks of three, head

    def test_an_initializer_range_of_zero_gives_zeros(self):
        model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, initializer_range=0))
        assert not model.classifier.weight.any()

    def test_without_labels_there_is_no_head(self):
        model, pixel_values = build(num_labels=0), images(2, 32, 32, 3)
        assert not any(name.startswith("classifier") for name, _ in tree_flatten(model.parameters()))
        logits = model(pixel_values).logits
        assert logits.shape == (2, 33)
        assert (logits == model.convnextv2(pixel_values).pooler_output).all()

    def test_classes_without_a_head_are_an_error(self):
        with pytest.raises(ValueError, match="num_labels"):
            build(num_labels=0)(images(2, 32, 32, 3), labels=mx.array([0, 1]))


class TestDropPath:
    X = np.random.RandomState(2).uniform(1, 2, (4096, 3, 2, 1)).astype(np.float32)

    def test_outside_training_it_is_the_identity(self):
        module, x = ConvNextV2DropPath(0.4), mx.array(self.X)
        module.eval()
        assert module(x) is x
        assert drop_path(x, 0.4) is x
        assert drop_path(x, 0.0, training=True) is x

    @pytest.mark.parametrize("ndim", [1, 2, 4])
    def test_whole_samples_are_kept_and_scaled_or_dropped(self, ndim):
        mx.random.seed(0)
        x = self.X.reshape(4096, -1)[:, 0] if ndim == 1 else self.X.reshape(4096, -1) if ndim == 2 else self.X
        module = ConvNextV2DropPath(0.4)
        y = np.array(module(mx.array(x))).reshape(4096, -1)
        kept = (y != 0).all(axis=1)
        dropped = (y == 0).all(axis=1)
        assert (kept | dropped).all()
        # 0.6 of the samples are kept; four standard errors of a binomial share are 4 sqrt(0.6 * 0.4 / 4096) = 0.031
        assert abs(kept.mean() - 0.6) < 0.031
        assert np.allclose(y[kept], x.reshape(4096, -1)[kept] / 0.6, rtol=1e-6)

    @pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
    def test_the_dtype_is_kept(self, dtype):
        assert drop_path(mx.array(self.X, dtype), 0.4, training=True).dtype == dtype

    def test_rates_rise_linearly_over_all_blocks(self):
        config = {"hidden_sizes": [4] * 4, "depths": [1, 3, 0, 2], "drop_path_rate": 0.25}
        model = ConvNextV2Model(ConvNextV2Config(**config))
        rates = [[layer.drop_path.drop_prob for layer in stage.layers] for stage in model.encoder.stages]
        # six blocks: multiples of 0.25 / 5
        assert [len(stage) for stage in rates] == [1, 3, 0, 2]
        assert [rate for stage in rates for rate in stage] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25])

    def test_a_single_block_is_never_dropped(self):
        model = ConvNextV2Model(ConvNextV2Config(num_stages=1, hidden_sizes=[4], depths=[1], drop_path_rate=0.5))
        assert model.encoder.stages[0].layers[0].drop_path.drop_prob == 0

    def test_a_dropped_block_passes_its_input_on(self):
        mx.random.seed(0)
        layer = ConvNextV2Layer(ConvNextV2Config(**SMALL), 6, drop_path=0.5)
        x = images(64, 5, 4, 6)
        kept = np.array(layer.eval()(x)) - np.array(x)  # the block's branch alone
        branch = np.array(layer.train()(x)) - np.array(x)
        dropped = ~branch.any(axis=(1, 2, 3))
        assert 0 < dropped.sum() < 64
        assert_close(mx.array(branch[~dropped]), kept[~dropped] / 0.5)

    def test_the_model_drops_in_training_alone(self):
        model, pixel_values = build(drop_path_rate=0.9), images(8, 32, 32, 3)
        expected = build(drop_path_rate=0.0)(pixel_values).logits
        assert (model(pixel_values).logits == expected).all()
        mx.random.seed(0)
        assert not np.allclose(model.train()(pixel_values).logits, expected)


def numpy_grn(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Section 4 of the paper, with the 1e-6 of its code, in float64."""
    x, weight, bias = (np.array(array, np.float64) for array in (x, weight, bias))
    gx = np.sqrt((x**2).sum(axis=(1, 2), keepdims=True))
    nx = gx / (gx.mean(axis=-1, keepdims=True) + 1e-6)
    return weight * (x * nx) + bias + x


class TestGRN:
    @staticmethod
    def grn(channels: int, dtype=mx.float32) -> ConvNextV2GRN:
        grn = ConvNextV2GRN(channels)
        grn.weight, grn.bias = images(1, 1, 1, channels, seed=3), images(1, 1, 1, channels, seed=4)
        grn.set_dtype(dtype)
        return grn

    @pytest.mark.parametrize("scale", [1e-7, 1.0, 1e3])
    @pytest.mark.parametrize("shape", [(1, 7, 7, 12), (3, 5, 2, 1), (2, 1, 1, 33)])
    def test_it_is_the_papers_formula(self, shape, scale):
        grn, x = self.grn(shape[-1]), images(*shape) * scale
        grn.bias = grn.bias * scale  # else it hides the rest where the scale is small
        assert_close(grn(x), numpy_grn(np.array(x), np.array(grn.weight), np.array(grn.bias)), 1e-6)

    def test_it_starts_as_the_identity(self):
        x = images(2, 3, 4, 5)
        assert (ConvNextV2GRN(5)(x) == x).all()

    @pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
    def test_half_precision_neither_overflows_nor_loses_the_sum(self, dtype):
        grn, x = self.grn(8, dtype), (images(1, 56, 56, 8) * 10).astype(dtype)
        # 3136 squares of mean 100 are 3e5; float16 ends at 65504, and bfloat16 stops counting at 256 ones
        assert np.square(np.array(x.astype(mx.float32))).sum() / 8 > 3e5
        expected = numpy_grn(*(np.array(array.astype(mx.float32)) for array in (x, grn.weight, grn.bias)))
        assert grn(x).dtype == dtype
        # five roundings, each of a term that may be larger than the sum
        assert_close(grn(x), expected, 5 * UNIT_ROUNDOFF[dtype])

    def test_its_gradient_is_the_formulas(self):
        grn, x, upstream = self.grn(4), images(1, 2, 3, 4), np.array(images(1, 2, 3, 4, seed=5), np.float64)
        gradient = mx.grad(lambda x: (grn(x) * mx.array(upstream.astype(np.float32))).sum())(x)
        weight, bias, at = np.array(grn.weight), np.array(grn.bias), np.array(x, np.float64)
        expected = np.zeros(24)
        for i, step in enumerate(np.eye(24).reshape(24, 1, 2, 3, 4) * 1e-6):
            change = numpy_grn(at + step, weight, bias) - numpy_grn(at - step, weight, bias)
            expected[i] = (change * upstream).sum() / 2e-6
        assert_close(gradient.reshape(-1), expected)

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

    @pytest.mark.parametrize("act", ["gelu", "relu"])
    def test_a_black_image_has_a_finite_gradient(self, act):
        # zero biases and black pixels: every activation is zero, in every block. Not in float16, where the norms' small
        # eps makes a gradient too large, as in PyTorch
        model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, hidden_act=act))
        black = mx.zeros((2, 32, 32, 3))
        _, gradients = nn.value_and_grad(model, lambda: model(black, labels=mx.array([0, 0])).loss)()
        for name, gradient in tree_flatten(gradients):
            assert mx.isfinite(gradient).all(), name
        assert gradients["convnextv2"]["embeddings"]["patch_embeddings"]["bias"].any()


class TestLayerNorm:
    # numbers of about the size that eps decides about: their variance is 1e-6
    X = np.where(np.arange(8) % 2, 1e-3, -1e-3)

    def expected(self, eps: float) -> np.ndarray:
        return self.X / math.sqrt(1e-6 + eps)

    def test_its_eps_is_1e_6(self):
        assert_close(ConvNextV2LayerNorm(8)(mx.array(self.X.astype(np.float32))), self.expected(1e-6))

    @pytest.mark.parametrize("eps", [1e-12, 1e-3])
    def test_layer_norm_eps_is_the_last_norms_alone(self, eps):
        config = ConvNextV2Config(hidden_sizes=[8] * 4, depths=[1] * 4, layer_norm_eps=eps)
        norms = {
            name: module
            for model in (ConvNextV2Model(config), ConvNextV2Backbone(config))
            for name, module in model.named_modules()
            if isinstance(module, nn.LayerNorm)
        }
        assert len(norms) == 10  # stem, three before downsampling, four blocks, the last one, the backbone's own
        for name, norm in norms.items():
            assert_close(norm(mx.array(self.X.astype(np.float32))), self.expected(eps if name == "layernorm" else 1e-6))

    def test_a_small_last_eps_survives_half_precision(self):
        model = ConvNextV2Model(ConvNextV2Config(hidden_sizes=[8], depths=[0], num_stages=1))
        model.set_dtype(mx.float16)
        assert_close(model.layernorm(mx.array(self.X, mx.float16)), self.expected(1e-12), 1e-3)


def gelu(x: float) -> float:
    return x * 0.5 * math.erfc(-x / math.sqrt(2))


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def selu(x: float) -> float:
    # the two constants as the paper's authors published them (arXiv:1706.02515)
    return 1.0507009873554804934193349852946 * (x if x > 0 else 1.6732632423543772848170429916717 * math.expm1(x))


FORMULAS = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": lambda x: max(x, 0.0),
    "silu": silu,
    "swish": silu,
    "selu": selu,
}


class TestActivations:
    @pytest.mark.parametrize("name", FORMULAS)
    def test_it_is_its_formula(self, name):
        x = np.concatenate([np.linspace(-12, 12, 4001), [-100, -40, 40, 100, 0, 1e-6, -1e-6]]).astype(np.float32)
        expected = np.array([FORMULAS[name](float(value)) for value in x])
        difference = np.abs(np.array(ACT2FN[name](mx.array(x)), np.float64) - expected)
        # float32 keeps 6e-8 of a number; between 1 and 12 a few of those
        assert (difference <= 5e-7 * np.maximum(np.abs(x), 1)).all()

    @pytest.mark.parametrize("name", FORMULAS)
    @pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
    def test_half_precision_keeps_its_dtype_and_stays_finite(self, name, dtype):
        # up to 200, whose cube is beyond float16
        x = mx.linspace(-200, 200, 801).astype(dtype)
        expected = np.array([FORMULAS[name](value) for value in x.astype(mx.float32).tolist()])
        y = ACT2FN[name](x)
        assert y.dtype == dtype
        difference = np.abs(np.array(y.astype(mx.float32)) - expected)
        # the inner steps round too: a few units in the last place of the input
        assert (difference <= 4 * UNIT_ROUNDOFF[dtype] * np.maximum(np.abs(np.array(x.astype(mx.float32))), 1)).all()

    def test_every_activation_of_the_configuration_is_tested_here(self):
        assert set(FORMULAS) == set(ACT2FN)


class TestLoss:
    LOGITS = np.random.RandomState(6).standard_normal((5, 7)).astype(np.float32) * 3

    @staticmethod
    def cross_entropy(logits: np.ndarray, labels: list[int]) -> float:
        logits = logits.astype(np.float64)
        log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.mean([log_probabilities[i, label] for i, label in enumerate(labels) if label != -100])

    @staticmethod
    def binary_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-logits.astype(np.float64)))
        return -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean()

    @pytest.mark.parametrize("labels", [[3, 0, 6, 6, 1], [3, -100, 6, -100, 1]], ids=["all", "two ignored"])
    @pytest.mark.parametrize("dtype", [mx.int32, mx.int64, mx.int8], ids=str)
    @pytest.mark.parametrize("shape", [(5,), (5, 1)])
    @pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
    def test_integers_mean_cross_entropy(self, labels, dtype, shape, problem_type):
        loss = classification_loss(mx.array(self.LOGITS), mx.array(labels, dtype).reshape(shape), problem_type)
        assert loss.shape == ()
        assert loss.item() == pytest.approx(self.cross_entropy(self.LOGITS, labels), rel=1e-6)

    @pytest.mark.parametrize("dtype", [mx.uint32, mx.uint8, mx.uint64], ids=str)
    def test_unsigned_integers_mean_cross_entropy(self, dtype):
        # what mx.argmax gives is unsigned
        loss = classification_loss(mx.array(self.LOGITS), mx.array([3, 0, 6, 6, 1], dtype))
        assert loss.item() == pytest.approx(self.cross_entropy(self.LOGITS, [3, 0, 6, 6, 1]), rel=1e-6)

    def test_an_ignored_sample_has_no_gradient(self):
        labels = mx.array([3, -100, 6, -100, 1])
        gradient = np.array(mx.grad(lambda logits: classification_loss(logits, labels))(mx.array(self.LOGITS)))
        exponents = np.exp(self.LOGITS.astype(np.float64))
        expected = exponents / exponents.sum(-1, keepdims=True)
        expected[[0, 2, 4], [3, 6, 1]] -= 1
        expected[[1, 3]] = 0
        assert_close(mx.array(gradient), expected / 3)

    @pytest.mark.parametrize("shape", [(5,), (5, 1)])
    @pytest.mark.parametrize("problem_type", [None, "regression"])
    @pytest.mark.parametrize("dtype", [np.float32, np.int32])
    def test_one_label_means_squared_error(self, shape, problem_type, dtype):
        targets = np.array([1, -2, 3, 0, 5], dtype)
        loss = classification_loss(mx.array(self.LOGITS[:, :1]), mx.array(targets.reshape(shape)), problem_type)
        expected = ((self.LOGITS[:, 0].astype(np.float64) - targets) ** 2).mean()
        assert loss.item() == pytest.approx(expected, rel=1e-6)

    def test_regression_of_several_targets_is_squared_error(self):
        targets = np.array(images(5, 7, seed=7))
        loss = classification_loss(mx.array(self.LOGITS), mx.array(targets), "regression")
        assert loss.item() == pytest.approx(((self.LOGITS.astype(np.float64) - targets) ** 2).mean(), rel=1e-6)

    @pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
    def test_floats_mean_binary_cross_entropy(self, problem_type):
        labels = np.random.RandomState(8).randint(0, 2, (5, 7)).astype(np.float32)
        loss = classification_loss(mx.array(self.LOGITS), mx.array(labels), problem_type)
        assert loss.item() == pytest.approx(self.binary_cross_entropy(self.LOGITS, labels), rel=1e-6)

    def test_binary_cross_entropy_of_a_large_logit_is_finite(self):
        loss = classification_loss(mx.array([[200.0, -200.0]]), mx.array([[0.0, 1.0]]))
        assert loss.item() == pytest.approx(200, rel=1e-6)

    def test_half_precision_logits_give_a_float32_loss(self):
        logits = mx.array(self.LOGITS, mx.float16)
        loss = classification_loss(logits, mx.array([3, 0, 6, 6, 1]))
        assert loss.dtype == mx.float32
        expected = self.cross_entropy(np.array(logits), [3, 0, 6, 6, 1])
        assert loss.item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("problem_type", [None, "multi_label_classification", "regression"])
    def test_the_model_takes_the_problem_from_its_configuration(self, problem_type):
        labels = mx.array(np.random.RandomState(8).randint(0, 2, (2, 7)).astype(np.float32))
        model = build(num_labels=7, problem_type=problem_type)
        outputs = model(images(2, 32, 32, 3), labels=labels)
        logits = np.array(outputs.logits, np.float64)
        expected = self.binary_cross_entropy(logits, np.array(labels))
        if problem_type == "regression":
            expected = ((logits - np.array(labels)) ** 2).mean()
        assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)
        assert model.config.problem_type == problem_type  # inferring it does not fix it for the next call

    @pytest.mark.parametrize(
        ("labels", "problem_type"),
        [
            (mx.array([0, 1, 2]), None),
            (mx.zeros((5, 7), mx.int32), None),
            (mx.array(3), None),
            (mx.zeros((5,)), None),
            (mx.zeros((5, 6)), None),
            (mx.zeros((7, 5)), None),
            (mx.zeros((35,)), None),
            (mx.zeros((7, 5)), "regression"),
            (mx.zeros((5,)), "regression"),
            (mx.zeros((5,)), "single_label_classification"),  # classes are whole numbers
        ],
        ids=lambda value: f"{value.dtype} {value.shape}" if isinstance(value, mx.array) else str(value),
    )
    def test_labels_that_do_not_fit_are_an_error_that_names_the_expected_shape(self, labels, problem_type):
        with pytest.raises(ValueError, match="labels must"):
            mx.eval(classification_loss(mx.array(self.LOGITS), labels, problem_type))

    @pytest.mark.parametrize("label", [7, 1000, -1, -7])
    def test_a_class_that_does_not_exist_is_an_error_that_names_it(self, label):
        with pytest.raises(ValueError, match=rf"classes from 0 to 6.* not {label}$"):
            classification_loss(mx.array(self.LOGITS), mx.array([0, label, 1, 2, 3]))

    def test_a_class_that_does_not_exist_is_nan_where_the_loss_is_compiled(self):
        loss = mx.compile(classification_loss)(mx.array(self.LOGITS), mx.array([0, 7, 1, 2, 3]))
        assert math.isnan(loss.item())


class TestHalfPrecision:
    @pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
    @pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu", "silu", "selu"])
    def test_it_stays_close_to_float32(self, dtype, act):
        pixel_values = images(2, 41, 64, 3)
        whole, half = build(num_labels=7, hidden_act=act), build(num_labels=7, hidden_act=act)
        half.set_dtype(dtype)
        expected = whole(pixel_values, output_hidden_states=True)
        outputs = half(pixel_values, output_hidden_states=True)
        # some ten roundings in each of five blocks, which add up like a random walk: six units were measured
        tolerance = 12 * UNIT_ROUNDOFF[dtype]
        for ours, theirs in zip(outputs.hidden_states, expected.hidden_states, strict=True):
            assert ours.dtype == dtype
            assert_close(ours, theirs, tolerance)
        assert outputs.logits.dtype == dtype
        assert_close(outputs.logits, expected.logits, tolerance)

    @pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
    @pytest.mark.parametrize("pixels", [mx.float32, mx.float16, mx.bfloat16], ids=str)
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


class TestBackbone:
    def test_it_returns_the_last_stage_by_default(self):
        backbone = build(ConvNextV2Backbone)
        assert (backbone.out_features, backbone.out_indices, backbone.channels) == (["stage4"], [4], [33])
        assert [feature_map.shape for feature_map in backbone(images(2, 32, 40, 3)).feature_maps] == [(2, 1, 1, 33)]

    @pytest.mark.parametrize(
        ("config", "features", "channels"),
        [
            ({"out_features": ["stem", "stage2", "stage3"]}, ["stem", "stage2", "stage3"], [8, 12, 20]),
            ({"out_indices": [1, 4]}, ["stage1", "stage4"], [8, 33]),
            ({"out_indices": [-4, -2]}, ["stage1", "stage3"], [8, 20]),
            ({"out_indices": [0, 1, 2, 3, 4]}, ["stem", "stage1", "stage2", "stage3", "stage4"], [8, 8, 12, 20, 33]),
            ({"out_features": []}, [], []),
        ],
        ids=str,
    )
    def test_it_returns_the_stages_asked_for_each_through_its_own_norm(self, config, features, channels):
        backbone = build(ConvNextV2Backbone, **config)
        assert backbone.out_features == features
        assert backbone.channels == channels
        assert list(backbone.hidden_states_norms) == features
        outputs = backbone(images(1, 64, 40, 3), output_hidden_states=True)
        assert len(outputs.feature_maps) == len(features)
        for name, feature_map in zip(features, outputs.feature_maps, strict=True):
            x = np.array(outputs.hidden_states[backbone.stage_names.index(name)], np.float64)
            normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            norm = backbone.hidden_states_norms[name]
            assert_close(feature_map, normed * np.array(norm.weight) + np.array(norm.bias))

    def test_it_tells_the_channels_of_every_stage(self):
        backbone = build(ConvNextV2Backbone)
        assert backbone.stage_names == ["stem", "stage1", "stage2", "stage3", "stage4"]
        assert backbone.num_features == [8, 8, 12, 20, 33]
        assert backbone.out_feature_channels == {"stem": 8, "stage1": 8, "stage2": 12, "stage3": 20, "stage4": 33}

    def test_its_hidden_states_are_the_models(self):
        pixel_values, model = images(1, 50, 37, 3), build(ConvNextV2Model)
        backbone = ConvNextV2Backbone(ConvNextV2Config(**SMALL)).eval()
        backbone.update({"embeddings": model.embeddings.parameters(), "encoder": model.encoder.parameters()})
        expected = model(pixel_values, output_hidden_states=True).hidden_states
        for ours, theirs in zip(backbone(pixel_values, output_hidden_states=True).hidden_states, expected, strict=True):
            assert (ours == theirs).all()


class TestFuse:
    @pytest.mark.parametrize(
        ("config", "shape"),
        [
            ({}, (2, 32, 32, 3)),
            ({"num_labels": 0}, (1, 45, 67, 3)),
            ({"return_dict": False, "output_hidden_states": True}, (1, 32, 32, 3)),
            ({"drop_path_rate": 0.9, "hidden_act": "selu"}, (8, 32, 32, 3)),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("training", [False, True])
    def test_it_equals_the_model_in_inference_mode(self, config, shape, training):
        model, pixel_values = build(**config), images(*shape)
        expected = model(pixel_values, return_dict=True).logits
        model.train(training)
        predict = fuse(model)
        assert_close(predict(pixel_values), expected)
        assert_close(
            predict(pixel_values[:1, :, ::-1]), model.eval()(pixel_values[:1, :, ::-1], return_dict=True).logits
        )

    @pytest.mark.parametrize("path", [None, "plain", "numpy"])
    def test_a_model_without_a_classifier_gives_its_pooled_output(self, path):
        model, pixel_values = build(), images(2, 40, 36, 3)
        embed = fuse(model.convnextv2, path)
        assert_close(embed(pixel_values), model.convnextv2(pixel_values).pooler_output)
        assert mx.array_equal(embed(pixel_values), fuse(model, path, pooled=True)(pixel_values))

    @pytest.mark.parametrize("training", [False, True])
    def test_the_models_mode_is_what_it_was(self, training):
        model = build().train(training)
        predict = fuse(model)
        mx.eval(predict(images(1, 32, 32, 3)))
        assert {module.training for module in model.modules()} == {training}
        with pytest.raises(ValueError, match="channels-first"):
            predict(images(1, 3, 32, 32))
        assert {module.training for module in model.modules()} == {training}

    @pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
    def test_half_precision_equals_the_model(self, dtype):
        model, pixel_values = build(), images(2, 40, 32, 3)
        model.set_dtype(dtype)
        predicted = fuse(model)(pixel_values)
        assert predicted.dtype == dtype
        assert_close(predicted, model(pixel_values).logits.astype(mx.float32), 12 * UNIT_ROUNDOFF[dtype])


def test_inputs_that_are_no_mlx_arrays_are_named(small_model):
    pixels = np.zeros((1, 32, 32, 3), np.float32)
    with pytest.raises(TypeError, match=r"pixel_values must be an mx\.array, not ndarray"):
        small_model(pixels)
    with pytest.raises(TypeError, match=r"labels must be an mx\.array, not list"):
        small_model(mx.array(pixels), labels=[1])
