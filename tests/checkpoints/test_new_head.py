"""load(source, labels=[...]): a new head for one's own classes, the rest as it is, and that is said."""

import re
import shutil
import threading
import warnings

import mlx.core as mx
import numpy as np
import pytest
from conftest import SMALL, randomize
from mlx.utils import tree_flatten
from source_keys import original_key

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


def weights(model):
    return {name: np.array(array.astype(mx.float32)) for name, array in tree_flatten(model.parameters())}


def load_new(source, labels=LABELS, **options):
    with pytest.warns(UserWarning, match="is new, with random weights"):
        return load(source, labels=labels, **options)


@pytest.mark.parametrize("layout", ["mlx_folder", "hf_folder"])
def test_the_head_is_new_and_the_rest_is_the_checkpoints(layout, request, small_model):
    folder = request.getfixturevalue(layout)
    with pytest.warns(UserWarning, match="is left out") as said:
        model, processor = load(folder, labels=LABELS)
    assert [str(warning.message) for warning in said] == [
        f"{folder}: the head for 7 classes is left out, and the one for 3 is new, with random weights: train it"
    ]
    ours, theirs = weights(model), weights(small_model)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        if name.startswith("classifier."):
            continue
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert ours["classifier.weight"].shape == (3, SMALL["hidden_sizes"][-1])
    assert not ours["classifier.bias"].any()
    assert processor.size == {"shortest_edge": 32}


def test_id2label_label2id_and_num_labels_change_together_and_are_saved_so(hf_folder, tmp_path, photo):
    model, processor = load_new(hf_folder)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "bird"}
    assert model.config.label2id == {"cat": 0, "dog": 1, "bird": 2}
    assert model.config.num_labels == 3
    save(model, tmp_path / "saved", processor)
    again, _ = load(tmp_path / "saved")
    assert again.config.label2id == model.config.label2id
    assert {p["label"] for p in ImageClassifier(tmp_path / "saved")(photo)} == set(LABELS)


def test_the_head_is_drawn_as_transformers_draws_it_and_by_the_seed(hf_folder):
    labels = [f"class {i}" for i in range(500)]
    mx.random.seed(1)
    first = weights(load_new(hf_folder, labels)[0])["classifier.weight"]
    assert abs(first.mean()) < 1e-3
    assert first.std() == pytest.approx(0.02, rel=0.05)
    mx.random.seed(1)
    np.testing.assert_array_equal(weights(load_new(hf_folder, labels)[0])["classifier.weight"], first)
    assert (weights(load_new(hf_folder, labels)[0])["classifier.weight"] != first).any()


def test_the_head_has_the_dtype_of_the_rest(hf_folder):
    model, _ = load_new(hf_folder, dtype="bfloat16")
    assert {array.dtype for _, array in tree_flatten(model.parameters())} == {mx.bfloat16}


def test_one_loaded_in_another_thread_computes_in_this_one(hf_folder):
    found = []
    thread = threading.Thread(target=lambda: found.append(load_new(hf_folder)[0]))
    thread.start()
    thread.join()
    assert found[0](mx.zeros((1, 32, 32, 3))).logits.shape == (1, 3)


@pytest.mark.parametrize("model_class", [ConvNextV2Model, ConvNextV2Backbone])
def test_a_checkpoint_without_a_head_gets_one(model_class, tmp_path, small_processor):
    source = model_class(ConvNextV2Config(**SMALL))
    randomize(source)
    save(source, tmp_path / "body", small_processor)
    with pytest.warns(UserWarning, match="there is no head, and the one for 3 is new") as said:
        model, _ = load(tmp_path / "body", labels=LABELS)
    is_backbone = model_class is ConvNextV2Backbone
    assert ("as is the norm before it" in str(said[0].message)) == is_backbone
    ours, theirs = weights(model), weights(source)
    name = "encoder.stages.2.layers.0.pwconv1.weight"
    np.testing.assert_array_equal(ours[f"convnextv2.{name}"], theirs[name])
    expected = np.ones(SMALL["hidden_sizes"][-1]) if is_backbone else theirs["layernorm.weight"]
    np.testing.assert_array_equal(ours["convnextv2.layernorm.weight"], expected)


def test_weights_of_pre_training_alone_are_where_training_may_begin(tmp_path, small_model):
    tensors = {
        original_key(name): array.transpose(0, 3, 1, 2) if array.ndim == 4 and "grn" not in name else array
        for name, array in tree_flatten(small_model.parameters())
        if not name.startswith(("classifier.", "convnextv2.layernorm."))
    }
    mx.save_safetensors(str(tmp_path / "fcmae.safetensors"), tensors)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model, _ = load(tmp_path / "fcmae.safetensors", labels=LABELS)
    assert any("there is no head" in str(w.message) and "norm before it" in str(w.message) for w in said)
    assert model(mx.zeros((1, 64, 64, 3))).logits.shape == (1, 3)


def test_a_final_norm_that_a_whole_checkpoint_lacks_is_still_an_error(hf_folder, tmp_path, small_model):
    folder = shutil.copytree(hf_folder, tmp_path / "damaged")
    tensors = mx.load(str(folder / "model.safetensors"))
    del tensors["convnextv2.layernorm.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: convnextv2\.layernorm"):
        load(folder, labels=LABELS)


def test_a_quantized_body_keeps_its_layers_and_the_head_is_in_floating_point(tmp_path, small_processor):
    source = ConvNextV2ForImageClassification(ConvNextV2Config(**{**SMALL, "hidden_sizes": [8, 16, 32, 64]}))
    randomize(source)
    quantize(source, bits=8, group_size=32)
    save(source, tmp_path / "quantized", small_processor)
    model, _ = load_new(tmp_path / "quantized")
    parameters = dict(tree_flatten(model.parameters()))
    assert parameters["classifier.weight"].dtype == mx.float32
    assert parameters["convnextv2.encoder.stages.3.layers.0.pwconv1.weight"].dtype == mx.uint32
    save(model, tmp_path / "again", small_processor)
    again = dict(tree_flatten(load(tmp_path / "again")[0].parameters()))
    assert {name: array.dtype for name, array in again.items()} == {n: a.dtype for n, a in parameters.items()}


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
