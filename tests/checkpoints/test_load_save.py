"""load and save: the three model classes, changed configurations, round trips."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_files import DTYPES, INDEX, assert_same_weights, content, edit_json, parameters, read
from conftest import SMALL, randomize

from mlx_convnextv2 import (
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    load,
    save,
)

FORMATS = ["mlx", "huggingface"]
STAGES = ["stem", "stage2", "stage4"]

# Most checkpoints here are saved without a processor, which the tests of processors look at.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no preprocessor_config.json")


@pytest.fixture(scope="module")
def pixel_values() -> mx.array:
    return mx.array(np.random.RandomState(0).standard_normal((2, 64, 48, 3)).astype(np.float32))


@pytest.fixture(scope="module")
def base_model() -> ConvNextV2Model:
    return randomize(ConvNextV2Model(ConvNextV2Config(**SMALL)), seed=1)


@pytest.fixture(scope="module")
def backbone() -> ConvNextV2Backbone:
    return randomize(ConvNextV2Backbone(ConvNextV2Config(**SMALL, out_features=STAGES)), seed=2)


@pytest.fixture(scope="module")
def headless() -> ConvNextV2ForImageClassification:
    return randomize(ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=0)))


# --- model classes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", ["small_model", "base_model", "backbone", "headless"])
def test_without_a_class_it_is_what_the_checkpoint_holds(tmp_path, request, small_processor, name, file_format):
    model = request.getfixturevalue(name)
    save(model, tmp_path / "saved", small_processor, format=file_format)
    loaded, processor = load(tmp_path / "saved")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert replace(loaded.config, extra={}) == replace(model.config, extra={})
    assert processor.to_dict() == small_processor.to_dict()
    assert_same_weights(loaded, model)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == ([type(model).__name__], "convnextv2")


def test_a_model_of_a_classification_checkpoint_leaves_the_classifier_out(hf_folder, small_model):
    model, _ = load(hf_folder, model_class=ConvNextV2Model)
    assert type(model) is ConvNextV2Model
    assert_same_weights(model, small_model.convnextv2)


def test_a_backbone_of_a_classification_checkpoint_has_its_stages_and_fresh_norms(hf_folder, small_model, pixel_values):
    model, _ = load(hf_folder, model_class=ConvNextV2Backbone, out_features=STAGES)
    assert type(model) is ConvNextV2Backbone
    assert model.out_indices == [0, 2, 4]
    hidden_states = small_model(pixel_values, output_hidden_states=True).hidden_states
    for feature_map, index in zip(model(pixel_values).feature_maps, model.out_indices, strict=True):
        # A norm of weight 1 and bias 0 over the channels, in float64.
        x = np.array(hidden_states[index]).astype(np.float64)
        normalised = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(np.array(feature_map), normalised, atol=1e-5)


def test_a_backbone_of_a_base_model_checkpoint_leaves_the_final_norm_out(tmp_path, base_model):
    save(base_model, tmp_path / "saved")
    model, _ = load(tmp_path / "saved", model_class=ConvNextV2Backbone)
    assert_same_weights(model.encoder, base_model.encoder)
    assert_same_weights(model.embeddings, base_model.embeddings)


def test_a_backbone_of_fewer_stages_leaves_the_other_stages_norms_out(tmp_path, backbone, pixel_values):
    save(backbone, tmp_path / "saved")
    model, _ = load(tmp_path / "saved", out_features=STAGES[-1:])
    assert model.out_features == STAGES[-1:]
    assert mx.array_equal(model(pixel_values).feature_maps[0], backbone(pixel_values).feature_maps[-1])


@pytest.mark.parametrize(
    ("name", "model_class", "message"),
    [
        (
            "base_model",
            ConvNextV2ForImageClassification,
            "holds no classifier: load it as ConvNextV2Model or ConvNextV2B",
        ),
        (
            "backbone",
            ConvNextV2ForImageClassification,
            "holds no classifier: load it as ConvNextV2Model or ConvNextV2B",
        ),
        ("backbone", ConvNextV2Model, "2 missing: layernorm.bias, layernorm.weight"),
        ("small_model", int, "ConvNextV2ForImageClassification, ConvNextV2Model, ConvNextV2Backbone"),
    ],
)
def test_a_class_that_a_checkpoint_cannot_be_is_refused(tmp_path, request, name, model_class, message):
    save(request.getfixturevalue(name), tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "saved", model_class=model_class)


@pytest.mark.parametrize("model_class", [ConvNextV2Model, ConvNextV2Backbone])
def test_a_class_that_leaves_the_classifier_out_is_strict_about_the_rest(copy, model_class):
    weights, metadata = read(copy / "model.safetensors")
    del weights["convnextv2.encoder.stages.0.layers.0.dwconv.bias"]
    mx.save_safetensors(str(copy / "model.safetensors"), {**weights, "momentum": mx.zeros(1)}, metadata)
    with pytest.raises(ValueError, match=r"1 missing: .*stages.0.layers.0.dwconv.bias; 1 unexpected: momentum"):
        load(copy, model_class=model_class)


def test_a_head_that_the_config_promises_and_the_file_lacks_is_missing(tmp_path, headless):
    save(headless, tmp_path / "saved")
    edit_json(tmp_path / "saved" / "config.json", num_labels=3)
    with pytest.raises(ValueError, match=r"2 missing: classifier.bias, classifier.weight"):
        load(tmp_path / "saved")


# --- changed configurations -----------------------------------------------------------------------------------------


def test_fields_can_be_changed(hf_folder, small_model):
    model, _ = load(hf_folder, drop_path_rate=0.25, hidden_act="relu", id2label=list("abcdefg"))
    assert (model.config.drop_path_rate, model.config.hidden_act) == (0.25, "relu")
    assert model.config.label2id == {label: index for index, label in enumerate("abcdefg")}
    assert_same_weights(model, small_model)
    model, _ = load(hf_folder, model_class=ConvNextV2Backbone, out_indices=[2, 4])
    assert list(model.hidden_states_norms) == ["stage2", "stage4"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"out_featrues": ["stage2"]}, "out_featrues"),
        ({"out_features": ["stage9"]}, "out_features"),
        ({"depths": [1, 2, 3]}, "depths"),
        ({"revision": "main"}, "no revisions"),
        ({"id2label": ["a", "b"]}, "has 7 classes.*give id2label 7 labels"),
        ({"num_labels": 9}, "has 7 classes.*give id2label 7 labels"),
        ({"label2id": {"a": 0}}, "has 7 classes.*give id2label 7 labels"),
    ],
    ids=str,
)
def test_an_override_that_is_unknown_or_makes_no_sense_is_named(hf_folder, overrides, named):
    with pytest.raises(ValueError, match=named):
        load(hf_folder, **overrides)
    if "label" in str(overrides):
        assert load(hf_folder, model_class=ConvNextV2Model, **overrides)  # which has no head


@pytest.mark.parametrize("path", [None, 3, b"folder", ["folder"]])
def test_what_is_no_path_is_a_type_error_that_says_what_to_give(path):
    with pytest.raises(TypeError, match="a folder, a file or a Hub id"):
        load(path)


# --- a config that was changed after the model was built ------------------------------------------------------------


def test_a_config_that_still_describes_the_model_is_saved(tmp_path):
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=2))
    model.config.id2label = {0: "ash", 1: "elm"}
    model.config.drop_path_rate = 0.5
    save(model, tmp_path / "saved")
    config = load(tmp_path / "saved")[0].config
    assert (config.label2id, config.drop_path_rate) == ({"ash": 0, "elm": 1}, 0.5)


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "num_labels": (lambda config: setattr(config, "num_labels", 5), r"classifier.bias is \(2,\) and would be \(5,\)"),
    "id2label in place": (lambda config: config.id2label.update({2: "c"}), r"classifier.bias is \(2,\) and would be"),
    "depths": (lambda config: setattr(config, "depths", [1, 1, 1, 1]), "would be absent"),
    "depths in place": (lambda config: config.depths.append(1), "depths must have"),
    "no JSON": (lambda config: config.extra.update(note=object()), "not JSON serializable"),
    "too large": (lambda config: config.extra.update(note="x" * 5_000_000), "more than 4 MB"),
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("release", [False, True], ids=["kept", "released"])
def test_save_writes_no_folder_that_load_would_refuse(tmp_path, change, named, release):
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, id2label=["a", "b"]))
    change(model.config)
    with pytest.raises(ValueError, match=named) as error:
        save(model, tmp_path / "saved", release=release)
    assert str(error.value).startswith(str(tmp_path / "saved"))
    assert ".partial" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert model.classifier.weight.size > 0


def test_a_backbone_of_other_stages_than_its_config_is_not_saved(tmp_path):
    model = ConvNextV2Backbone(ConvNextV2Config(**SMALL))
    model.config.out_indices = [1]
    with pytest.raises(ValueError, match=r"hidden_states_norms\.stage1"):
        save(model, tmp_path / "saved")


@pytest.mark.parametrize("what", ["save", "load"])
def test_saving_and_loading_draw_no_random_numbers(tmp_path, small_model, hf_folder, monkeypatch, what):
    monkeypatch.setattr(mx.random, "normal", None)
    mx.random.seed(1)
    expected = mx.random.uniform().item()
    mx.random.seed(1)
    if what == "save":
        save(small_model, tmp_path / "saved")
    else:
        load(hf_folder)
    assert mx.random.uniform().item() == expected


# --- folders that are no checkpoint ---------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        load(tmp_path / "no-such-folder")


def test_a_weights_file_uses_the_config_beside_it(copy, small_model):
    model, _ = load(copy / "model.safetensors")
    assert model.config.id2label == small_model.config.id2label
    assert_same_weights(model, small_model)


def test_a_folder_without_a_preprocessor_file_gets_the_published_one_and_a_warning(copy):
    (copy / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match=r"no preprocessor_config.json.* at 224 pixels"):  # the config's image_size
        _, processor = load(copy)
    published = {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3, "rescale_factor": 1 / 255}
    published |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    assert published.items() <= processor.to_dict().items()


# --- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_saved_is_loaded_bit_by_bit_and_says_its_dtype(tmp_path, mlx_folder, dtype, file_format):
    model, processor = load(mlx_folder, dtype=dtype)
    save(model, tmp_path / "first" / "name", processor, format=file_format)
    loaded, processor = load(tmp_path / "first" / "name")
    assert {array.dtype for array in parameters(loaded).values()} == {DTYPES[dtype]}
    assert_same_weights(loaded, model)
    assert json.loads((tmp_path / "first" / "name" / "config.json").read_text())["dtype"] == dtype
    save(loaded, tmp_path / "second" / "name", processor, format=file_format)
    assert content(tmp_path / "second") == content(tmp_path / "first")
    names = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(content(tmp_path / "second" / "name")) == names


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("most", [1, 40_000])
def test_shards_are_no_larger_than_asked_and_the_index_tells_where_each_tensor_is(
    tmp_path, small_model, most, file_format
):
    save(small_model, tmp_path / "saved", format=file_format, max_shard_bytes=most)
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    index = json.loads((tmp_path / "saved" / INDEX).read_text())
    files = sorted((tmp_path / "saved").glob("*.safetensors"))
    count = len(files)
    assert [file.name for file in files] == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    found: dict[str, str] = {}
    for file in files:
        weights, metadata = read(file)
        assert metadata["format"] == ("mlx" if file_format == "mlx" else "pt")
        assert sum(array.nbytes for array in weights.values()) <= most or len(weights) == 1
        found |= dict.fromkeys(weights, file.name)
    assert index["weight_map"] == found
    assert set(found) == set(parameters(small_model))
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in parameters(small_model).values())
    assert_same_weights(load(tmp_path / "saved")[0], small_model)


def test_weights_that_just_fit_are_one_file(tmp_path, small_model):
    size = sum(array.nbytes for array in parameters(small_model).values())
    save(small_model, tmp_path / "fits", max_shard_bytes=size)
    save(small_model, tmp_path / "does not", max_shard_bytes=size - 1)
    assert (tmp_path / "fits" / "model.safetensors").is_file()
    assert len(list((tmp_path / "does not").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("file_format", FORMATS)
def test_keys_of_a_config_that_nobody_here_knows_survive(copy, tmp_path, file_format):
    strange = {"finetuned_by": {"name": "Zoë", "runs": [1, None, 2.5]}, "transformers_version": "4.24.0", "no": None}
    edit_json(copy / "config.json", **strange)
    model, processor = load(copy)
    save(model, tmp_path / "saved", processor, format=file_format)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert json.loads((copy / "config.json").read_text()).items() <= saved.items()


def test_the_older_name_of_the_dtype_is_kept_and_its_value_is_the_weights_own(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    (copy / "config.json").write_text(json.dumps(config))
    model, processor = load(copy, dtype="bfloat16")
    save(model, tmp_path / "saved", processor)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["torch_dtype"] == "bfloat16"
    assert "dtype" not in saved


def test_a_folder_for_transformers_has_none_of_timm_s_keys(tmp_path, small_model):
    config = replace(small_model.config, extra={"architecture": "convnextv2_atto", "model_args": {}, "kept": 1})
    for file_format in FORMATS:
        save(ConvNextV2ForImageClassification(config), tmp_path / file_format, format=file_format)
    mlx, huggingface = (json.loads((tmp_path / name / "config.json").read_text()) for name in FORMATS)
    assert mlx["architecture"] == "convnextv2_atto"
    assert set(mlx) - set(huggingface) == {"architecture", "model_args"}


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path, small_model):
    with pytest.raises(ValueError, match='"mlx" or "huggingface"'):
        save(small_model, tmp_path / "saved", format="pytorch")
    assert list(tmp_path.iterdir()) == []


def test_a_model_outlives_the_folder_it_was_loaded_from(tmp_path, mlx_folder, small_model):
    shutil.copytree(mlx_folder, tmp_path / "saved")
    model, processor = load(tmp_path / "saved")
    save(model, tmp_path / "saved", processor, overwrite=True)  # whose weights may not have been read
    assert_same_weights(load(tmp_path / "saved")[0], small_model)
    model, _ = load(tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved")
    assert_same_weights(model, small_model)


def test_a_released_model_is_written_whole_and_empty_afterwards(mlx_folder, tmp_path):
    model, processor = load(mlx_folder)
    save(model, tmp_path / "kept", processor)
    assert all(array.size > 0 for array in parameters(model).values())
    save(model, tmp_path / "released", processor, release=True)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("kept", "released")]
    assert files[0] == files[1]
    assert all(array.size == 0 for array in parameters(model).values())
