"""Files made to break the reader: always a sentence, never another exception, a hang or much memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import yaml
from checkpoint_files import INDEX, as_timm, assert_same_weights, parts, write_parts
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load_file, save_file

from mlx_convnextv2 import load
from mlx_convnextv2.checkpoints.model_card import read_licence
from mlx_convnextv2.conversion.convert import convert

CHARACTERS = 2000  # a long sentence with a path in it
BIG = 200_000_000  # bytes, where a file is to be hundreds of megabytes

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*has no preprocessor_config"),
    pytest.mark.filterwarnings("ignore:.*has no final norm"),
]
many = settings(max_examples=150, deadline=None, derandomize=True)


def outcome(read, *arguments, **options) -> str | None:
    """The sentence of the error, or None: anything but a ValueError or OSError passes through and fails the test."""
    try:
        result = read(*arguments, **options)
        if isinstance(result, tuple):
            mx.eval(result[0].parameters())
        message = None
    except (ValueError, OSError) as error:
        message = str(error)
        assert message
        assert len(message) < CHARACTERS, f"{len(message)} characters: {message[:200]}"
    return message


def refused(folder: Path, *words: str, read=load, **options) -> None:
    message = outcome(read, folder, **options)
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
    *(
        "[]",
        "{}",
        "[[[]]]",
        "[1]",
        '["a", 1]',
        "[1e400, 1e400, 1e400]",
        '{"0": []}',
        f"[{', '.join(['1000000000'] * 4)}]",
    ),
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


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", range(len(PLACES)), ids=[f"{p[0]}-{'.'.join(p[2])}" for p in PLACES])
def test_a_json_value_that_makes_no_sense_is_a_sentence_or_does_no_harm(number, step, request, tmp_path):
    source, name, place = PLACES[number]
    folder = shutil.copytree(request.getfixturevalue(f"{source}_folder"), tmp_path / "net")
    whole = (folder / name).read_text()
    for literal in [None, *LITERALS[number % step :: step]]:
        (folder / name).write_text(whole)
        put(folder / name, place, literal)
        try:
            if outcome(load, folder) is None:
                outcome(convert, folder, tmp_path / "out", overwrite=True)
        except BaseException as error:
            error.args = (f"{'.'.join(place)} = {literal}: {type(error).__name__}: {error}",)
            raise


@many
@given(place=st.sampled_from(PLACES), value=json_values)
def test_any_json_value_in_any_place_is_a_sentence_or_does_no_harm(hf_folder, timm_folder, place, value):
    source, name, inside = place
    with tempfile.TemporaryDirectory() as temporary:
        folder = shutil.copytree(hf_folder if source == "hf" else timm_folder, Path(temporary) / "net")
        put(folder / name, inside, json.dumps(value))
        outcome(load, folder)


def test_half_a_character_in_a_label_is_converted(copy, tmp_path):
    put(copy / "config.json", ("id2label", "3"), r'"\ud800"')
    assert outcome(convert, copy, tmp_path / "out") is None
    assert load(tmp_path / "out")[0].config.id2label[3] == "\ud800"


@pytest.mark.parametrize("key", ["input_size", "mean", "std"])
def test_a_timm_config_without_a_value_that_is_needed_is_named(timm_copy, key):
    put(timm_copy / "config.json", ("pretrained_cfg", key), None)
    message = outcome(load, timm_copy)
    assert message is None or (key in message and str(timm_copy) in message)  # a default is as good


@pytest.mark.parametrize("names", [[f"l{i}" for i in range(7)], {str(i): f"l{i}" for i in range(7)}], ids=type)
def test_timm_s_label_names_are_a_list_or_a_dictionary(timm_copy, names):
    put(timm_copy / "config.json", ("label_names",), json.dumps(names))
    assert load(timm_copy)[0].config.id2label == {i: f"l{i}" for i in range(7)}


def test_timm_s_descriptions_stand_for_its_label_names(timm_copy):
    put(timm_copy / "config.json", ("label_names",), json.dumps([f"n{i}" for i in range(7)]))
    put(timm_copy / "config.json", ("label_descriptions",), json.dumps({f"n{i}": f"thing {i}" for i in range(6)}))
    expected = {**{i: f"thing {i}" for i in range(6)}, 6: "n6"}
    assert load(timm_copy)[0].config.id2label == expected


@pytest.mark.parametrize(("eps", "reads"), [("null", True), ("1e-6", True), ("1e-5", False)])
def test_norms_of_timm_s_with_another_epsilon_are_refused(timm_copy, eps, reads):
    """It would be that of every norm, and only the final one's can be told to our model."""
    put(timm_copy / "config.json", ("model_args", "norm_eps"), eps)
    assert load(timm_copy) if reads else refused(timm_copy, "norm_eps") is None


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


@pytest.mark.parametrize("key", ["hidden_act", "model_type", "hidden_sizes", "depths", "patch_size", "out_features"])
@pytest.mark.parametrize("value", ['"' + "x" * 100_000 + '"', f"[{','.join(['9'] * 100_000)}]"], ids=["text", "list"])
def test_a_long_value_is_not_repeated_at_length_in_the_error(copy, key, value):
    put(copy / "config.json", (key,), value)
    refused(copy, "config.json")


def test_deep_nesting_that_can_be_read_can_be_converted_or_is_a_sentence(copy, tmp_path):
    whole = (copy / "config.json").read_text()
    for depth in (200, 400, 600, 800, 900, 950, 980, 990):
        (copy / "config.json").write_text(whole)
        put(copy / "config.json", ("surprise",), "[" * depth + "]" * depth)
        outcome(convert, copy, tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("entry", ["{}", "null", '{"bits": 4}', '{"group_size": 32.0, "bits": 4.0, "mode": "affine"}'])
def test_a_quantization_entry_of_unquantized_weights_is_no_obstacle_and_no_claim(copy, tmp_path, entry):
    put(copy / "config.json", ("quantization",), entry)
    message = outcome(convert, copy, tmp_path / "out")
    assert message is None or "quantization" in message
    assert message is not None or "quantized" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("layer", ["classifier", "convnextv2.encoder.stages.0.layers.0.dwconv", "nowhere"])
def test_scales_with_a_quantization_entry_of_nonsense_are_refused(mlx_folder, tmp_path, layer):
    folder = shutil.copytree(mlx_folder, tmp_path / "net")
    weights = load_file(folder / "model.safetensors")
    weights[f"{layer}.scales"] = np.zeros((7, 1), np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "mlx"})
    entry = {"group_size": 32, "bits": 4, "mode": "affine"}
    changes = [{"group_size": 64}, {"group_size": 32.0}, {"bits": 4.0}, {"bits": {}}, {"mode": []}, {layer: []}]
    entries = [{**entry, **change} for change in [*changes, {layer: {"group_size": {}}}]]
    for literal in [*LITERALS, *map(json.dumps, entries)]:
        put(folder / "config.json", ("quantization",), literal)
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


def test_the_order_of_the_names_in_a_header_does_not_matter(copy, small_model):
    header, tensors = parts(copy / "model.safetensors")
    write_parts(copy / "model.safetensors", dict(reversed(header.items())), tensors)
    assert_same_weights(load(copy)[0], small_model)


@pytest.mark.parametrize("key", ["x" * 100_000, "module." * 50_000, "a\0b", "\x1b[2J\n\n", "", "stem.0.é" * 9])
def test_odd_tensor_names_are_a_sentence(copy, run, key):
    header, tensors = parts(copy / "model.safetensors")
    header[key] = {"dtype": "F32", "shape": [0], "data_offsets": [len(tensors)] * 2}
    write_parts(copy / "model.safetensors", header, tensors)
    refused(copy)
    result = run("convert", "--hf-path", copy, "--mlx-path", copy.parent / "out")
    assert result.returncode == 2
    assert result.stderr.endswith("\n")
    assert result.stderr[:-1].isprintable()  # one line, and nothing that a terminal obeys


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
    *("../x.safetensors", "/etc/passwd", "link/x.safetensors", "below/x.safetensors", "..", ".", ".safetensors", ""),
    *(
        "a\0.safetensors",
        "model.safetensors\n",
        "a\\b.safetensors",
        "x" * 5000,
        "model.bin",
        None,
        3,
        ["x.safetensors"],
    ),
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


# --- model cards ----------------------------------------------------------------------------------------------------

LICENCES = [
    *("3", "{a: b}", "[a, [b]]", "2001-99-99", "!!bool x", "!!int x", "!!python/name:os.system", "0x", "*nothing"),
    *("[" * 5000, "{" * 5000, '"a\\n---\\nbase_model: b"', '"\\e[2J"', "'" + "x" * 50_000 + "'", "<<: 3", "9" * 5000),
]


def licence(folder: Path, content: bytes) -> str | None:
    (folder / "README.md").write_bytes(content)
    return read_licence(folder)


@pytest.fixture
def given_to_yaml(monkeypatch) -> list[str]:
    """What is handed to PyYAML, whose time grows with the square of nested brackets, and without end with aliases."""
    given, safe_load = [], yaml.safe_load
    monkeypatch.setattr(yaml, "safe_load", lambda text: given.append(text) or safe_load(text))
    return given


@pytest.mark.parametrize("text", LICENCES, ids=lambda text: text[:24])
def test_a_licence_is_a_short_line_or_none(copy, tmp_path, text, given_to_yaml):
    stated = licence(copy, f"---\nlicense: {text}\n---\n".encode())
    assert stated is None or (stated.isprintable() and len(stated) < 500)
    assert outcome(convert, copy, tmp_path / "out") is None  # a card is no reason not to convert
    if stated is not None:
        assert f"license: {stated}\n" in (tmp_path / "out" / "README.md").read_text()
    assert all(len(text) <= 300 for text in given_to_yaml)


# Nine times nine ... lists of one another, 9**9 letters when written out; and merges that double at every line.
ALIASES = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
DOUBLING = [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40)]


@pytest.mark.parametrize("lines", [["a0: &a0 x", *ALIASES], ["a0: &a0 {k: v}", *DOUBLING]], ids=["lists", "merges"])
def test_what_else_is_in_a_card_s_header_is_not_read(tmp_path, lines, given_to_yaml):
    header = "\n".join([*lines, "license: mit", "widget:", *lines])
    assert licence(tmp_path, f"---\n{header}\n---\n".encode()) == "mit"
    assert given_to_yaml == ["license: mit"]


def test_a_licence_that_refers_to_something_is_not_read(tmp_path, given_to_yaml):
    lines = "\n".join(f"  {line}" for line in DOUBLING[:9])
    assert licence(tmp_path, f"---\nlicense:\n  a0: &a0 {{k: v}}\n{lines}\n---\n".encode()) is None
    assert given_to_yaml == []


@many
@given(header=st.text(max_size=60) | st.binary(max_size=60))
def test_any_card_states_a_short_line_or_nothing(tmp_path_factory, header):
    content = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    stated = licence(tmp_path_factory.getbasetemp(), b"---\nlicense: " + content + b"\n---\n")
    assert stated is None or (stated.isprintable() and len(stated) < 500)


# --- memory, time and the process itself ----------------------------------------------------------------------------


def all_stages_deep(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    values.update(num_stages=64, hidden_sizes=[8] * 64, depths=[1024] * 64, out_features=None, out_indices=None)
    (folder / "config.json").write_text(json.dumps({**values, "stage_names": None}))


def nested_lists(folder: Path) -> None:
    """Valid JSON just below the size that is read."""
    put(folder / "config.json", ("kept",), "[" + ",".join(["[[[[[]]]]]"] * 340_000) + "]")


def a_million_labels(folder: Path) -> None:
    put(folder / "config.json", ("id2label",), json.dumps({str(i): str(i) for i in range(10**6)}))


def card(licence: bytes):
    return lambda folder: (folder / "README.md").write_bytes(b"---\nlicense: " + licence + b"\n---\n")


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
HEAVY = {
    "config_of_holes": (lambda f: os.truncate(f / "config.json", 10 * BIG), False),
    "config_of_spaces": (lambda f: (f / "config.json").write_bytes(b" " * BIG), False),
    "config_of_lists": (lambda f: (f / "config.json").write_bytes(b"[" + b"[]," * (BIG // 3) + b"0]"), False),
    "preprocessor_of_holes": (lambda f: os.truncate(f / "preprocessor_config.json", 10 * BIG), False),
    "all_stages_deep": (all_stages_deep, False),
    "nested_lists": (nested_lists, False),
    "a_million_labels": (a_million_labels, False),
    "a_header_of_90_megabytes": (a_header_of_90_megabytes, False),
    "a_header_length_of_a_gigabyte": (a_header_length_of_a_gigabyte, False),
    "an_index_of_a_million_shards": (an_index_of_a_million_shards, False),
    "card_of_50_megabytes": (card(b"x" * 50_000_000), True),
    "card_of_a_long_list": (card(b"[" + b"a," * 400_000 + b"a]"), True),
    "card_of_brackets": (card(b"[" * 1_000_000), True),
    "card_of_aliases": (
        lambda f: (f / "README.md").write_text("\n".join(["---\na0: &a0 x", *ALIASES, "license: *a9\n---\n"])),
        True,
    ),
}


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))


# A process of its own takes a second.
FEW = ("config_of_lists", "a_header_length_of_a_gigabyte", "card_of_aliases")


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
