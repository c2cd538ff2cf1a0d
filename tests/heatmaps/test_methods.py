"""The maps say what they claim to: the exact one sums to the score, the others are gradients of it."""

import mlx.core as mx
import numpy as np
import pytest
from conftest import parameters

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, fuse
from mlx_convnextv2.heatmaps import explain
from mlx_convnextv2.heatmaps.frozen import FrozenNorms, frozen_head, frozen_stages
from mlx_convnextv2.heatmaps.methods import explain_scores
from mlx_convnextv2.model.config import SIZES
from mlx_convnextv2.model.layers import no_init_weights
from mlx_convnextv2.model.quantization import quantize

LARGE = ("pico", "nano", "tiny", "base", "large", "huge")


@pytest.fixture(scope="module")
def pixel_values():
    return mx.array(np.random.RandomState(3).standard_normal((3, 64, 96, 3)).astype(np.float32))


def as_numpy(array):
    return np.array(array.astype(mx.float32))


def test_an_exact_map_sums_to_the_logit_less_the_mean(small_model, pixel_values):
    maps = as_numpy(explain(small_model, pixel_values, 4))
    logits = as_numpy(small_model(pixel_values).logits)
    assert maps.shape == (3, 2, 3)
    assert np.abs(maps.sum(axis=(1, 2)) - (logits[:, 4] - logits.mean(axis=1))).max() <= 1e-5 * np.abs(logits).max()


@pytest.mark.parametrize(("against", "less"), [(None, lambda logits: 0), (2, lambda logits: logits[:, 2])])
def test_an_exact_map_sums_to_the_logit_less_what_it_is_compared_with(small_model, pixel_values, against, less):
    maps = as_numpy(explain(small_model, pixel_values, 4, against=against))
    logits = as_numpy(small_model(pixel_values).logits)
    assert np.abs(maps.sum(axis=(1, 2)) - (logits[:, 4] - less(logits))).max() <= 1e-5 * np.abs(logits).max()


def cheap_weights(model):
    """Random weights that keep activations in bounds, a million of them repeated: drawing them all takes long."""
    block = np.random.RandomState(0).standard_normal(1_000_003).astype(np.float32)
    for name, array in parameters(model).items():
        values = np.resize(block, array.shape)
        is_scale = name.endswith("norm.weight") or ".0.weight" in name
        values = (
            1 + 0.2 * values if is_scale else values * (np.prod(array.shape[1:]) ** -0.5 if array.ndim > 1 else 0.2)
        )
        yield name, mx.array(values.astype(np.float32))


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=pytest.mark.slow) if size in LARGE else size for size in SIZES]
)
def test_an_exact_map_sums_to_the_score_for_every_size(size):
    with no_init_weights():
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
        model.eval()
    model.load_weights(list(cheap_weights(model)))
    pixel_values = mx.array(np.random.RandomState(1).standard_normal((1, 32, 64, 3)).astype(np.float32))
    maps, logits = as_numpy(explain(model, pixel_values, 7)), as_numpy(fuse(model)(pixel_values))
    assert maps.shape == (1, 1, 2)
    assert abs(maps.sum() - (logits[0, 7] - logits[0].mean())) <= 1e-5 * np.abs(logits).max()
    assert maps.std() > 0


@pytest.mark.parametrize("layer", ["stem", "stage1", "stage2", "stage3", "stage4"])
@pytest.mark.parametrize("method", ["hirescam", "gradcam"])
def test_a_map_has_the_layers_shape_and_the_same_logits(small_model, pixel_values, layer, method):
    maps, logits, _ = explain_scores(small_model, pixel_values, layer=layer, method=method)
    stride = {"stem": 4, "stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}[layer]
    assert maps.shape == (3, 64 // stride, 96 // stride)
    expected = as_numpy(small_model(pixel_values).logits)
    assert np.abs(as_numpy(logits) - expected).max() <= 1e-5 * np.abs(expected).max()
    assert method == "hirescam" or as_numpy(maps).min() >= 0


def frozen_score(model, stage, pixel_values, label):
    """The hidden states of a stage, and the score as a function of them, its norms frozen at these; in inference."""
    hidden_states = model(pixel_values, output_hidden_states=True).hidden_states[stage]
    norms = FrozenNorms()

    def score(hidden_states):
        logits = frozen_head(model, frozen_stages(model.convnextv2, hidden_states, stage, norms), norms).mean((1, 2))
        return (logits[:, label] - logits.mean(axis=-1)).item()

    score(hidden_states)
    return np.array(hidden_states), lambda values: score(mx.array(values))


def slope(function, step=1e-2):
    """The derivative at 0 by differences of fourth order."""
    near, far = ((function(size * step) - function(-size * step)) for size in (1, 2))
    return (8 * near - far) / (12 * step)


@pytest.mark.parametrize(("stage", "step"), [(0, 1e-2), (1, 1e-2), (3, 2e-3)])  # the last one's curve is sharper
def test_hirescam_is_what_scaling_a_position_changes(small_model, pixel_values, stage, step):
    pixel_values = pixel_values[:1, :32, :32]
    layer = small_model.config.stage_names[stage]
    maps = as_numpy(explain(small_model, pixel_values, 5, layer=layer, method="hirescam"))[0]
    hidden_states, score = frozen_score(small_model, stage, pixel_values, 5)
    for place in [(0, 0, 0), (0, 1, 1), (0, maps.shape[0] - 1, 0)]:
        direction = np.zeros_like(hidden_states)
        direction[place] = hidden_states[place]
        changes = slope(lambda step, direction=direction: score(hidden_states + step * direction), step)
        assert abs(changes - maps[place[1:]]) <= 3e-3 * np.abs(maps).max()


def test_gradcam_weighs_channels_by_what_raising_them_changes(small_model, pixel_values):
    pixel_values = pixel_values[:1, :32, :32]
    maps = as_numpy(explain(small_model, pixel_values, 5, layer="stage2", method="gradcam"))[0]
    hidden_states, score = frozen_score(small_model, 2, pixel_values, 5)
    channels = np.eye(hidden_states.shape[-1], dtype=np.float32)
    changes = [slope(lambda step, one=one: score(hidden_states + step * one)) for one in channels]
    weights = np.array(changes) / (hidden_states.shape[1] * hidden_states.shape[2])
    expected = np.maximum(hidden_states[0] @ weights, 0)
    assert expected.max() > 0
    assert np.abs(maps - expected).max() <= 3e-3 * expected.max()


def test_without_frozen_norms_the_products_would_vanish(small_model, pixel_values):
    """Why they are frozen: with the norms as they are, hidden state times gradient sums to nothing."""
    hidden_states = small_model(pixel_values, output_hidden_states=True).hidden_states[-1]

    def score(hidden_states):
        return small_model.classifier(small_model.convnextv2.pool(hidden_states))[:, 5].sum()

    plain = (hidden_states * mx.grad(score)(hidden_states)).sum(axis=-1)
    frozen = explain(small_model, pixel_values, 5, against=None, method="hirescam", layer="stage4")
    assert np.abs(as_numpy(plain.sum(axis=(1, 2)))).max() <= 1e-4 * np.abs(as_numpy(frozen)).max()
    assert np.abs(as_numpy(frozen.sum(axis=(1, 2)))).min() > 1e-2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_explains_its_own_logits(dtype, pixel_values):
    model = ConvNextV2ForImageClassification(ConvNextV2Config(hidden_sizes=[8, 12, 20, 33], depths=[1] * 4))
    model.eval()
    model.set_dtype(getattr(mx, dtype))
    maps = as_numpy(explain(model, pixel_values, 1))
    logits = as_numpy(model(pixel_values).logits)
    rounding = {"float16": 1e-2, "bfloat16": 5e-2}[dtype]
    assert maps.dtype == np.float32
    assert np.abs(maps.sum(axis=(1, 2)) - (logits[:, 1] - logits.mean(axis=1))).max() <= rounding * np.abs(logits).max()


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_a_quantized_model_explains_its_own_logits(mode, pixel_values):
    config = ConvNextV2Config(hidden_sizes=[32, 32, 64, 64], depths=[1] * 4, num_labels=5)
    model = ConvNextV2ForImageClassification(config)
    model.eval()
    quantize(model, mode=mode)
    maps, logits = as_numpy(explain(model, pixel_values, 1)), as_numpy(model(pixel_values).logits)
    assert np.abs(maps.sum(axis=(1, 2)) - (logits[:, 1] - logits.mean(axis=1))).max() <= 1e-5 * np.abs(logits).max()
    assert np.isfinite(as_numpy(explain(model, pixel_values, 1, layer="stage2"))).all()


def test_a_model_in_training_mode_gives_the_same_maps(small_model, pixel_values):
    config = ConvNextV2Config(hidden_sizes=[8, 12, 20, 33], depths=[1, 2, 1, 1], num_labels=7, drop_path_rate=0.9)
    model = ConvNextV2ForImageClassification(config)
    model.update(small_model.parameters())
    model.train()
    for layer in ("stage4", "stage2"):
        expected, got = explain(small_model, pixel_values, 1, layer=layer), explain(model, pixel_values, 1, layer=layer)
        assert np.array_equal(np.array(expected), np.array(got))


def test_one_score_is_explained_as_it_is(pixel_values):
    config = ConvNextV2Config(hidden_sizes=[8, 12, 20, 33], depths=[1] * 4, num_labels=1)
    model = ConvNextV2ForImageClassification(config)
    model.eval()
    maps, logits = as_numpy(explain(model, pixel_values)), as_numpy(model(pixel_values).logits)
    assert np.abs(maps.sum(axis=(1, 2)) - logits[:, 0]).max() <= 1e-5 * np.abs(logits).max() + 1e-7


def test_each_image_can_have_its_own_labels(small_model, pixel_values):
    together = explain(small_model, pixel_values, [1, "thing 2", 3], against=[0, 0, 6])
    alone = [explain(small_model, pixel_values[i : i + 1], i + 1, against=[0, 0, 6][i])[0] for i in range(3)]
    assert np.abs(np.array(together) - np.stack([np.array(one) for one in alone])).max() <= 1e-5


def test_without_a_label_the_first_is_explained(small_model, pixel_values):
    first = [int(index) for index in np.array(small_model(pixel_values).logits).argmax(axis=1)]
    assert np.array_equal(
        np.array(explain(small_model, pixel_values)), np.array(explain(small_model, pixel_values, first))
    )


def test_what_is_compared_with_the_first_label_is_the_second(small_model, pixel_values):
    order = np.array(small_model(pixel_values).logits).argsort(axis=1)
    _, _, target = explain_scores(small_model, pixel_values, against=order[:, -1].tolist())
    assert target.labels == order[:, -2].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": 7}, "labels 0 to 6, but no 7"),
        ({"label": -1}, "labels 0 to 6, but no -1"),
        ({"label": "thing"}, "did you mean"),
        ({"label": [1, 2]}, "one label for each image, 3 and not 2"),
        ({"label": 1, "against": 1}, "cannot be compared with itself"),
        ({"layer": "stage5"}, "layer must be one of stem, stage1, stage2, stage3, stage4, not 'stage5'"),
        ({"method": "lime"}, "method must be one of exact, hirescam, gradcam"),
        ({"layer": "stage3", "method": "exact"}, "only the last stage, stage4, has an exact map"),
    ],
)
def test_a_wrong_argument_is_a_sentence(small_model, pixel_values, arguments, message):
    with pytest.raises(ValueError, match=message):
        explain(small_model, pixel_values, **arguments)


def test_what_cannot_classify_cannot_be_explained(small_model, pixel_values):
    headless = ConvNextV2ForImageClassification(ConvNextV2Config(hidden_sizes=[8] * 4, depths=[1] * 4, num_labels=0))
    with pytest.raises(ValueError, match="no classification head"):
        explain(headless, pixel_values)
    with pytest.raises(TypeError, match="not of a ConvNextV2Model"):
        explain(small_model.convnextv2, pixel_values)
