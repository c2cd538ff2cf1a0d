"""The model beside transformers without transformers: the committed values that make_goldens.py took from it."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from make_goldens import (
    CASES,
    GOLDENS,
    backbone,
    classifier,
    labels,
    loss_and_gradients,
    pixels,
    places,
    trained_parameters,
)

from mlx_convnextv2.model.config import ACTIVATIONS, PROBLEM_TYPES

STORED = json.loads(GOLDENS.read_text(encoding="utf-8"))
# tiny takes seconds, and is no other code than atto.
NAMES = [pytest.param(name, marks=pytest.mark.slow if name == "tiny" else ()) for name in CASES]
WITH_LOSSES = [name for name, case in CASES.items() if case["losses"]]


def assert_equals(ours: mx.array, golden: dict) -> None:
    """Within 1e-5 of the reference's largest magnitude, which is that of the whole array and not of the samples."""
    assert list(ours.shape) == golden["shape"]
    flat = np.array(ours, np.float64).reshape(-1)
    samples = flat[places(flat.size, len(golden["samples"]))]
    assert np.abs(samples - golden["samples"]).max() <= 1e-5 * golden["largest"]
    assert np.abs(flat).max() == pytest.approx(golden["largest"], rel=1e-5)


def test_the_stored_cases_are_the_scripts():
    assert {name: stored["case"] for name, stored in STORED.items()} == CASES


def test_every_activation_has_a_case():
    assert {case["config"].get("hidden_act", "gelu") for case in CASES.values()} == set(ACTIVATIONS)


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_gives_transformers_numbers(name):
    case, expected = CASES[name], STORED[name]["expected"]
    model, pixel_values = classifier(case["config"]), mx.array(pixels(case["shape"]))
    outputs = model(pixel_values, output_hidden_states=True)
    for ours, golden in zip(outputs.hidden_states or (), expected["hidden_states"], strict=True):
        assert_equals(ours, golden)
    assert len(expected["logits"]["samples"]) == outputs.logits.size
    assert_equals(outputs.logits, expected["logits"])
    assert_equals(model.convnextv2(pixel_values).pooler_output, expected["pooler_output"])


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_gives_transformers_numbers(name):
    case, expected = CASES[name], STORED[name]["expected"]
    outputs = backbone(case["config"])(mx.array(pixels(case["shape"])))
    for ours, golden in zip(outputs.feature_maps, expected["feature_maps"], strict=True):
        assert_equals(ours, golden)


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("name", WITH_LOSSES)
def test_losses_and_gradients_are_transformers(name, problem_type):
    case, expected = CASES[name], STORED[name]["expected"]["losses"][problem_type]
    model = classifier({**case["config"], "problem_type": problem_type})
    targets = mx.array(labels(problem_type, case["shape"][0], case["config"]["num_labels"]))
    names = trained_parameters(model)
    assert list(expected["gradients"]) == names
    loss, gradients = loss_and_gradients(model, mx.array(pixels(case["shape"])), targets, names)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    for gradient, golden in zip(gradients, expected["gradients"].values(), strict=True):
        assert_equals(gradient, golden)
