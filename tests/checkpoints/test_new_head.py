"""load(source, labels=[...]): a new head for one's own classes, the rest as it is, and that is said."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_files import as_original, assert_same_weights, change, parameters
from conftest import SMALL, randomize
from safetensors.numpy import save_file

from mlx_convnextv2 import (
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    ImageClassifier,
    load,
    save,
)
from mlx_convnextv2.model.quantization import quantize

LABELS = ["cat", "dog", "bird"]


def load_new(source: Path, labels: list[str] = LABELS, **options: Any) -> ConvNextV2ForImageClassification:
    with pytest.warns(UserWarning, match="is new, with random weights"):
        return load(source, labels=labels, **options)[0]


@pytest.mark.parametrize("layout", ["mlx_folder", "hf_folder"])
def test_the_head_is_new_and_the_rest_is_the_checkpoints(layout, request, small_model, tmp_path, photo):
    folder = request.getfixturevalue(layout)
    with pytest.warns(UserWarning, match="is left out") as said:
        model, processor = load(folder, labels=LABELS)
    assert [str(warning.message) for warning in said] == [
        f"{folder}: the head for 7 classes is left out, and the one for 3 is new, with random weights: train it"
    ]
    assert_same_weights(model.convnextv2, small_model.convnextv2)
    assert model.classifier.weight.shape == (3, SMALL["hidden_sizes"][-1])
    assert not model.classifier.bias.any()
    assert processor.size == {"shortest_edge": 32}
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "bird"}
    assert model.config.label2id == {"cat": 0, "dog": 1, "bird": 2}
    save(model, tmp_path / "saved", processor)
    assert load(tmp_path / "saved")[0].config.label2id == model.config.label2id
    assert {p["label"] for p in ImageClassifier(tmp_path / "saved")(photo)} == set(LABELS)


def test_the_head_is_drawn_as_transformers_draws_it_and_by_the_seed(hf_folder):
    labels = [f"class {i}" for i in range(500)]
    mx.random.seed(1)
    first = np.array(load_new(hf_folder, labels).classifier.weight)
    assert abs(first.mean()) < 1e-3
    assert first.std() == pytest.approx(0.02, rel=0.05)
    mx.random.seed(1)
    np.testing.assert_array_equal(np.array(load_new(hf_folder, labels).classifier.weight), first)
    assert (np.array(load_new(hf_folder, labels).classifier.weight) != first).any()


def test_the_head_has_the_dtype_of_the_rest_and_computes_in_another_thread_than_its_loader_s(hf_folder):
    with ThreadPoolExecutor(1) as pool:
        model = pool.submit(load_new, hf_folder, dtype="bfloat16").result()
    assert {array.dtype for array in parameters(model).values()} == {mx.bfloat16}
    assert model(mx.zeros((1, 32, 32, 3))).logits.shape == (1, 3)


@pytest.mark.parametrize("model_class", [ConvNextV2Model, ConvNextV2Backbone])
def test_a_checkpoint_without_a_head_gets_one(model_class, tmp_path, small_processor):
    source = randomize(model_class(ConvNextV2Config(**SMALL)))
    save(source, tmp_path / "body", small_processor)
    with pytest.warns(UserWarning, match="there is no head, and the one for 3 is new") as said:
        model, _ = load(tmp_path / "body", labels=LABELS)
    is_backbone = model_class is ConvNextV2Backbone
    assert ("as is the norm before it" in str(said[0].message)) == is_backbone
    assert_same_weights(model.convnextv2.encoder, source.encoder)
    norm = model.convnextv2.layernorm.weight
    assert mx.array_equal(norm, mx.ones(SMALL["hidden_sizes"][-1]) if is_backbone else source.layernorm.weight)


def test_weights_of_pre_training_alone_are_where_training_may_begin(tmp_path, small_model):
    tensors = {name: array for name, array in as_original(small_model).items() if not name.startswith(("head", "norm"))}
    save_file(tensors, tmp_path / "fcmae.safetensors")
    with pytest.warns(UserWarning) as said:  # noqa: PT030 - looked at below
        model, _ = load(tmp_path / "fcmae.safetensors", labels=LABELS)
    assert any("there is no head" in str(w.message) and "norm before it" in str(w.message) for w in said)
    assert model(mx.zeros((1, 64, 64, 3))).logits.shape == (1, 3)


def test_a_final_norm_that_a_whole_checkpoint_lacks_is_still_an_error(copy):
    change(copy, lambda weights: weights.pop("convnextv2.layernorm.weight"))
    with pytest.raises(ValueError, match=r"1 missing: convnextv2\.layernorm"):
        load(copy, labels=LABELS)


def test_a_quantized_body_keeps_its_layers_and_the_head_is_in_floating_point(tmp_path, small_processor):
    source = randomize(ConvNextV2ForImageClassification(ConvNextV2Config(**{**SMALL, "hidden_sizes": [8, 16, 32, 64]})))
    quantize(source, bits=8, group_size=32)
    save(source, tmp_path / "quantized", small_processor)
    model = load_new(tmp_path / "quantized")
    dtypes = {name: array.dtype for name, array in parameters(model).items()}
    assert dtypes["classifier.weight"] == mx.float32
    assert dtypes["convnextv2.encoder.stages.3.layers.0.pwconv1.weight"] == mx.uint32
    save(model, tmp_path / "again", small_processor)
    assert {name: array.dtype for name, array in parameters(load(tmp_path / "again")[0]).items()} == dtypes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "cat"}, 'must be a list such as ["cat", "dog"], not \'cat\''),
        ({"labels": {"cat": 0}}, "must be a list"),
        ({"labels": []}, "from 1 to 100,000 classes, not 0"),
        ({"labels": ["cat", ""]}, "label 2 of 2 is '': each needs a name"),
        ({"labels": ["cat", 3]}, "label 2 of 2 is 3"),
        ({"labels": ["cat", "d\x1bog"]}, "cannot be printed"),
        ({"labels": ["cat", "dog", "cat"]}, "each class once, and 'cat' is there twice"),
        ({"labels": ["caf\u00e9", "cafe\u0301"]}, "is there twice"),
        ({"labels": ["cat"], "num_labels": 1}, "leave num_labels out"),
        ({"labels": ["cat"], "id2label": {0: "cat"}}, "leave id2label out"),
        ({"labels": ["cat"], "model_class": ConvNextV2Model}, "a ConvNextV2Model has none"),
    ],
)
def test_labels_that_make_no_head_are_refused_before_anything_is_read(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load("/nowhere/at/all", **options)
