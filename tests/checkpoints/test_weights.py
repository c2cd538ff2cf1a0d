"""Weights on disk: strict both ways, spellings and shards, damaged files, layouts and dtypes."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_files import (
    DTYPES,
    SHARD_BYTES,
    assert_refused,
    assert_same_weights,
    change,
    header_end,
    parameters,
    rewrite,
    write_parts,
)
from conftest import randomize

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, load, save
from mlx_convnextv2.checkpoints.checkpoint import Checkpoint
from mlx_convnextv2.messages import grouped

# Most checkpoints here are saved without a processor, which the tests of loading look at.
pytestmark = pytest.mark.filterwarnings("ignore:.* has no preprocessor_config.json")

# Names of small_model's tensors that the tests below take away, add or change.
BIAS = "convnextv2.encoder.stages.1.layers.0.pwconv1.bias"
GRN = "convnextv2.encoder.stages.1.layers.1.grn"
STEM = "convnextv2.embeddings.patch_embeddings.weight"


@pytest.fixture
def shards(small_model, small_processor, tmp_path) -> Path:
    """A Hugging Face checkpoint in shards that a test may change."""
    save(small_model, tmp_path / "shards", small_processor, format="huggingface", max_shard_bytes=SHARD_BYTES)
    return tmp_path / "shards"


# --- strict both ways -----------------------------------------------------------------------------------------------


def test_each_tensor_that_is_missing_is_named(copy, small_model):
    original = (copy / "model.safetensors").read_bytes()
    for name in parameters(small_model):
        (copy / "model.safetensors").write_bytes(original)
        change(copy, lambda weights, name=name: weights.pop(name))
        assert_refused(copy, "1 missing", name)


def test_each_tensor_of_another_shape_is_named(copy, small_model):
    original = (copy / "model.safetensors").read_bytes()
    for name, parameter in parameters(small_model).items():
        (copy / "model.safetensors").write_bytes(original)
        grown = mx.zeros((*parameter.shape[:-1], parameter.shape[-1] + 1))
        change(copy, lambda weights, name=name, grown=grown: weights.update({name: grown}))
        assert_refused(copy, "1 mis-shaped", name)


def test_a_tensor_that_the_model_has_no_place_for_is_named(copy):
    change(copy, lambda weights: weights.update({"convnextv2.encoder.stages.4.layers.0.dwconv.bias": mx.zeros(3)}))
    assert_refused(copy, "1 unexpected", "convnextv2.encoder.stages.4.layers.0.dwconv.bias")


def test_all_that_is_wrong_is_said_at_once(copy):
    def edit(weights: dict) -> None:
        del weights[BIAS]
        weights["momentum"] = mx.zeros(1)
        weights["classifier.bias"] = mx.zeros(9)

    change(copy, edit)
    # small_model has seven classes
    words = ("1 missing", BIAS, "1 unexpected", "momentum", "1 mis-shaped", "classifier.bias", "(9,)", "(7,)")
    assert_refused(copy, *words)


def test_of_many_names_the_first_are_listed_and_the_others_counted(copy):
    change(copy, lambda weights: weights.update({f"extra.{i}": mx.zeros(1) for i in range(8)}))
    assert_refused(copy, "8 unexpected", "extra.0, extra.1, extra.2, extra.3, extra.4 and 3 more")


def test_a_scalar_or_a_flat_tensor_in_place_of_a_convolution_is_mis_shaped(copy):
    for value in (mx.array(1.0), mx.zeros(8 * 3 * 4 * 4)):
        change(copy, lambda weights, value=value: weights.update({STEM: value}))
        assert_refused(copy, "1 mis-shaped", STEM)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": [1, 2, 2, 1]}, ("missing", "stages.2.layers.1")),
        ({"depths": [1, 1, 1, 1]}, ("unexpected", "stages.1.layers.1")),
        ({"hidden_sizes": [8, 12, 20, 32]}, ("mis-shaped", "stages.3")),
        ({"patch_size": 2}, ("mis-shaped", STEM)),
        ({"num_channels": 1}, ("mis-shaped", STEM)),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": None}, ("mis-shaped", "classifier.weight", "classifier.bias")),
        ({"num_stages": 3, "depths": [1, 2, 1], "hidden_sizes": [8, 12, 20]}, ("unexpected", "stages.3")),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_config_that_does_not_match_is_refused(copy, changes, words):
    config = json.loads((copy / "config.json").read_text())
    config = {**config, **changes, "out_features": None, "out_indices": None}
    (copy / "config.json").write_text(json.dumps(config))
    assert_refused(copy, *words)


def test_weights_of_another_model_show_some_of_their_names(copy):
    def edit(weights: dict) -> None:
        weights.clear()
        weights.update({"conv1.weight": mx.zeros((64, 3, 7, 7)), "fc.bias": mx.zeros(1000)})

    change(copy, edit)
    assert_refused(copy, "conv1.weight", "fc.bias")


def test_a_file_without_tensors_is_refused(copy):
    mx.save_safetensors(str(copy / "model.safetensors"), {})
    assert_refused(copy)


# --- spellings ------------------------------------------------------------------------------------------------------


def test_the_older_spelling_of_grn_is_read(copy, small_model):
    def edit(weights: dict) -> None:
        for name in list(weights):
            old = name.replace("grn.weight", "grn.gamma").replace("grn.bias", "grn.beta")
            weights[old] = weights.pop(name)

    change(copy, edit)
    assert any("grn.gamma" in name for name in mx.load(str(copy / "model.safetensors")))
    assert_same_weights(load(copy)[0], small_model)


@pytest.mark.parametrize(("new", "old"), [("weight", "gamma"), ("bias", "beta")])
def test_both_spellings_of_one_tensor_are_refused(copy, new, old):
    change(copy, lambda weights: weights.update({f"{GRN}.{old}": weights[f"{GRN}.{new}"] + 1}))
    assert_refused(copy, f"{GRN}.{old}", f"{GRN}.{new}")


# --- what training leaves -------------------------------------------------------------------------------------------


LEFTOVERS = {
    "optimizer.state.0.exp_avg": np.ones(3, np.float32),
    "optim.param_groups.0.lr": np.ones(1, np.float64),
    "lr_scheduler.last_epoch": np.ones(1, np.int64),
    "scaler.scale": np.ones(1, np.float64),
    "loss_scaler.growth_tracker": np.ones(1, np.int32),
    "state.12.momentum_buffer": np.ones(2, np.float16),
    "module.optimizer.step": np.ones(1, np.int64),
    "convnextv2.layernorm.num_batches_tracked": np.array(7),
    "global_step": np.array(7),
}


@pytest.mark.parametrize("key", LEFTOVERS)
def test_what_training_leaves_is_dropped_by_name_whatever_its_type(copy, small_model, key):
    rewrite(copy, lambda weights: {**weights, key: LEFTOVERS[key]})
    assert_same_weights(load(copy)[0], small_model)
    assert Checkpoint.open(copy).weights.dropped == (key,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_each_type_are_read_from_a_file_that_mlx_refuses(tmp_path, small_model, dtype):
    model = cast(small_model, DTYPES[dtype])
    save(model, tmp_path / "saved", format="huggingface")
    file = tmp_path / "saved" / "model.safetensors"
    header, data = file.read_bytes()[8 : header_end(file)], file.read_bytes()[header_end(file) :]
    end = len(data)
    leftover = b', "scaler.scale": {"dtype": "F64", "shape": [1], "data_offsets": [%d, %d]}}' % (end, end + 8)
    write_parts(file, header.rstrip()[:-1] + leftover, data + b"\0" * 8)
    assert_same_weights(load(tmp_path / "saved")[0], model)


@pytest.mark.parametrize("key", ["stateful.weight", "convnextv2.optimizer.weight", "decay.weight", "scalers.scale"])
def test_a_name_that_only_looks_like_a_leftover_is_unexpected(copy, key):
    rewrite(copy, lambda weights: {**weights, key: np.ones(1, np.float32)})
    assert_refused(copy, "1 unexpected", key)


@pytest.mark.parametrize("prefix", ["net.", "network.", "teacher.", "student.", "online_model.", "swa_model.module."])
def test_a_wrapper_s_prefix_goes(copy, small_model, prefix):
    rewrite(copy, lambda weights: {prefix + key: array for key, array in weights.items()})
    assert_same_weights(load(copy)[0], small_model)
    assert Checkpoint.open(copy).weights.dropped == ()


def twice(folder: Path, first: str, second: str, **others: np.ndarray) -> None:
    """The weights under the first prefix, and each one larger under the second."""

    def edit(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        larger = {second + key: array + 1 for key, array in weights.items()}
        return {**larger, **{first + key: array for key, array in weights.items()}, **others}

    rewrite(folder, edit)


@pytest.mark.parametrize("averaged", ["ema.", "model_ema.", "ema_model.", "ema.module."])
@pytest.mark.parametrize("plain", ["model.", "", "module.", "student."])
def test_of_two_copies_the_averaged_one_is_taken_and_the_other_listed(copy, small_model, averaged, plain):
    twice(copy, averaged, plain)
    assert_same_weights(load(copy)[0], small_model)
    assert set(Checkpoint.open(copy).weights.dropped) == {plain + name for name in parameters(small_model)}


def test_the_counter_of_averages_tells_which_copy_is_the_average(copy, small_model):
    twice(copy, "module.", "model.", n_averaged=np.array(9))
    assert_same_weights(load(copy)[0], small_model)


@pytest.mark.parametrize(("first", "second"), [("model.", "module."), ("teacher.", "student."), ("ema.", "model_ema.")])
def test_two_copies_of_which_none_is_the_average_are_refused(copy, first, second):
    twice(copy, first, second)
    assert_refused(copy, "twice", repr(first), repr(second), "save one copy alone")


def test_a_tensor_that_the_averaged_copy_lacks_is_not_taken_from_the_other(copy):
    twice(copy, "ema.", "model.")
    rewrite(copy, lambda weights: {key: array for key, array in weights.items() if key != f"ema.{BIAS}"})
    assert_refused(copy, "the averaged copy, under 'ema.', lacks 1 of the weights", BIAS)


def test_an_averaged_copy_of_a_single_weight_is_not_taken_for_all(copy):
    rewrite(copy, lambda weights: {**weights, f"ema.{BIAS}": weights[BIAS]})
    assert_refused(copy, "the averaged copy, under 'ema.', lacks", "save one whole copy alone")


def test_many_names_of_one_first_word_are_listed_as_that_word():
    names = ["epoch", *(f"optimizer.state.{i}" for i in range(9)), "scaler.scale", "scaler.step"]
    assert grouped(names) == "epoch, optimizer.* (9 tensors), scaler.scale, scaler.step"


def test_a_file_without_a_config_is_not_said_to_differ_from_it(copy):
    change(copy, lambda weights: weights.pop(BIAS))
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="the configuration that their names and shapes tell: 1 missing"):
        load(copy / "model.safetensors")


# --- shards ---------------------------------------------------------------------------------------------------------


def test_shards_give_what_one_file_gives(shards, small_model):
    assert not (shards / "model.safetensors").exists()
    assert_same_weights(load(shards)[0], small_model)


def test_a_shard_that_is_not_there_is_named(shards):
    missing = sorted(shards.glob("*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=missing.name):
        load(shards)


def test_a_tensor_in_two_shards_is_refused(shards):
    first, second = sorted(file.name for file in shards.glob("*.safetensors"))[:2]
    taken = next(iter(mx.load(str(shards / first))))
    change(shards, lambda weights: weights.update({taken: mx.zeros(1)}), second)
    assert_refused(shards, taken, "more than one file")


def test_shards_of_different_layouts_are_refused(shards):
    file = next(shards.glob("*.safetensors"))
    weights = mx.load(str(file))
    mx.eval(weights)
    mx.save_safetensors(str(file), weights, {"format": "mlx"})
    assert_refused(shards, "mlx", "pt")


def test_a_tensor_that_no_shard_holds_is_missing(shards):
    file = sorted(file.name for file in shards.glob("*.safetensors"))[1]
    taken = next(iter(mx.load(str(shards / file))))
    change(shards, lambda weights: weights.pop(taken), file)
    assert_refused(shards, "1 missing", taken)


# --- layouts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ambiguous_model() -> ConvNextV2ForImageClassification:
    """A model whose convolution weights have shapes that fit both layouts: (2, 3, 3, 3), (2, 2, 2, 2)."""
    config = ConvNextV2Config(
        patch_size=3, num_channels=3, num_stages=2, hidden_sizes=[2, 2], depths=[1, 1], num_labels=3
    )
    model = ConvNextV2ForImageClassification(config)
    randomize(model)
    stem = model.convnextv2.embeddings.patch_embeddings.weight
    assert stem.shape == (2, 3, 3, 3)
    assert model.convnextv2.encoder.stages[1].downsampling_layer[1].weight.shape == (2, 2, 2, 2)
    return model.eval()


# The names of PyTorch's convolutions; everything else lies on disk alike.
CONVOLUTIONS = ("patch_embeddings.weight", "downsampling_layer.1.weight", "dwconv.weight")


@pytest.mark.parametrize("name", ["small_model", "ambiguous_model"])
def test_a_hugging_face_file_holds_convolutions_channels_first_and_an_mlx_file_as_they_are(tmp_path, request, name):
    model = request.getfixturevalue(name)
    save(model, tmp_path / "mlx")
    save(model, tmp_path / "huggingface", format="huggingface")
    mlx, metadata = mx.load(str(tmp_path / "mlx" / "model.safetensors"), return_metadata=True)
    assert metadata["format"] == "mlx"
    huggingface, metadata = mx.load(str(tmp_path / "huggingface" / "model.safetensors"), return_metadata=True)
    assert metadata["format"] == "pt"
    assert set(mlx) == set(huggingface) == set(parameters(model))
    for key, array in parameters(model).items():
        array = np.array(array)
        np.testing.assert_array_equal(np.array(mlx[key]), array)
        if key.endswith(CONVOLUTIONS):
            array = np.einsum("ohwi->oihw", array)
        np.testing.assert_array_equal(np.array(huggingface[key]), array)


@pytest.mark.parametrize("file_format", ["mlx", "huggingface"])
def test_the_layout_is_told_by_the_file_and_never_by_a_shape(tmp_path, ambiguous_model, file_format):
    save(ambiguous_model, tmp_path / "saved", format=file_format)
    assert_same_weights(load(tmp_path / "saved")[0], ambiguous_model)


def test_nothing_is_transposed_twice_however_often_it_is_saved_and_loaded(tmp_path, ambiguous_model):
    model = ambiguous_model
    for number, file_format in enumerate(["mlx", "mlx", "huggingface", "huggingface", "mlx"]):
        save(model, tmp_path / str(number), format=file_format)
        model, _ = load(tmp_path / str(number))
    assert_same_weights(model, ambiguous_model)


def test_a_file_that_states_no_format_is_in_pytorch_layout(tmp_path, ambiguous_model):
    save(ambiguous_model, tmp_path / "saved", format="huggingface")
    file = str(tmp_path / "saved" / "model.safetensors")
    weights = mx.load(file)
    mx.eval(weights)
    mx.save_safetensors(file, weights)
    assert_same_weights(load(tmp_path / "saved")[0], ambiguous_model)


# --- dtypes ---------------------------------------------------------------------------------------------------------


def cast(model, dtype: mx.Dtype) -> ConvNextV2ForImageClassification:
    twin = ConvNextV2ForImageClassification(model.config)
    twin.load_weights([(name, array.astype(dtype)) for name, array in parameters(model).items()])
    return twin.eval()


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("file_format", ["mlx", "huggingface"])
def test_without_a_dtype_the_file_s_is_kept(tmp_path, small_model, stored, file_format):
    model = cast(small_model, DTYPES[stored])
    save(model, tmp_path / "saved", format=file_format)
    assert_same_weights(load(tmp_path / "saved")[0], model)


@pytest.mark.parametrize("wanted", [*DTYPES, mx.float16])
@pytest.mark.parametrize("stored", DTYPES)
def test_weights_are_cast_to_the_dtype_that_is_asked_for(tmp_path, small_model, stored, wanted):
    model = cast(small_model, DTYPES[stored])
    save(model, tmp_path / "saved", format="huggingface")
    assert_same_weights(load(tmp_path / "saved", dtype=wanted)[0], cast(model, DTYPES.get(wanted, wanted)))


def test_a_file_of_mixed_dtypes_keeps_them(copy, small_model):
    change(copy, lambda weights: weights.update({"classifier.bias": weights["classifier.bias"].astype(mx.float16)}))
    loaded = parameters(load(copy)[0])
    assert loaded["classifier.bias"].dtype == mx.float16
    assert {array.dtype for name, array in loaded.items() if name != "classifier.bias"} == {mx.float32}


@pytest.mark.parametrize("dtype", ["float64", "int8", "f16", "", mx.int32, 3])
def test_another_dtype_is_refused_with_those_there_are(hf_folder, dtype):
    with pytest.raises(ValueError, match="float32, float16, bfloat16"):
        load(hf_folder, dtype=dtype)
