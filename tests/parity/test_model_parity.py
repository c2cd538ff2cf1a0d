"""The model beside transformers, on the same random weights: the eight sizes, and random configurations.

`pytest tests/parity/test_model_parity.py -m parity -s -k Sizes` prints the relative errors as a table.
"""

from __future__ import annotations

import gc
import json
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hypothesis import given, settings, strategies as st
from make_goldens import CASES, GOLDENS, compute, labels, loss_and_gradients, trained_parameters
from reference import THEIRS, images, nchw, pair, randomize, relative_error, their_config, to_mlx

from mlx_convnextv2 import ConvNextV2Backbone, ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2Model
from mlx_convnextv2.model.config import ACTIVATIONS, PROBLEM_TYPES, SIZES

pytestmark = pytest.mark.parity

TOLERANCE = {**dict.fromkeys(SIZES, 1e-5), "huge": 2e-5}
ODD = (2, 75, 101, 3)  # neither square nor divisible, at any of the stages: 18 x 25, 9 x 12, 4 x 6, 2 x 3


def run_both(theirs, ours, pixel_values: np.ndarray, **arguments) -> tuple:
    """(theirs, ours): the outputs for the same pixels, hidden states included."""
    with torch.no_grad():
        expected = theirs(nchw(pixel_values), output_hidden_states=True, **arguments)
    return expected, ours(mx.array(pixel_values), output_hidden_states=True, **arguments)


def errors(ours, theirs) -> list[float]:
    """The relative error of each of several arrays."""
    return [relative_error(*arrays) for arrays in zip(ours, theirs, strict=True)]


class Watched(nn.Module):
    """A head that remembers what it was given: the pooled output, without another pass."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def __call__(self, x: mx.array) -> mx.array:
        self.seen = x
        return self.head(x)


def run_both_classifiers(theirs, ours, pixel_values: np.ndarray) -> dict[str, float]:
    """The relative errors of logits, pooled output and the worst hidden state, of one pass each."""
    seen = []
    hook = theirs.classifier.register_forward_hook(lambda head, inputs, output: seen.append(inputs[0]))
    head, ours.classifier = ours.classifier, Watched(ours.classifier)
    expected, outputs = run_both(theirs, ours, pixel_values)
    pooled, ours.classifier = ours.classifier.seen, head
    hook.remove()
    return {
        "logits": relative_error(outputs.logits, expected.logits),
        "pooled": relative_error(pooled, seen[0]),
        "worst hidden state": max(errors(outputs.hidden_states, expected.hidden_states)),
    }


def run_both_backbones(theirs, ours, pixel_values: np.ndarray) -> dict[str, float]:
    """The relative error of the worst feature map, of backbones that return all and share the classifiers' weights."""
    everything = {"out_features": ours.config.stage_names, "out_indices": None}
    config = ConvNextV2Config.from_dict({**ours.config.to_dict(), **everything})
    their_backbone = THEIRS[ConvNextV2Backbone](their_config(config)).eval().requires_grad_(False)
    randomize(their_backbone.hidden_states_norms, seed=1)
    norms = {name: norm for name, norm in their_backbone.state_dict().items() if name.startswith("hidden_states_norms")}
    shared = theirs.convnextv2.state_dict()
    del shared["layernorm.weight"], shared["layernorm.bias"]
    their_backbone.load_state_dict({**shared, **norms}, assign=True)
    our_backbone = ConvNextV2Backbone(config).eval()
    our_backbone.update({name: getattr(ours.convnextv2, name).parameters() for name in ("embeddings", "encoder")})
    our_backbone.load_weights([(name, to_mlx(name, norm)) for name, norm in norms.items()], strict=False)
    expected, outputs = run_both(their_backbone, our_backbone, pixel_values)
    assert len(outputs.feature_maps) == len(config.stage_names)
    return {"worst feature map": max(errors(outputs.feature_maps, expected.feature_maps))}


COLUMNS = ("logits", "pooled", "worst hidden state", "worst feature map")


@pytest.fixture(
    scope="class",
    params=[pytest.param(size, marks=pytest.mark.slow if size in ("large", "huge") else ()) for size in SIZES],
)
def models(request):
    """Both classifiers of a size with the same random weights; of the largest no more than one at a time."""
    theirs, ours = pair(ConvNextV2ForImageClassification, ConvNextV2Config.from_size(request.param))
    models = SimpleNamespace(theirs=theirs, ours=ours, tolerance=TOLERANCE[request.param], row={})
    yield models
    columns = " | ".join(f"{models.row.get(name, float('nan')):.1e}" for name in COLUMNS)
    print(f"\n| {request.param} | {columns} |")
    models.__dict__.clear()
    del theirs, ours
    gc.collect()
    mx.clear_cache()


@pytest.mark.xdist_group("large models")  # which fit into memory one at a time
class TestSizes:
    def test_logits_pooled_output_and_hidden_states_at_224(self, models):
        measured = run_both_classifiers(models.theirs, models.ours, images(1, 224, 224, 3))
        models.row.update(measured)
        assert max(measured.values()) <= models.tolerance, measured

    def test_feature_maps_at_224(self, models):
        measured = run_both_backbones(models.theirs, models.ours, images(1, 224, 224, 3))
        models.row.update(measured)
        assert max(measured.values()) <= models.tolerance, measured

    def test_an_odd_size(self, models):
        measured = run_both_classifiers(models.theirs, models.ours, images(*ODD))
        measured |= run_both_backbones(models.theirs, models.ours, images(*ODD))
        assert max(measured.values()) <= models.tolerance, measured

    def test_the_loss_and_its_gradients(self, models):
        """Of cross-entropy: the other losses are those of test_any_configuration_and_image_size."""
        problem_type = "single_label_classification"
        assert_same_loss_and_gradients(models.theirs, models.ours, images(*ODD), problem_type, models.tolerance)


def assert_same_loss_and_gradients(theirs, ours, pixel_values, problem_type, tolerance=1e-5) -> None:
    targets = labels(problem_type, len(pixel_values), ours.config.num_labels)
    names = trained_parameters(ours)
    theirs.config.problem_type = ours.config.problem_type = problem_type
    theirs_own = [theirs.get_parameter(name).requires_grad_() for name in names]
    expected = theirs(nchw(pixel_values), labels=torch.tensor(targets)).loss
    expected_gradients = torch.autograd.grad(expected, theirs_own)
    loss, gradients = loss_and_gradients(ours, mx.array(pixel_values), mx.array(targets), names)
    assert relative_error(loss, expected) <= tolerance
    for name, gradient, expected_gradient in zip(names, gradients, expected_gradients, strict=True):
        expected_array = np.array(to_mlx(name, expected_gradient))
        difference = np.abs(np.array(gradient) - expected_array).max()
        assert difference <= tolerance * np.abs(expected_array).max(), name


def test_gradients_at_224():
    theirs, ours = pair(ConvNextV2ForImageClassification, ConvNextV2Config.from_size("atto"))
    assert_same_loss_and_gradients(theirs, ours, images(1, 224, 224, 3), "single_label_classification")


@st.composite
def models_and_images(draw) -> tuple[ConvNextV2Config, tuple[int, ...]]:
    """A small configuration of any kind, and the shape of images that it takes."""
    num_stages = draw(st.integers(1, 5))
    config = ConvNextV2Config(
        num_stages=num_stages,
        hidden_sizes=draw(st.lists(st.integers(3, 40), min_size=num_stages, max_size=num_stages)),
        depths=draw(st.lists(st.integers(0, 2), min_size=num_stages, max_size=num_stages)),
        patch_size=draw(st.integers(1, 5) | st.lists(st.integers(1, 5), min_size=2, max_size=2)),
        num_channels=draw(st.integers(1, 5)),
        hidden_act=draw(st.sampled_from(ACTIVATIONS)),
        layer_norm_eps=draw(st.sampled_from([1e-12, 1e-6, 1e-2])),
        num_labels=draw(st.integers(0, 6)),
    )
    height, width = (side + draw(st.integers(0, 40)) for side in config.min_image_shape)
    return config, (draw(st.integers(1, 3)), height, width, config.num_channels)


# derandomize: a failure in somebody else's change would be no help to them
@settings(max_examples=30, deadline=None, derandomize=True)
@given(drawn=models_and_images())
def test_any_configuration_and_image_size(drawn):
    config, shape = drawn
    theirs, ours = pair(ConvNextV2ForImageClassification, config)
    measured = run_both_classifiers(theirs, ours, images(*shape)) | run_both_backbones(theirs, ours, images(*shape))
    assert max(measured.values()) <= 1e-5, measured
    if config.num_labels > 1 and any(config.depths):
        for problem_type in PROBLEM_TYPES:
            assert_same_loss_and_gradients(theirs, ours, images(*shape), problem_type)


@pytest.mark.parametrize("num_labels", [1, 3])
@pytest.mark.parametrize("kind", ["integers", "floats"])
def test_the_kind_of_loss_is_inferred_alike(num_labels, kind):
    config = ConvNextV2Config(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2, num_labels=num_labels)
    theirs, ours = pair(ConvNextV2ForImageClassification, config)
    targets = np.array([2, 0, 1]) if kind == "integers" else labels("multi_label_classification", 3, num_labels)
    targets = targets.astype(np.float32) if num_labels == 1 else targets  # PyTorch's squared error takes floats only
    expected = theirs(nchw(images(3, 19, 16, 3)), labels=torch.tensor(targets))
    assert relative_error(ours(mx.array(images(3, 19, 16, 3)), labels=mx.array(targets)).loss, expected.loss) <= 1e-5


def test_drop_path_rates_are_the_same():
    config = ConvNextV2Config(hidden_sizes=[4] * 4, depths=[2, 0, 3, 1], drop_path_rate=0.3)
    rates = [
        [getattr(layer.drop_path, "drop_prob", 0.0) for stage in model.encoder.stages for layer in stage.layers]
        for model in pair(ConvNextV2Model, config)
    ]
    assert rates[1] == pytest.approx(rates[0], abs=1e-7)
    assert rates[0][-1] == pytest.approx(0.3)


@pytest.mark.parametrize("name", [name for name in CASES if name not in SIZES])
def test_the_stored_goldens_are_what_transformers_gives(name):
    stored = json.loads(GOLDENS.read_text(encoding="utf-8"))[name]["expected"]
    assert_nearly_equal(compute(CASES[name]), stored)


def assert_nearly_equal(ours, stored) -> None:
    """Equal to the last digit or so that the file has, however deep the numbers lie."""
    if isinstance(stored, dict):
        assert ours.keys() == stored.keys()
        for key in stored:
            assert_nearly_equal(ours[key], stored[key])
    elif isinstance(stored, list) and stored and isinstance(stored[0], dict):
        for values in zip(ours, stored, strict=True):
            assert_nearly_equal(*values)
    else:
        assert ours == pytest.approx(stored, rel=1e-6, abs=1e-12)
