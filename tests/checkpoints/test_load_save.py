"""load and save: the three model classes, changed configurations, round trips, model cards, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_files import DTYPES, INDEX, assert_same_weights, content, parameters
from conftest import ROOT, SMALL, randomize
from mlx.utils import tree_flatten

from mlx_convnextv2 import (
    ConvNextImageProcessor,
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    load,
    save,
)
from mlx_convnextv2.checkpoints.model_card import read_licence
from mlx_convnextv2.files.atomic_folder import new_folder

FORMATS = ["mlx", "huggingface"]


@pytest.fixture(scope="module")
def pixel_values() -> mx.array:
    return mx.array(np.random.RandomState(0).standard_normal((2, 64, 48, 3)).astype(np.float32))


@pytest.fixture(scope="module")
def base_model() -> ConvNextV2Model:
    model = ConvNextV2Model(ConvNextV2Config(**SMALL))
    randomize(model, seed=1)
    return model.eval()


@pytest.fixture(scope="module")
def backbone() -> ConvNextV2Backbone:
    model = ConvNextV2Backbone(ConvNextV2Config(**SMALL, out_features=["stem", "stage2", "stage4"]))
    randomize(model, seed=2)
    return model.eval()


# --- model classes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", ["small_model", "base_model", "backbone"])
def test_without_a_class_it_is_what_the_checkpoint_holds(tmp_path, request, small_processor, name, file_format):
    model = request.getfixturevalue(name)
    save(model, tmp_path / "saved", small_processor, format=file_format)
    loaded, processor = load(tmp_path / "saved")
    assert type(loaded) is type(model)
    assert not loaded.training
    assert replace(loaded.config, extra={}) == replace(model.config, extra={})
    assert processor.to_dict() == small_processor.to_dict()
    assert_same_weights(loaded, model)


@pytest.mark.parametrize("folder", ["mlx_folder", "hf_folder"])
def test_a_model_of_a_classification_checkpoint_leaves_the_classifier_out(request, folder, small_model, pixel_values):
    model, _ = load(request.getfixturevalue(folder), model_class=ConvNextV2Model)
    assert type(model) is ConvNextV2Model
    assert_same_weights(model, small_model.convnextv2)
    expected = small_model.convnextv2(pixel_values)
    assert mx.array_equal(model(pixel_values).pooler_output, expected.pooler_output)


@pytest.mark.parametrize("folder", ["mlx_folder", "hf_folder"])
def test_a_backbone_of_a_classification_checkpoint_has_its_stages_and_fresh_norms(
    request, folder, small_model, pixel_values
):
    stages = ["stem", "stage2", "stage4"]
    model, _ = load(request.getfixturevalue(folder), model_class=ConvNextV2Backbone, out_features=stages)
    assert type(model) is ConvNextV2Backbone
    assert model.out_indices == [0, 2, 4]
    hidden_states = small_model(pixel_values, output_hidden_states=True).hidden_states
    feature_maps = model(pixel_values).feature_maps
    assert len(feature_maps) == 3
    for feature_map, index in zip(feature_maps, [0, 2, 4], strict=True):
        # A norm of weight 1 and bias 0 over the channels, in float64.
        x = np.array(hidden_states[index]).astype(np.float64)
        normalised = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(np.array(feature_map), normalised, atol=1e-5)


def test_a_backbone_of_a_base_model_checkpoint_leaves_the_final_norm_out(tmp_path, base_model):
    save(base_model, tmp_path / "saved", ConvNextImageProcessor())
    model, _ = load(tmp_path / "saved", model_class=ConvNextV2Backbone)
    assert_same_weights(model.encoder, base_model.encoder)
    assert_same_weights(model.embeddings, base_model.embeddings)


def test_a_backbone_of_fewer_stages_leaves_the_other_stages_norms_out(tmp_path, backbone, pixel_values):
    save(backbone, tmp_path / "saved", ConvNextImageProcessor())
    kept = backbone.out_features[-1:]
    assert len(backbone.out_features) > 1
    model, _ = load(tmp_path / "saved", out_features=kept)
    assert model.out_features == kept
    assert mx.array_equal(model(pixel_values).feature_maps[0], backbone(pixel_values).feature_maps[-1])


@pytest.mark.parametrize("model_class", [int, "ConvNextV2Model", ConvNextV2Config])
def test_a_class_that_is_none_of_the_models_is_refused(hf_folder, model_class):
    with pytest.raises(ValueError, match="ConvNextV2ForImageClassification, ConvNextV2Model, ConvNextV2Backbone"):
        load(hf_folder, model_class=model_class)


@pytest.mark.parametrize("path", [None, 3, b"folder", ["folder"]])
def test_what_is_no_path_is_a_type_error_that_says_what_to_give(path):
    with pytest.raises(TypeError, match="a folder, a file or a Hub id"):
        load(path)


def test_a_revision_of_a_folder_is_refused(hf_folder):
    with pytest.raises(ValueError, match="no revisions"):
        load(hf_folder, revision="main")


@pytest.mark.parametrize("name", ["base_model", "backbone"])
def test_a_classifier_of_a_checkpoint_without_a_head_is_an_error_that_says_what_it_can_be(tmp_path, request, name):
    save(request.getfixturevalue(name), tmp_path / "saved", ConvNextImageProcessor())
    with pytest.raises(ValueError, match="holds no classifier: load it as ConvNextV2Model or ConvNextV2Backbone"):
        load(tmp_path / "saved", model_class=ConvNextV2ForImageClassification)


def test_a_model_of_a_backbone_checkpoint_misses_the_final_norm(tmp_path, backbone):
    save(backbone, tmp_path / "saved", ConvNextImageProcessor())
    with pytest.raises(ValueError, match=r"2 missing: layernorm.bias, layernorm.weight"):
        load(tmp_path / "saved", model_class=ConvNextV2Model)


@pytest.mark.parametrize("model_class", [ConvNextV2Model, ConvNextV2Backbone])
def test_a_class_that_leaves_the_classifier_out_is_strict_about_the_rest(copy, model_class):
    file = str(copy / "model.safetensors")
    weights, metadata = mx.load(file, return_metadata=True)
    mx.eval(weights)
    del weights["convnextv2.encoder.stages.0.layers.0.dwconv.bias"]
    mx.save_safetensors(file, {**weights, "momentum": mx.zeros(1)}, metadata)
    with pytest.raises(ValueError, match=r"1 missing: .*stages.0.layers.0.dwconv.bias; 1 unexpected: momentum"):
        load(copy, model_class=model_class)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_checkpoint_without_labels_is_a_model_without_a_head(tmp_path, small_processor, pixel_values, file_format):
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=0))
    randomize(model)
    save(model, tmp_path / "saved", small_processor, format=file_format)
    loaded, _ = load(tmp_path / "saved")
    assert type(loaded) is ConvNextV2ForImageClassification
    assert loaded.config.num_labels == 0
    assert_same_weights(loaded, model)
    assert mx.array_equal(loaded(pixel_values).logits, loaded.convnextv2(pixel_values).pooler_output)


def test_a_head_that_the_config_promises_and_the_file_lacks_is_missing(tmp_path, small_processor):
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=0))
    save(model, tmp_path / "saved", small_processor)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps({**config, "num_labels": 3}))
    with pytest.raises(ValueError, match=r"2 missing: classifier.bias, classifier.weight"):
        load(tmp_path / "saved")


# --- changed configurations -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "features", "indices"),
    [
        ({"out_features": ["stage1", "stage3"]}, ["stage1", "stage3"], [1, 3]),
        ({"out_indices": [2, 4]}, ["stage2", "stage4"], [2, 4]),
        ({}, ["stage4"], [4]),
    ],
)
def test_the_stages_of_a_backbone_can_be_chosen_by_name_or_number(hf_folder, overrides, features, indices):
    model, _ = load(hf_folder, model_class=ConvNextV2Backbone, **overrides)
    assert (model.out_features, model.out_indices) == (features, indices)
    assert list(model.hidden_states_norms) == features


def test_other_fields_can_be_changed_too(hf_folder, small_model):
    model, _ = load(hf_folder, drop_path_rate=0.25, hidden_act="relu", problem_type="multi_label_classification")
    assert (model.config.drop_path_rate, model.config.hidden_act) == (0.25, "relu")
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == small_model.config.id2label
    assert_same_weights(model, small_model)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"out_featrues": ["stage2"]}, "out_featrues"),
        ({"model_klass": ConvNextV2Model}, "model_klass"),
        ({"out_features": ["stage9"]}, "out_features"),
        ({"depths": [1, 2, 3]}, "depths"),
        ({"hidden_act": "tanh"}, "hidden_act"),
        ({"num_labels": 3}, "num_labels"),
    ],
)
def test_an_override_that_is_unknown_or_makes_no_sense_is_named(hf_folder, overrides, named):
    with pytest.raises(ValueError, match=named):
        load(hf_folder, **overrides)


def test_a_list_of_labels_renames_the_classes(hf_folder):
    labels = list("abcdefg")
    config = load(hf_folder, id2label=labels)[0].config
    assert list(config.id2label.values()) == labels
    assert config.label2id == {label: index for index, label in enumerate(labels)}


@pytest.mark.parametrize("overrides", [{"id2label": ["a", "b"]}, {"num_labels": 9}, {"label2id": {"a": 0}}], ids=str)
def test_labels_for_another_number_of_classes_than_the_heads_are_an_error_that_says_how_many(hf_folder, overrides):
    with pytest.raises(ValueError, match=r"has 7 classes.*give id2label 7 labels"):
        load(hf_folder, **overrides)
    assert load(hf_folder, model_class=ConvNextV2Model, **overrides)  # which has no head


# --- a config that was changed after the model was built ------------------------------------------------------------


def test_a_config_that_still_describes_the_model_is_saved(tmp_path):
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, id2label=["a", "b"]))
    model.config.id2label = ["ash", "elm"]
    model.config.drop_path_rate = 0.5
    save(model, tmp_path / "saved", ConvNextImageProcessor(size=32))
    config = load(tmp_path / "saved")[0].config
    assert (config.label2id, config.drop_path_rate) == ({"ash": 0, "elm": 1}, 0.5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: setattr(config, "num_labels", 5), r"classifier.bias is \(2,\) and would be \(5,\)"),
        (lambda config: config.id2label.update({2: "c"}), r"classifier.bias is \(2,\) and would be \(3,\)"),
        (lambda config: setattr(config, "depths", [1, 1, 1, 1]), "would be absent"),
        (lambda config: setattr(config, "num_channels", 1), "patch_embeddings.weight"),
        (lambda config: config.depths.append(1), "depths must have"),
        (lambda config: config.extra.update(note=object()), "not JSON serializable"),
        (lambda config: config.extra.update(note="x" * 5_000_000), "more than 4 MB"),
    ],
    ids=["num_labels", "id2label in place", "depths", "num_channels", "depths in place", "no JSON", "too large"],
)
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


def test_saving_leaves_the_random_numbers_alone(tmp_path, small_model):
    numbers = []
    for name in ("one", None):
        mx.random.seed(1)
        if name:
            save(small_model, tmp_path / name)
        numbers.append(mx.random.uniform().item())
    assert numbers[0] == numbers[1]


# --- folders that are no checkpoint ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lacks", ["config.json", "model.safetensors"])
def test_a_file_that_a_folder_lacks_is_named(copy, lacks):
    (copy / lacks).unlink()
    with pytest.raises(FileNotFoundError, match=lacks) as error:
        load(copy)
    assert str(copy) in str(error.value)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        load(tmp_path / "no-such-folder")


def test_a_file_that_holds_no_weights_is_an_error_that_says_what_to_give(copy):
    with pytest.raises(ValueError, match=r"neither a folder nor a \.safetensors"):
        load(copy / "config.json")


def test_a_weights_file_uses_the_config_beside_it(copy, small_model):
    model, _ = load(copy / "model.safetensors")
    assert model.config.id2label == small_model.config.id2label
    assert_same_weights(model, small_model)


@pytest.mark.parametrize("model_type", ["resnet", "convnext", "vit"])
def test_another_architecture_is_named(copy, model_type):
    (copy / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=f"'{model_type}'") as error:
        load(copy)
    assert str(copy / "config.json") in str(error.value)


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
    save(model, tmp_path / "saved", processor, format=file_format)
    loaded, _ = load(tmp_path / "saved")
    assert {array.dtype for array in parameters(loaded).values()} == {DTYPES[dtype]}
    assert_same_weights(loaded, model)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_checkpoint_saved_again_has_the_same_files(tmp_path, mlx_folder, file_format):
    model, processor = load(mlx_folder)
    save(model, tmp_path / "first" / "name", processor, format=file_format)
    model, processor = load(tmp_path / "first" / "name")
    save(model, tmp_path / "second" / "name", processor, format=file_format)
    assert content(tmp_path / "second") == content(tmp_path / "first")
    names = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(content(tmp_path / "second" / "name")) == names


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("most", [1, 10_000, 40_000])
def test_shards_are_no_larger_than_asked_and_the_index_tells_where_each_tensor_is(
    tmp_path, small_model, small_processor, most, file_format
):
    save(small_model, tmp_path / "saved", small_processor, format=file_format, max_shard_bytes=most)
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    index = json.loads((tmp_path / "saved" / INDEX).read_text())
    files = sorted(path.name for path in (tmp_path / "saved").glob("*.safetensors"))
    count = len(files)
    assert files == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    found = {}
    for file in files:
        weights, metadata = mx.load(str(tmp_path / "saved" / file), return_metadata=True)
        assert metadata["format"] == ("mlx" if file_format == "mlx" else "pt")
        assert sum(array.nbytes for array in weights.values()) <= most or len(weights) == 1
        found |= dict.fromkeys(weights, file)
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
    config = json.loads((copy / "config.json").read_text())
    strange = {
        "finetuned_by": {"name": "Zoë", "runs": [1, None, 2.5]},
        "transformers_version": "4.24.0",
        "nothing": None,
    }
    (copy / "config.json").write_text(json.dumps({**config, **strange}))
    model, processor = load(copy)
    save(model, tmp_path / "saved", processor, format=file_format)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert strange.items() <= saved.items()
    assert config.items() <= saved.items()


def test_the_older_name_of_the_dtype_is_kept_and_its_value_is_the_weights_own(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config.pop("dtype")
    (copy / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    model, processor = load(copy, dtype="bfloat16")
    save(model, tmp_path / "saved", processor)
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["torch_dtype"] == "bfloat16"
    assert "dtype" not in saved


@pytest.mark.parametrize("name", ["small_model", "base_model", "backbone"])
def test_the_config_names_the_class_for_transformers(tmp_path, request, name):
    model = request.getfixturevalue(name)
    save(model, tmp_path / "saved", format="huggingface")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert config["model_type"] == "convnextv2"


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path, small_model):
    with pytest.raises(ValueError, match='"mlx" or "huggingface"'):
        save(small_model, tmp_path / "saved", format="pytorch")
    assert list(tmp_path.iterdir()) == []


# --- model cards ----------------------------------------------------------------------------------------------------


def card(folder: Path) -> tuple[list[str], str]:
    """The lines of a card's header, and its text."""
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return header.splitlines(), text


def test_a_card_says_where_the_model_is_from_and_on_what_terms(tmp_path, small_model):
    save(small_model, tmp_path / "my-net", base_model="somebody/net", licence="apache-2.0")
    header, text = card(tmp_path / "my-net")
    for line in ("library_name: mlx", "base_model: somebody/net", "license: apache-2.0", "- mlx"):
        assert line in header
    for words in ("# my-net", "somebody/net", "[1, 2, 1, 1]", "[8, 12, 20, 33]", "7 classes", "float32", "apache-2.0"):
        assert words in text
    assert "CC BY-NC 4.0" in text  # what the authors say, whatever the source's card says


def test_a_card_for_transformers_says_so_and_a_folder_is_no_base_model(tmp_path, small_model):
    save(small_model, tmp_path / "my-net", format="huggingface", base_model="my-finetune")
    header, text = card(tmp_path / "my-net")
    assert "library_name: transformers" in header
    assert not any(line.startswith(("base_model", "license")) for line in header)
    assert "my-finetune" in text
    assert "None is stated" in text


@pytest.mark.parametrize("licence", ["cc-by-nc-4.0", "mit, apache-2.0"])
def test_a_written_licence_is_read_back(tmp_path, small_model, licence):
    save(small_model, tmp_path / "saved", licence=licence)
    assert read_licence(tmp_path / "saved") == licence


@pytest.mark.parametrize(
    ("licence", "stated"),
    [("mit, apache-2.0", ["mit", "apache-2.0"]), ('own: "terms" # 1', 'own: "terms" # 1'), ("a\nb: c", "a\nb: c")],
)
def test_any_licence_leaves_the_header_well_formed(tmp_path, small_model, licence, stated):
    from huggingface_hub.repocard import metadata_load

    save(small_model, tmp_path / "saved", licence=licence)
    header = metadata_load(tmp_path / "saved" / "README.md")
    assert header["license"] == stated
    assert header["library_name"] == "mlx"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- vision\n---\n# Net\n", "apache-2.0"),
        ("---\ntags:\n- vision\nlicense: 'cc-by-nc-4.0'\n---\n", "cc-by-nc-4.0"),
        ('---\r\nlicense: "mit"\r\n---\r\n', "mit"),
        ("---\nlicense: mit # as upstream\n---\n", "mit"),
        ("---\nlicense:\n- mit\ntags:\n- vision\n---\n", "mit"),
        ("---\nlicense:\ntags:\n- vision\n---\n", None),
        ("---\ntags:\n- vision\n---\nlicense: mit\n", None),
        ("# Net\n\nlicense: mit\n", None),
        ("---\nlicense_name: own\n---\n", None),
        ("", None),
    ],
)
def test_the_licence_of_a_card_is_read_from_its_header(tmp_path, text, licence):
    (tmp_path / "README.md").write_bytes(text.encode())
    assert read_licence(tmp_path) == licence


def test_a_folder_without_a_card_states_no_licence(tmp_path):
    assert read_licence(tmp_path) is None


# --- all or nothing -------------------------------------------------------------------------------------------------


class FailingProcessor(ConvNextImageProcessor):
    """Raises when it is written, which is after the weights."""

    def __init__(self, error: BaseException):
        super().__init__()
        self._error = error

    def to_dict(self) -> dict:
        raise self._error


@pytest.mark.parametrize("error", [ValueError("in the middle"), KeyboardInterrupt(), MemoryError()])
def test_an_exception_in_the_middle_leaves_nothing(tmp_path, small_model, error):
    with pytest.raises(type(error)):
        save(small_model, tmp_path / "saved", FailingProcessor(error))
    assert list(tmp_path.iterdir()) == []


def test_an_exception_in_the_middle_leaves_the_checkpoint_that_was_to_be_replaced(tmp_path, base_model, small_model):
    save(base_model, tmp_path / "saved")
    before = content(tmp_path)
    with pytest.raises(ValueError, match="in the middle"):
        save(small_model, tmp_path / "saved", FailingProcessor(ValueError("in the middle")), overwrite=True)
    assert content(tmp_path) == before


def test_a_rename_that_fails_leaves_the_checkpoint_that_was_to_be_replaced(
    tmp_path, base_model, small_model, monkeypatch
):
    save(base_model, tmp_path / "saved")
    before = content(tmp_path)
    rename, calls = os.rename, []

    def second_fails(source, target, **options) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error", str(target))
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="Input/output"):
        save(small_model, tmp_path / "saved", overwrite=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stopped_in_the_middle_leaves_no_target(tmp_path, mlx_folder, sent):
    code = f"""
import sys, time
from mlx_convnextv2 import load, save
model, processor = load({str(mlx_folder)!r})
class Slow(type(processor)):
    def to_dict(self):
        print("weights are written", flush=True)
        while True:  # a signal that comes just before one long sleep would be seen after it
            time.sleep(0.01)
save(model, {str(tmp_path / "saved")!r}, Slow())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    try:
        assert process.stdout.readline() == "weights are written\n"
        (partial,) = tmp_path.iterdir()
        assert (partial / "model.safetensors").is_file()
        process.send_signal(sent)
        assert process.wait(timeout=600) != 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not (tmp_path / "saved").exists()
    if sent == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []
    save(load(mlx_folder)[0], tmp_path / "saved")  # what was left is in nobody's way
    assert (tmp_path / "saved" / "model.safetensors").is_file()


# --- targets --------------------------------------------------------------------------------------------------------


def full_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("years of work")


def folder_with(*files: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for name in files:
            (path / name).write_text("{}")

    return make


def link_to(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        make(path.parent / "elsewhere")
        path.symlink_to(path.parent / "elsewhere")

    return link


OCCUPIED = {
    "a full folder": full_folder,
    "a folder with a config": folder_with("thesis.txt", "config.json"),
    "a file": lambda path: path.write_text("years of work"),
    "a dangling link": lambda path: path.symlink_to(path.parent / "nowhere"),
    "a link to an empty folder": link_to(folder_with()),
    "a link to a checkpoint": link_to(folder_with("config.json", "model.safetensors")),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("occupy", OCCUPIED.values(), ids=OCCUPIED)
def test_what_is_no_checkpoint_folder_is_never_replaced(tmp_path, small_model, occupy, overwrite):
    target = tmp_path / "saved"
    occupy(target)
    before, link = content(tmp_path), os.path.islink(target)
    with pytest.raises(FileExistsError, match="saved"):
        save(small_model, target, overwrite=overwrite)
    assert content(tmp_path) == before
    assert os.path.islink(target) == link
    assert os.path.lexists(target)


def test_a_checkpoint_is_replaced_only_when_asked_to(tmp_path, base_model, small_model):
    save(base_model, tmp_path / "saved", max_shard_bytes=20_000)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite"):
        save(small_model, tmp_path / "saved")
    assert content(tmp_path) == before
    save(small_model, tmp_path / "saved", ConvNextImageProcessor(), overwrite=True)
    assert_same_weights(load(tmp_path / "saved")[0], small_model)
    assert not list((tmp_path / "saved").glob("*-of-*"))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_a_model_can_replace_the_checkpoint_it_was_loaded_from(tmp_path, mlx_folder, small_model):
    # Its weights may not have been read when the folder is replaced.
    shutil.copytree(mlx_folder, tmp_path / "saved")
    model, processor = load(tmp_path / "saved")
    save(model, tmp_path / "saved", processor, overwrite=True)
    assert_same_weights(load(tmp_path / "saved")[0], small_model)
    assert_same_weights(model, small_model)


def test_a_model_outlives_the_folder_it_was_loaded_from(tmp_path, mlx_folder, small_model, pixel_values):
    shutil.copytree(mlx_folder, tmp_path / "saved")
    model, _ = load(tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved")
    assert mx.array_equal(model(pixel_values).logits, small_model(pixel_values).logits)


def test_an_empty_folder_is_filled(tmp_path, small_model):
    (tmp_path / "saved").mkdir()
    save(small_model, tmp_path / "saved", ConvNextImageProcessor())
    assert_same_weights(load(tmp_path / "saved")[0], small_model)


def test_parents_are_made(tmp_path, small_model):
    save(small_model, tmp_path / "a" / "b" / "saved", ConvNextImageProcessor())
    assert_same_weights(load(tmp_path / "a" / "b" / "saved")[0], small_model)


def test_a_target_that_appears_in_the_meantime_is_left_alone(tmp_path):
    with pytest.raises(FileExistsError), new_folder(tmp_path / "saved") as folder:  # noqa: PT012 - what happens inside
        (folder / "config.json").write_text("{}")
        full_folder(tmp_path / "saved")
    assert content(tmp_path) == {"saved/thesis.txt": b"years of work"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o027, 0o750), (0o077, 0o700), (0o002, 0o775)])
def test_the_new_folder_and_its_files_have_the_rights_that_the_umask_gives(tmp_path, small_model, umask, mode):
    before = os.umask(umask)
    try:
        save(small_model, tmp_path / "saved", ConvNextImageProcessor())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "saved").stat().st_mode) == mode
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "saved").iterdir()}
    names = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    assert files == dict.fromkeys(names, 0o666 & ~umask)


# --- disks that cannot be written to --------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_everybody")
def test_a_parent_that_is_read_only_is_an_oserror(tmp_path, small_model):
    parent = tmp_path / "read-only"
    parent.mkdir(mode=0o555)
    with pytest.raises(PermissionError):
        save(small_model, parent / "saved")
    assert list(parent.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_where_a_disk_is_mounted_nothing_is_replaced(tmp_path, small_model, monkeypatch, overwrite):
    target = tmp_path / "disk"
    target.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == target)
    with pytest.raises(FileExistsError, match="choose another folder"):
        save(small_model, target, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_for_transformers_has_none_of_timm_s_keys(tmp_path, small_model):
    config = replace(small_model.config, extra={"architecture": "convnextv2_atto", "model_args": {}, "kept": 1})
    model = ConvNextV2ForImageClassification(config)
    for file_format in FORMATS:
        save(model, tmp_path / file_format, format=file_format)
    mlx, huggingface = (json.loads((tmp_path / name / "config.json").read_text()) for name in FORMATS)
    assert mlx["architecture"] == "convnextv2_atto"
    assert set(mlx) - set(huggingface) == {"architecture", "model_args"}


def test_a_released_model_is_written_whole_and_empty_afterwards(mlx_folder, tmp_path) -> None:
    model, processor = load(mlx_folder)
    save(model, tmp_path / "kept", processor)
    assert all(array.size > 0 for _, array in tree_flatten(model.parameters()))
    save(model, tmp_path / "released", processor, release=True)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("kept", "released")]
    assert files[0] == files[1]
    assert all(array.size == 0 for _, array in tree_flatten(model.parameters()))


def test_saving_draws_no_weights(tmp_path, small_model, monkeypatch):
    monkeypatch.setattr(mx.random, "normal", None)
    save(small_model, tmp_path / "saved")
