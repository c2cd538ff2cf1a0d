"""Weights on disk: strict both ways, spellings and copies, shards, layouts and dtypes."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_files import (
    DTYPES,
    SHARD_BYTES,
    assert_refused,
    assert_same_weights,
    change,
    edit_json,
    header_end,
    parameters,
    read,
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


def all_but(name: str, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: array for key, array in weights.items() if key != name}


def test_a_tensor_of_each_kind_that_is_missing_or_of_another_shape_is_named(copy, small_model):
    original = (copy / "model.safetensors").read_bytes()
    kinds = {re.sub(r"\d+", "N", name): (name, parameter) for name, parameter in parameters(small_model).items()}
    for name, parameter in kinds.values():
        (copy / "model.safetensors").write_bytes(original)
        rewrite(copy, partial(all_but, name))
        assert_refused(copy, "1 missing", name)
        grown = np.zeros((*parameter.shape[:-1], 99), np.float32)
        (copy / "model.safetensors").write_bytes(original)
        rewrite(copy, partial(dict, **{name: grown}))
        assert_refused(copy, "1 mis-shaped", name)


def spoil(weights: dict[str, Any]) -> None:
    del weights[BIAS]
    weights.update({"momentum": mx.zeros(1), "classifier.bias": mx.zeros(9)})


def replace_all(weights: dict[str, Any]) -> None:
    weights.clear()
    weights["conv1.weight"] = mx.zeros((64, 3, 7, 7))


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "all that is wrong is said at once": (
        spoil,
        ("1 missing", BIAS, "1 unexpected", "momentum", "1 mis-shaped", "classifier.bias", "(9,)", "(7,)"),
    ),
    "of many names the first are listed and the others counted": (
        lambda weights: weights.update({f"extra.{i}": mx.zeros(1) for i in range(8)}),
        ("8 unexpected", "extra.0, extra.1, extra.2, extra.3, extra.4 and 3 more"),
    ),
    "a scalar": (lambda weights: weights.update({STEM: mx.array(1.0)}), ("1 mis-shaped", STEM)),
    "a flat convolution": (lambda weights: weights.update({STEM: mx.zeros(8 * 3 * 4 * 4)}), ("1 mis-shaped", STEM)),
    "another model": (replace_all, ("conv1.weight",)),
    "a mixture of schemes": (
        lambda weights: weights.update({"stem.0.weight": mx.zeros(1)}),
        ("mixes the tensor names of Hugging Face and timm",),
    ),
    "no tensors": (lambda weights: weights.clear(), ()),
    "both spellings of a weight": (
        lambda weights: weights.update({f"{GRN}.gamma": weights[f"{GRN}.weight"] + 1}),
        (f"{GRN}.gamma", f"{GRN}.weight"),
    ),
    "both spellings of a bias": (
        lambda weights: weights.update({f"{GRN}.beta": weights[f"{GRN}.bias"] + 1}),
        (f"{GRN}.beta", f"{GRN}.bias"),
    ),
    **{  # names that only look like what training leaves
        name: (partial(dict.update, **{name: mx.zeros(1)}), ("1 unexpected", name))
        for name in ("stateful.weight", "convnextv2.optimizer.weight", "decay.weight", "scalers.scale")
    },
}


@pytest.mark.parametrize(("edit", "words"), WRONG.values(), ids=WRONG)
def test_weights_that_are_not_the_models_are_refused(copy, edit, words):
    change(copy, edit)
    assert_refused(copy, *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depths": [1, 2, 2, 1]}, ("missing", "stages.2.layers.1")),
        ({"depths": [1, 1, 1, 1]}, ("unexpected", "stages.1.layers.1")),
        ({"hidden_sizes": [8, 12, 20, 32]}, ("mis-shaped", "stages.3")),
        ({"num_channels": 1}, ("mis-shaped", STEM)),
        ({"id2label": {"0": "a", "1": "b"}, "label2id": None}, ("mis-shaped", "classifier.weight", "classifier.bias")),
        ({"num_stages": 3, "depths": [1, 2, 1], "hidden_sizes": [8, 12, 20]}, ("unexpected", "stages.3")),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_config_that_does_not_match_is_refused(copy, changes, words):
    edit_json(copy / "config.json", **changes, out_features=None, out_indices=None)
    assert_refused(copy, *words)


def test_a_file_without_a_config_is_not_said_to_differ_from_it(copy):
    change(copy, lambda weights: weights.pop(BIAS))
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="the configuration that their names and shapes tell: 1 missing"):
        load(copy / "model.safetensors")


# --- spellings, what training leaves, and copies --------------------------------------------------------------------


def test_the_older_spelling_of_grn_is_read(copy, small_model):
    def old(name: str) -> str:
        return name.replace("grn.weight", "grn.gamma").replace("grn.bias", "grn.beta")

    rewrite(copy, lambda weights: {old(name): array for name, array in weights.items()})
    assert_same_weights(load(copy)[0], small_model)


LEFTOVERS: dict[str, np.ndarray] = {
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


def test_what_training_leaves_is_dropped_by_name_whatever_its_type(copy, small_model):
    rewrite(copy, lambda weights: {**weights, **LEFTOVERS})
    assert_same_weights(load(copy)[0], small_model)
    assert set(Checkpoint.open(copy).weights.dropped) == set(LEFTOVERS)


def test_many_names_of_one_first_word_are_listed_as_that_word():
    names = ["epoch", *(f"optimizer.state.{i}" for i in range(9)), "scaler.scale", "scaler.step"]
    assert grouped(names) == "epoch, optimizer.* (9 tensors), scaler.scale, scaler.step"


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


@pytest.mark.parametrize(
    ("averaged", "plain", "others"),
    [
        *(
            ("ema.", "model.", {}),
            ("model_ema.", "", {}),
            ("ema_model.", "module.", {}),
            ("ema.module.", "student.", {}),
        ),
        ("module.", "model.", {"n_averaged": np.array(9)}),  # a counter of averages tells which copy is the average
    ],
    ids=str,
)
def test_of_two_copies_the_averaged_one_is_taken_and_the_other_listed(copy, small_model, averaged, plain, others):
    twice(copy, averaged, plain, **others)
    assert_same_weights(load(copy)[0], small_model)
    dropped = {plain + name for name in parameters(small_model)} | set(others)
    assert set(Checkpoint.open(copy).weights.dropped) == dropped


@pytest.mark.parametrize(("first", "second"), [("model.", "module."), ("teacher.", "student."), ("ema.", "model_ema.")])
def test_two_copies_of_which_none_is_the_average_are_refused(copy, first, second):
    twice(copy, first, second)
    assert_refused(copy, "twice", repr(first), repr(second), "save one copy alone")


def test_an_averaged_copy_of_some_weights_is_not_completed_from_the_other(copy):
    original = (copy / "model.safetensors").read_bytes()
    twice(copy, "ema.", "model.")
    rewrite(copy, lambda weights: all_but(f"ema.{BIAS}", weights))
    assert_refused(copy, "the averaged copy, under 'ema.', lacks 1 of the weights", BIAS)
    (copy / "model.safetensors").write_bytes(original)
    rewrite(copy, lambda weights: {**weights, f"ema.{BIAS}": weights[BIAS]})
    assert_refused(copy, "the averaged copy, under 'ema.', lacks", "save one whole copy alone")


# --- shards ---------------------------------------------------------------------------------------------------------


def test_a_shard_that_is_not_there_is_named(shards):
    missing = sorted(shards.glob("*.safetensors"))[1]
    missing.unlink()
    with pytest.raises(FileNotFoundError, match=missing.name):
        load(shards)


def test_a_tensor_is_in_one_shard_and_shards_have_one_layout(shards):
    first, second = sorted(file.name for file in shards.glob("*.safetensors"))[:2]
    taken = next(iter(read(shards / first)[0]))
    original = (shards / second).read_bytes()
    change(shards, lambda weights: weights.update({taken: mx.zeros(1)}), second)
    assert_refused(shards, taken, "more than one file")
    (shards / second).write_bytes(original)
    mx.save_safetensors(str(shards / second), read(shards / second)[0], {"format": "mlx"})
    assert_refused(shards, "mlx", "pt")
    (shards / second).write_bytes(original)
    change(shards, lambda weights: weights.pop(taken), first)
    assert_refused(shards, "1 missing", taken)


# --- layouts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ambiguous_model() -> ConvNextV2ForImageClassification:
    """A model whose convolution weights have shapes that fit both layouts: (2, 3, 3, 3), (2, 2, 2, 2)."""
    config = ConvNextV2Config(
        patch_size=3, num_channels=3, num_stages=2, hidden_sizes=[2, 2], depths=[1, 1], num_labels=3
    )
    model = randomize(ConvNextV2ForImageClassification(config))
    shapes = {name: array.shape for name, array in parameters(model).items()}
    assert shapes[STEM] == (2, 3, 3, 3)
    assert shapes["convnextv2.encoder.stages.1.downsampling_layer.1.weight"] == (2, 2, 2, 2)
    return model


# The names of PyTorch's convolutions; everything else lies on disk alike.
CONVOLUTIONS = ("patch_embeddings.weight", "downsampling_layer.1.weight", "dwconv.weight")


@pytest.mark.parametrize("name", ["small_model", "ambiguous_model"])
def test_a_hugging_face_file_holds_convolutions_channels_first_and_an_mlx_file_as_they_are(tmp_path, request, name):
    model = request.getfixturevalue(name)
    save(model, tmp_path / "mlx")
    save(model, tmp_path / "huggingface", format="huggingface")
    mlx, metadata = read(tmp_path / "mlx" / "model.safetensors")
    assert metadata["format"] == "mlx"
    huggingface, metadata = read(tmp_path / "huggingface" / "model.safetensors")
    assert metadata["format"] == "pt"
    assert set(mlx) == set(huggingface) == set(parameters(model))
    for key, parameter in parameters(model).items():
        assert mx.array_equal(mlx[key], parameter)
        expected = mx.einsum("ohwi->oihw", parameter) if key.endswith(CONVOLUTIONS) else parameter
        assert mx.array_equal(huggingface[key], expected)


def test_nothing_is_transposed_twice_however_often_it_is_saved_and_loaded(tmp_path, ambiguous_model):
    model = ambiguous_model
    for number, file_format in enumerate(["mlx", "mlx", "huggingface", "huggingface", "mlx"]):
        save(model, tmp_path / str(number), format=file_format)
        model, _ = load(tmp_path / str(number))
        assert_same_weights(model, ambiguous_model)


def test_a_file_that_states_no_format_is_in_pytorch_layout(tmp_path, ambiguous_model):
    save(ambiguous_model, tmp_path / "saved", format="huggingface")
    file = tmp_path / "saved" / "model.safetensors"
    mx.save_safetensors(str(file), read(file)[0])
    assert_same_weights(load(tmp_path / "saved")[0], ambiguous_model)


# --- dtypes ---------------------------------------------------------------------------------------------------------


def cast(model: ConvNextV2ForImageClassification, dtype: mx.Dtype) -> ConvNextV2ForImageClassification:
    twin = ConvNextV2ForImageClassification(model.config)
    twin.load_weights([(name, array.astype(dtype)) for name, array in parameters(model).items()])
    return twin


@pytest.mark.parametrize("stored", DTYPES)
def test_weights_are_cast_to_the_dtype_that_is_asked_for(tmp_path, small_model, stored):
    model = cast(small_model, DTYPES[stored])
    save(model, tmp_path / "saved", format="huggingface")
    for wanted, dtype in [(None, DTYPES[stored]), *DTYPES.items(), (mx.float16, mx.float16)]:
        assert_same_weights(load(tmp_path / "saved", dtype=wanted)[0], cast(model, dtype))
    # and from a file that MLX itself refuses
    file = tmp_path / "saved" / "model.safetensors"
    header, data = file.read_bytes()[8 : header_end(file)], file.read_bytes()[header_end(file) :]
    leftover = b', "scaler.scale": {"dtype": "F64", "shape": [1], "data_offsets": [%d, %d]}}' % (
        len(data),
        len(data) + 8,
    )
    write_parts(file, header.rstrip()[:-1] + leftover, data + b"\0" * 8)
    assert_same_weights(load(tmp_path / "saved")[0], model)


def test_a_file_of_mixed_dtypes_keeps_them(copy):
    change(copy, lambda weights: weights.update({"classifier.bias": weights["classifier.bias"].astype(mx.float16)}))
    loaded = parameters(load(copy)[0])
    assert loaded["classifier.bias"].dtype == mx.float16
    assert {array.dtype for name, array in loaded.items() if name != "classifier.bias"} == {mx.float32}


@pytest.mark.parametrize("dtype", ["float64", "int8", "f16", "", mx.int32, 3])
def test_another_dtype_is_refused_with_those_there_are(hf_folder, dtype):
    with pytest.raises(ValueError, match="float32, float16, bfloat16"):
        load(hf_folder, dtype=dtype)
