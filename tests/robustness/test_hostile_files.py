"""Files made to break the reader: always a sentence, never another exception, a hang or much memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_files import INDEX, SHARD_BYTES, as_timm, assert_same_weights, header_end, parts, write_parts
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load_file, save_file

from mlx_convnextv2 import load, save
from mlx_convnextv2.conversion.convert import convert

CHARACTERS = 2000  # a long sentence with a path in it
BIG = 200_000_000  # bytes, where a file is to be hundreds of megabytes

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*has no preprocessor_config"),
    pytest.mark.filterwarnings("ignore:.*has no final norm"),
]
many = settings(max_examples=25, derandomize=True)


def outcome(read: Callable[..., Any], *arguments: object) -> str | None:
    """The sentence of the error, or None: anything but a ValueError or OSError passes through and fails the test."""
    try:
        result = read(*arguments)
        if isinstance(result, tuple):
            mx.eval(result[0].parameters())
        message = None
    except (ValueError, OSError) as error:
        message = str(error)
        assert message
        assert len(message) < CHARACTERS, f"{len(message)} characters: {message[:200]}"
    return message


def refused(folder: Path, *words: str) -> None:
    message = outcome(load, folder)
    assert message is not None
    for word in (str(folder), *words):
        assert word in message


@pytest.fixture(scope="session")
def timm_folder(small_model, tmp_path_factory) -> Path:
    """The small model under timm's names, with timm's config.json."""
    folder = tmp_path_factory.mktemp("checkpoints") / "timm"
    folder.mkdir()
    save_file(as_timm(small_model), folder / "model.safetensors", {"format": "pt"})
    pretrained_cfg = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "license": "mit"}
    values = {"architecture": "convnextv2_x", "num_classes": 7, "model_args": {}, "pretrained_cfg": pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(values))
    load(folder)  # it is whole before anybody spoils it
    return folder


@pytest.fixture
def timm_copy(timm_folder, tmp_path) -> Path:
    return Path(shutil.copytree(timm_folder, tmp_path / "timm"))


# --- JSON -----------------------------------------------------------------------------------------------------------

# 1e400 is read as infinity; \ud800 is half a character, which no file can hold; 10**400 is no float.
LITERALS = [
    *("null", "true", "-1", "0", "1.5", "1e400", "NaN", "1000000000", f"1{'0' * 400}", '"x"', '"\\u0000"', '"\\ud800"'),
    *("[]", "{}", "[[[]]]", "[1]", '["a", 1]', "[1e400, 1e400, 1e400]", '{"0": []}'),
    f"[{', '.join(['1000000000'] * 4)}]",
]
CONFIG = ["num_channels", "patch_size", "num_stages", "hidden_sizes", "depths", "hidden_act", "layer_norm_eps"]
CONFIG += ["drop_path_rate", "image_size", "out_features", "out_indices", "num_labels", "id2label", "label2id"]
CONFIG += ["problem_type", "return_dict", "model_type", "architecture", "quantization", "pretrained_cfg", "torch_dtype"]
PROCESSOR = ["do_resize", "size", "crop_pct", "crop_mode", "resample", "rescale_factor", "image_mean", "image_std"]
PROCESSOR += ["image_processor_type", "do_center_crop", "surprise"]
TIMM = ["architecture", "pretrained_cfg", "model_args", "label_names", "label_descriptions", "num_classes"]
PRETRAINED_CFG = ["input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "license"]
MODEL_ARGS = ["depths", "norm_eps", "act_layer", "global_pool", "output_stride", "kernel_sizes"]
JSON_FILES = [
    *(("hf", "config.json", (), CONFIG), ("hf", "preprocessor_config.json", (), PROCESSOR)),
    *(("timm", "config.json", (), TIMM), ("timm", "config.json", ("pretrained_cfg",), PRETRAINED_CFG)),
    ("timm", "config.json", ("model_args",), MODEL_ARGS),
]
PLACES = [(source, file, (*inside, key)) for source, file, inside, keys in JSON_FILES for key in keys]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def put(file: Path, place: tuple[str, ...], literal: str | None) -> None:
    """Put a literal, which json.dumps may not be able to write, at a place; None takes the place out."""
    values = json.loads(file.read_text())
    inside = values
    for name in place[:-1]:
        inside = inside.setdefault(name, {})
    inside.pop(place[-1], None)
    if literal is not None:
        inside[place[-1]] = "@literal@"
    file.write_text(json.dumps(values).replace('"@literal@"', literal or ""))


def read_and_convert(whole: Path, name: str, place: tuple[str, ...], literal: str | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(whole, Path(temporary) / "net")
        put(folder / name, place, literal)
        if outcome(load, folder) is None:
            outcome(convert, folder, folder.parent / "out")


@many
@given(place=st.sampled_from(PLACES), literal=st.none() | st.sampled_from(LITERALS) | json_values.map(json.dumps))
def test_any_json_value_in_any_place_is_a_sentence_or_does_no_harm(hf_folder, timm_folder, place, literal):
    source, name, inside = place
    read_and_convert(hf_folder if source == "hf" else timm_folder, name, inside, literal)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0]}-{'.'.join(place[2])}")
def test_each_json_value_in_each_place_is_a_sentence_or_does_no_harm(place, hf_folder, timm_folder):
    source, name, inside = place
    for literal in [None, *LITERALS]:
        read_and_convert(hf_folder if source == "hf" else timm_folder, name, inside, literal)


def test_half_a_character_in_a_label_is_converted(copy, tmp_path):
    put(copy / "config.json", ("id2label", "3"), r'"\ud800"')
    assert outcome(convert, copy, tmp_path / "out") is None
    assert load(tmp_path / "out")[0].config.id2label[3] == "\ud800"


def test_timm_s_labels_are_a_list_or_a_map_and_its_descriptions_stand_for_them(timm_copy):
    names = [f"n{i}" for i in range(7)]
    for value in (names, dict(enumerate(names))):
        put(timm_copy / "config.json", ("label_names",), json.dumps(value))
        assert load(timm_copy)[0].config.id2label == dict(enumerate(names))
    put(timm_copy / "config.json", ("label_descriptions",), json.dumps({f"n{i}": f"thing {i}" for i in range(6)}))
    assert load(timm_copy)[0].config.id2label == {**{i: f"thing {i}" for i in range(6)}, 6: "n6"}


def test_norms_of_timm_s_with_another_epsilon_are_refused(timm_copy):
    """It would be that of every norm, and only the final one's can be told to our model."""
    for eps in ("null", "1e-6"):
        put(timm_copy / "config.json", ("model_args", "norm_eps"), eps)
        load(timm_copy)
    put(timm_copy / "config.json", ("model_args", "norm_eps"), "1e-5")
    refused(timm_copy, "norm_eps")


@pytest.mark.parametrize(
    "values",
    [
        *({"hidden_sizes": [10**9] * 4}, {"depths": [10**9] * 4}, {"num_stages": 10**9}, {"patch_size": 10**9}),
        *({"num_channels": 10**9}, {"num_labels": 10**9, "id2label": None}, {"image_size": 10**9}),
        *({"hidden_sizes": [65_536] * 4, "num_channels": 65_536, "patch_size": 65_536}, {"depths": [1024] * 4}),
    ],
    ids=str,
)
def test_a_model_of_enormous_sizes_is_refused(copy, values):
    for key, value in values.items():
        put(copy / "config.json", (key,), json.dumps(value))
    refused(copy, "config.json")


WHOLE_FILES = [
    *(b"", b"\0" * 100, b"\xff\xfe\0", b"[]", b"null", b"3", b'"x"', b"NaN", b"{", b'{"a":' * 100_000, b"[" * 100_000),
    *(b"9" * 5000, "{}".encode("utf-16")),
]


@pytest.mark.parametrize("content", WHOLE_FILES, ids=lambda content: repr(content[:8]))
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
def test_a_json_file_that_is_no_object_is_named(copy, name, content):
    (copy / name).write_bytes(content)
    if name.startswith("model"):
        (copy / "model.safetensors").unlink()
    refused(copy, name)


def test_deep_nesting_that_can_be_read_can_be_converted_or_is_a_sentence(copy, tmp_path):
    whole = (copy / "config.json").read_text()
    for depth in (200, 950, 990):
        (copy / "config.json").write_text(whole)
        put(copy / "config.json", ("surprise",), "[" * depth + "]" * depth)
        outcome(convert, copy, tmp_path / str(depth))


def test_a_quantization_entry_of_unquantized_weights_is_no_obstacle_and_no_claim(copy, tmp_path):
    put(copy / "config.json", ("quantization",), '{"group_size": 32.0, "bits": 4.0, "mode": "affine"}')
    message = outcome(convert, copy, tmp_path / "out")
    assert message is None or "quantization" in message
    assert message is not None or "quantized" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("layer", ["classifier", "convnextv2.encoder.stages.0.layers.0.dwconv", "nowhere"])
def test_scales_with_a_quantization_entry_of_nonsense_are_refused(mlx_folder, tmp_path, layer):
    folder = shutil.copytree(mlx_folder, tmp_path / "net")
    weights = load_file(folder / "model.safetensors")
    weights[f"{layer}.scales"] = np.zeros((7, 1), np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "mlx"})
    changes: list[dict[str, Any]] = [{"group_size": 64}, {"group_size": 32.0}, {"bits": {}}, {"mode": []}]
    for change in [*changes, {layer: []}, {layer: {"group_size": {}}}]:
        entry = {"group_size": 32, "bits": 4, "mode": "affine", **change}
        put(folder / "config.json", ("quantization",), json.dumps(entry))
        refused(folder)


# --- safetensors ----------------------------------------------------------------------------------------------------


@many
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=8))
def test_flipped_bits_and_a_cut_end_are_a_sentence_or_a_model(hf_folder, flips):
    content = bytearray((hf_folder / "model.safetensors").read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for where, bit in flips:
        content[int(where * header)] ^= 1 << bit
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(hf_folder, Path(temporary) / "net")
        (folder / "model.safetensors").write_bytes(content)
        outcome(load, folder)
        (folder / "model.safetensors").write_bytes(content[: int(flips[0][0] * len(content))])
        refused(folder, "model.safetensors")


BAD_HEADERS = [
    *(b"", b"null", b"{", b"\xff" * 16, b"[" * 100_000),
    b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 99999999]}}',
    b'{"a": {"dtype": "F32", "shape": [4611686018427387905, 4], "data_offsets": [0, 16]}}',  # 2**64 + 4 elements
    b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'  # a name twice
    b' "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
]


@pytest.mark.parametrize("header", BAD_HEADERS, ids=lambda header: repr(header[:64]))
def test_a_header_that_makes_no_sense_is_refused(copy, header):
    write_parts(copy / "model.safetensors", header, b"\0" * 8)
    refused(copy, "model.safetensors", "truncated or corrupt")


def test_a_file_that_ends_at_a_boundary_or_goes_on_is_refused(copy):
    file = copy / "model.safetensors"
    whole, header = file.read_bytes(), header_end(file)
    cut = [whole[:end] for end in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, -1)]
    for content in [*cut, whole + b"\0", struct.pack("<Q", 10**9) + whole[8:]]:
        file.write_bytes(content)
        refused(copy, "model.safetensors", "truncated or corrupt")


def test_a_truncated_shard_is_named_in_the_error(tmp_path, small_model):
    save(small_model, tmp_path / "shards", format="huggingface", max_shard_bytes=SHARD_BYTES)
    file = sorted((tmp_path / "shards").glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-1])
    refused(tmp_path / "shards", file.name, "truncated or corrupt")


def test_the_order_of_the_names_in_a_header_does_not_matter(copy, small_model):
    header, tensors = parts(copy / "model.safetensors")
    write_parts(copy / "model.safetensors", dict(reversed(header.items())), tensors)
    assert_same_weights(load(copy)[0], small_model)


@pytest.mark.parametrize("stored", ["F64", "I32", "I64", "U8", "I8", "BOOL", "U16"])
def test_a_tensor_of_another_type_is_named_with_its_type(copy, stored):
    size = {"64": 8, "32": 4, "16": 2}.get(stored[-2:], 1)
    header = {"classifier.bias": {"dtype": stored, "shape": [7], "data_offsets": [0, 7 * size]}}
    write_parts(copy / "model.safetensors", header, bytes(7 * size))
    refused(copy, "classifier.bias", stored, "float32, float16, bfloat16")


# Without a config.json the names and shapes tell the configuration. Zero-sized tensors make a file small.
NAMES = {
    "a_stage_of_a_billion": {f"stages.{10**9}.blocks.0.conv_dw.weight": (0,)},
    "a_stage_of_5000_digits": {f"stages.{'9' * 5000}.blocks.0.conv_dw.weight": (0,)},
    "a_block_of_a_billion": {f"stages.0.blocks.{10**9}.conv_dw.weight": (0,)},
    "a_block_that_is_skipped": {"stages.4.blocks.1.conv_dw.weight": (0,)},
    "a_stage_of_a_scalar": {"stages.4.blocks.0.conv_dw.weight": ()},
    "a_stage_without_channels": {"stages.4.blocks.0.conv_dw.weight": (0, 1, 7, 7)},
    "a_head_of_a_scalar": {"head.fc.weight": ()},
    "a_head_of_two_billion": {"head.fc.weight": (2**31, 0)},
    "a_stem_without_sides": {"stem.0.weight": (0, 0, 0, 0)},
    "a_stem_of_a_scalar": {"stem.0.weight": ()},
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_names_and_shapes_that_tell_no_configuration_are_refused(timm_copy, names):
    file = timm_copy / "model.safetensors"
    header, tensors = parts(file)
    kept = {name: entry for name, entry in header.items() if name not in names}
    data = b""
    for name, entry in kept.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = [len(data), len(data) + end - begin]
            data += tensors[begin:end]
    for name, shape in names.items():
        size = 4 if shape == () else 0
        kept[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + size]}
        data += b"\0" * size
    write_parts(file, kept, data)
    refused(file)


SHARDS = [
    *(
        "../x.safetensors",
        "/etc/passwd",
        "link/x.safetensors",
        "below/x.safetensors",
        "..",
        ".safetensors",
        "",
        None,
        3,
    ),
    *("a\0.safetensors", "model.safetensors\n", "a\\b.safetensors", "x" * 5000, "model.bin", ["x.safetensors"]),
]


@pytest.mark.parametrize("shard", SHARDS, ids=lambda shard: repr(shard)[:20])
def test_an_index_names_safetensors_files_beside_it_and_no_others(copy, shard):
    (copy / "below").mkdir()
    (copy / "link").symlink_to(copy.parent)
    for folder in (copy.parent, copy / "below"):
        shutil.copy(copy / "model.safetensors", folder / "x.safetensors")
    (copy / "model.safetensors").unlink()
    (copy / INDEX).write_text(json.dumps({"weight_map": {"classifier.bias": shard}}))
    refused(copy, INDEX, "safetensors file beside it")


@many
@given(content=json_values | st.fixed_dictionaries({"weight_map": json_values}))
def test_an_index_of_any_other_shape_is_refused(hf_folder, content):
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(hf_folder, Path(temporary) / "net")
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        refused(folder)


# --- memory, time and the process itself ----------------------------------------------------------------------------


def all_stages_deep(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values.update(num_stages=64, hidden_sizes=[8] * 64, depths=[1024] * 64, out_features=None, out_indices=None)
    (folder / "config.json").write_text(json.dumps({**values, "stage_names": None}))


def a_header_of_90_megabytes(folder: Path) -> None:
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    write_parts(folder / "model.safetensors", b"{" + b",".join(entry % i for i in range(1_600_000)) + b"}", b"")


def a_header_length_of_a_gigabyte(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", 10**9))
        file.truncate(2 * 10**9)  # which is really there, in a file of holes


def an_index_of_a_million_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {str(i): f"model-{i}.safetensors" for i in range(10**6)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# (what is done to the checkpoint, whether it can be converted in spite of it)
HEAVY: dict[str, tuple[Callable[[Path], object], bool]] = {
    "config_of_holes": (lambda f: os.truncate(f / "config.json", 10 * BIG), False),
    "config_of_spaces": (lambda f: (f / "config.json").write_bytes(b" " * BIG), False),
    "config_of_lists": (lambda f: (f / "config.json").write_bytes(b"[" + b"[]," * (BIG // 3) + b"0]"), False),
    "preprocessor_of_holes": (lambda f: os.truncate(f / "preprocessor_config.json", 10 * BIG), False),
    "all_stages_deep": (all_stages_deep, False),
    "nested_lists": (  # valid JSON just below the size that is read
        lambda f: put(f / "config.json", ("kept",), "[" + ",".join(["[[[[[]]]]]"] * 340_000) + "]"),
        False,
    ),
    "a_million_labels": (
        lambda f: put(f / "config.json", ("id2label",), json.dumps({str(i): str(i) for i in range(10**6)})),
        False,
    ),
    "a_header_of_90_megabytes": (a_header_of_90_megabytes, False),
    "a_header_length_of_a_gigabyte": (a_header_length_of_a_gigabyte, False),
    "an_index_of_a_million_shards": (an_index_of_a_million_shards, False),
    "card_of_50_megabytes": (
        lambda f: (f / "README.md").write_bytes(b"---\nlicense: " + b"[" * 50_000_000 + b"\n---\n"),
        True,
    ),
}


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))


# A process of its own takes a second.
FEW = ("config_of_holes", "a_header_length_of_a_gigabyte")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in HEAVY])
def test_a_heavy_file_is_refused_before_it_fills_the_memory(copy, tmp_path, run_process, name):
    spoil, convertible = HEAVY[name]
    spoil(copy)
    result = run_process("convert", "--hf-path", copy, "--mlx-path", tmp_path / "out", preexec_fn=limit)
    assert result.returncode == (0 if convertible else 2), result.stderr[-1000:]
    assert "Traceback" not in result.stderr
    assert len(result.stderr) < CHARACTERS
    assert "not enough memory" not in result.stderr  # it was refused before it took any
    assert len(result.stderr.splitlines()) == (0 if convertible else 1)
    assert (tmp_path / "out").exists() == convertible
