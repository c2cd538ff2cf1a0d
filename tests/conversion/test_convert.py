"""`convert` as a user runs it: what it writes and prints, and each bad input, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT
from mlx.utils import tree_flatten

from mlx_convnextv2 import load, save

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, links not followed, and what is in it."""
    files = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


def assert_fails(result: subprocess.CompletedProcess, *words: str) -> None:
    """Status 2 and one line on stderr, which has these words."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("convert: error: ")
    for word in words:
        assert word in result.stderr


@pytest.fixture
def source(hf_folder, tmp_path) -> Path:
    """A Hugging Face checkpoint that a test may change, alone in a folder."""
    return Path(shutil.copytree(hf_folder, tmp_path / "sources" / "my-net"))


@pytest.fixture
def out(tmp_path) -> Path:
    """A path that is free, alone in a folder."""
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "out"


@pytest.fixture
def convert(run):
    def convert(source: object, out: object, *arguments: object, **options) -> subprocess.CompletedProcess:
        return run("convert", "--hf-path", source, "--mlx-path", out, *arguments, **options)

    return convert


# --- what it does ---------------------------------------------------------------------------------------------------


def test_a_converted_checkpoint_is_the_model_and_a_line_says_what_was_written(convert, source, out, small_model):
    before = content(source)
    result = convert(source, out)
    assert (result.returncode, result.stderr) == (0, "")
    weights = dict(tree_flatten(small_model.parameters()))
    count = sum(array.size for array in weights.values())
    megabytes = (out / "model.safetensors").stat().st_size / 1e6
    summary = f"{count:,} parameters in {len(weights)} tensors, float32, {megabytes:.1f} MB"
    assert result.stdout == f"Wrote {out}: {summary}\n"

    written, metadata = mx.load(str(out / "model.safetensors"), return_metadata=True)
    assert metadata["format"] == "mlx"
    assert set(written) == set(weights)
    assert all(mx.array_equal(written[name], weights[name]) for name in weights)
    names = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(content(out)) == names
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert content(source) == before


@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_the_dtype_is_the_one_asked_for_or_the_source_s(convert, tmp_path, mlx_folder, out, dtype):
    model, processor = load(mlx_folder, dtype="float16")
    save(model, tmp_path / "half", processor, format="huggingface")
    result = convert(tmp_path / "half", out, *(["--dtype", dtype] if dtype else []))
    stored = dtype or "float16"
    assert f" {stored}, " in result.stdout
    assert {array.dtype for array in mx.load(str(out / "model.safetensors")).values()} == {DTYPES[stored]}
    assert json.loads((out / "config.json").read_text())["dtype"] == stored


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_result_classifies_as_its_source_does(convert, run, hf_folder, out, photo, tmp_path, dtype):
    photo.save(tmp_path / "photo.png")
    convert(hf_folder, out, "--dtype", dtype)

    def classify(model: Path, *arguments: str) -> list[dict]:
        result = run("classify", tmp_path / "photo.png", "--model", model, "--format", "json", *arguments)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)["predictions"]

    assert classify(out) == classify(hf_folder, "--dtype", dtype)


def test_shards_and_the_older_spelling_of_grn_are_converted(convert, tmp_path, small_model, small_processor, out):
    save(small_model, tmp_path / "shards", small_processor, format="huggingface", max_shard_bytes=40_000)
    for file in (tmp_path / "shards").glob("*.safetensors"):
        weights, metadata = mx.load(str(file), return_metadata=True)
        mx.eval(weights)
        old = {
            name.replace("grn.weight", "grn.gamma").replace("grn.bias", "grn.beta"): w for name, w in weights.items()
        }
        mx.save_safetensors(str(file), old, metadata)
    assert convert(tmp_path / "shards", out).returncode == 0
    written = mx.load(str(out / "model.safetensors"))
    weights = dict(tree_flatten(small_model.parameters()))
    assert set(written) == set(weights)
    assert all(mx.array_equal(written[name], weights[name]) for name in weights)


def test_the_card_names_the_source_and_its_licence(convert, source, out):
    (source / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A card\n")
    convert(source, out)
    card = (out / "README.md").read_text()
    assert "license: cc-by-nc-4.0\n" in card
    assert "Converted from `my-net`" in card


def test_a_source_without_a_preprocessor_file_is_a_warning_and_the_result_has_one(convert, source, out):
    (source / "preprocessor_config.json").unlink()
    result = convert(source, out)
    assert result.returncode == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("convert: warning: ")
    assert "preprocessor_config.json" in warning
    assert json.loads((out / "preprocessor_config.json").read_text())["size"] == {"shortest_edge": 224}


def test_convert_py_at_the_root_is_the_same_command(run, hf_folder, tmp_path):
    def convert_py(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, ROOT / "convert.py", *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)

    results = []
    for name, command in (("module", lambda *a, cwd: run("convert", *a, cwd=cwd)), ("script", convert_py)):
        (tmp_path / name).mkdir()
        arguments = ("--hf-path", hf_folder, "--mlx-path", "out", "--dtype", "float16")
        done = command(*arguments, cwd=tmp_path / name)
        again = command(*arguments, cwd=tmp_path / name)
        wrong, usage = command("--no-such-option", cwd=ROOT), command("--help", cwd=ROOT)
        assert [result.returncode for result in (done, again, wrong, usage)] == [0, 2, 2, 0]
        results.append([(result.stdout, result.stderr) for result in (done, again, wrong, usage)])
    assert results[0] == results[1]
    assert content(tmp_path / "module") == content(tmp_path / "script")


def test_help_shows_examples_that_the_parser_takes(run):
    from mlx_convnextv2.convert import build_parser

    text = run("convert", "--help").stdout
    examples = [
        line.split()[3:] for line in text.splitlines() if line.startswith("  python -m mlx_convnextv2.convert ")
    ]
    assert len(examples) >= 2
    for arguments in examples:
        build_parser().parse_args(arguments)


# --- bad arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--hf-path"),
        (["--hf-path", "a"], "--mlx-path"),
        (["--mlx-path", "a"], "--hf-path"),
        (["--hf-path", "a", "--mlx-path", "b", "--dtype", "float64"], "float16"),
        (["--hf-path", "a", "--mlx-path", "b", "c"], "c"),
    ],
)
def test_bad_arguments_are_status_2_and_named(run, arguments, word):
    result = run("convert", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert word in result.stderr.splitlines()[-1]


# --- bad sources ----------------------------------------------------------------------------------------------------


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, edit: Callable[[dict], object]) -> None:
    file = str(folder / "model.safetensors")
    weights, metadata = mx.load(file, return_metadata=True)
    mx.eval(weights)
    edit(weights)
    mx.save_safetensors(file, weights, metadata)


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def not_pytorch_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def config_not_json(folder: Path) -> None:
    (folder / "config.json").write_text("depths: [1, 2]")


def preprocessor_not_json(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("{")


def preprocessor_unknown(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", do_flip=True)


def resnet(folder: Path) -> None:
    resnet = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet", "depths": [3, 4, 6, 3]}
    (folder / "config.json").write_text(json.dumps(resnet))
    edit_weights(folder, lambda weights: (weights.clear(), weights.update({"resnet.embedder.weight": mx.zeros(2)})))


def convnext_v1(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="convnext", architectures=["ConvNextForImageClassification"])


def resnet_weights(folder: Path) -> None:
    edit_weights(folder, lambda weights: (weights.clear(), weights.update({"resnet.embedder.weight": mx.zeros(2)})))


def truncated(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(60_000)


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def corrupt(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(8)
        file.write(b"not JSON")


def huge_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", 10**9))


def an_html_page(folder: Path) -> None:
    (folder / "model.safetensors").write_text("<!DOCTYPE html><html><body>Sign in</body></html>")


def a_git_lfs_pointer(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 104000\n"
    (folder / "model.safetensors").write_text(pointer)


def missing_tensors(folder: Path) -> None:
    edit_weights(folder, lambda weights: (weights.pop("classifier.weight"), weights.pop("classifier.bias")))


def unexpected_tensor(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"momentum": mx.zeros(3)}))


def mis_shaped_tensor(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"classifier.bias": mx.zeros(9)}))


def other_depths(folder: Path) -> None:
    edit_json(folder / "config.json", depths=[1, 2, 3, 1])


def depths_of_another_length(folder: Path) -> None:
    edit_json(folder / "config.json", depths=[1, 2, 3])


def float64_tensor(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"].astype(np.float64)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"classifier.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BAD_SOURCES = [
    (without_config, ["config.json"]),
    (without_weights, ["model.safetensors"]),
    (not_pytorch_weights, ["pytorch_model.bin"]),
    (config_not_json, ["config.json", "JSON"]),
    (preprocessor_not_json, ["preprocessor_config.json", "JSON"]),
    (preprocessor_unknown, ["preprocessor_config.json", "do_flip"]),
    (resnet, ["'resnet'"]),
    (convnext_v1, ["'convnext'"]),
    (resnet_weights, ["resnet.embedder.weight"]),
    (truncated, ["model.safetensors", "truncated or corrupt"]),
    (empty, ["model.safetensors", "truncated or corrupt"]),
    (corrupt, ["model.safetensors", "truncated or corrupt"]),
    (huge_header, ["model.safetensors", "truncated or corrupt"]),
    (an_html_page, ["model.safetensors", "truncated or corrupt"]),
    (a_git_lfs_pointer, ["model.safetensors"]),
    (missing_tensors, ["2 missing", "classifier.bias", "classifier.weight"]),
    (unexpected_tensor, ["1 unexpected", "momentum"]),
    (mis_shaped_tensor, ["1 mis-shaped", "classifier.bias", "(9,)", "(7,)"]),
    (other_depths, ["missing", "stages.2.layers.1", "config.json"]),
    (depths_of_another_length, ["config.json", "depths"]),
    (float64_tensor, ["classifier.bias", "F64"]),
    (shard_missing, ["model-00002-of-00002.safetensors"]),
]


@pytest.mark.parametrize(("spoil", "words"), BAD_SOURCES, ids=[spoil.__name__ for spoil, _ in BAD_SOURCES])
def test_a_bad_source_is_one_sentence_and_nothing_is_written(convert, source, out, spoil, words):
    spoil(source)
    assert_fails(convert(source, out), str(source), *words)
    assert list(out.parent.iterdir()) == []


def test_a_bad_source_leaves_the_checkpoint_that_was_to_be_replaced(convert, source, out, mlx_folder):
    shutil.copytree(mlx_folder, out)
    before = content(out.parent)
    truncated(source)
    assert_fails(convert(source, out, "--overwrite"), "truncated or corrupt")
    assert content(out.parent) == before


@pytest.mark.parametrize("name", ["missing", "./missing", "a/b/missing", "/missing/folder", "", "somebody/net"])
def test_a_source_that_is_not_there_is_named(convert, out, tmp_path, name):
    assert_fails(convert(name, out, cwd=tmp_path), name)  # offline, so that Hub ids are not looked for
    assert list(out.parent.iterdir()) == []


def test_a_single_file_is_a_source_if_it_holds_weights(convert, source, out):
    assert_fails(convert(source / "config.json", out), "config.json", ".safetensors")
    assert list(out.parent.iterdir()) == []
    assert convert(source / "model.safetensors", out).returncode == 0


def test_a_folder_that_is_converted_already_is_refused(convert, mlx_folder, out):
    assert_fails(convert(mlx_folder, out), str(mlx_folder), "already")
    assert list(out.parent.iterdir()) == []


def test_what_was_just_converted_is_refused_as_a_source(convert, source, out):
    assert convert(source, out).returncode == 0
    assert_fails(convert(out, out.parent / "again"), str(out), "already")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


# --- bad targets ----------------------------------------------------------------------------------------------------


def a_full_folder(out: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")


def a_file(out: Path) -> None:
    out.write_text("years of work")


def a_dangling_link(out: Path) -> None:
    out.symlink_to(out.parent / "nowhere")


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "--overwrite"])
@pytest.mark.parametrize("occupy", [a_full_folder, a_file, a_dangling_link], ids=lambda occupy: occupy.__name__)
def test_a_target_that_exists_is_named_and_left_alone(convert, hf_folder, out, occupy, overwrite):
    occupy(out)
    before = content(out.parent)
    assert_fails(convert(hf_folder, out, *overwrite), str(out))
    assert content(out.parent) == before
    assert os.path.lexists(out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_checkpoint_is_replaced_with_overwrite_alone(convert, hf_folder, mlx_folder, out):
    shutil.copytree(mlx_folder, out)
    (out / "model.safetensors").write_bytes(b"an older one")
    before = content(out)
    assert_fails(convert(hf_folder, out), str(out), "--overwrite")
    assert content(out) == before
    assert convert(hf_folder, out, "--overwrite").returncode == 0
    assert (out / "model.safetensors").read_bytes() == (mlx_folder / "model.safetensors").read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def the_same(source: Path) -> Path:
    return source


def with_dots(source: Path) -> Path:
    return source.parent / "." / "x" / ".." / source.name


def a_link(source: Path) -> Path:
    (source.parent / "link").symlink_to(source)
    return source.parent / "link"


def the_folder_around(source: Path) -> Path:
    """A checkpoint that holds the source: replacing it would delete the source."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, source.parent / name)
    return source.parent


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "--overwrite"])
@pytest.mark.parametrize("target", [the_same, with_dots, a_link, the_folder_around], ids=lambda target: target.__name__)
def test_the_source_is_never_replaced_by_its_conversion(convert, source, target, overwrite):
    (source.parent / "x").mkdir()
    out = target(source)
    before = content(source)
    assert_fails(convert(source, out, *overwrite))
    assert content(source) == before


def test_parents_of_the_target_are_made(convert, hf_folder, mlx_folder, tmp_path):
    result = convert(hf_folder, "new/folders/out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    written = tmp_path / "new" / "folders" / "out" / "model.safetensors"
    assert written.read_bytes() == (mlx_folder / "model.safetensors").read_bytes()


def test_a_parent_that_is_a_file_is_named(convert, hf_folder, tmp_path):
    (tmp_path / "file").write_text("years of work")
    assert_fails(convert(hf_folder, tmp_path / "file" / "out"), str(tmp_path / "file"))
    assert content(tmp_path) == {"file": b"years of work"}


@pytest.mark.parametrize("name", ["", "."])
def test_the_current_folder_is_not_replaced_under_the_user_even_if_it_is_empty(convert, hf_folder, tmp_path, name):
    (tmp_path / "here").mkdir()
    before = (tmp_path / "here").stat().st_ino
    assert_fails(convert(hf_folder, name, cwd=tmp_path / "here"))
    assert list((tmp_path / "here").iterdir()) == []
    assert (tmp_path / "here").stat().st_ino == before


@pytest.mark.parametrize("below", ["out", "folders/out"])
def test_a_target_below_a_file_is_named_before_the_source_is_looked_for(convert, tmp_path, below):
    (tmp_path / "file").write_text("years of work")
    target = tmp_path / "file" / below
    assert_fails(convert("no-such-source", target), f"{target} cannot be written: {tmp_path / 'file'} is not a folder")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no /proc")
@pytest.mark.parametrize("target", ["/proc/x", "/proc/x/y"])
def test_a_target_where_nothing_can_be_made_is_named_as_it_was_given(convert, hf_folder, target):
    result = convert(hf_folder, target)
    assert_fails(result, f"{target}: it cannot be written")
    assert "partial" not in result.stderr


def test_a_tilde_is_the_home_folder(convert, source, tmp_path):
    result = convert("~/sources/my-net", "~/new/out", env={"HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert "Converted from `my-net`" in (tmp_path / "new" / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", [".", "model.safetensors"])
def test_a_revision_of_something_local_is_refused(convert, source, out, name):
    assert_fails(convert(source / name, out, "--revision", "v2"), "v2", str(source))


def test_what_a_conversion_was_made_from_outlives_a_second_conversion(convert, source, out):
    assert convert(source, out).returncode == 0
    for target, arguments in (("half", ["--dtype", "float16"]), ("back", ["--to", "huggingface"])):
        assert convert(out, out.parent / target, *arguments).returncode == 0
        assert "Converted from `my-net`" in (out.parent / target / "README.md").read_text()


def test_dropped_leftovers_are_listed(convert, source, out):
    edit_weights(source, lambda weights: weights.update({f"optimizer.{i}": mx.zeros(1) for i in range(9)}))
    assert "Left out of what the file holds: optimizer.* (9 tensors)\n" in convert(source, out).stdout


def limit_file_size() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # of 104 kB


def test_no_space_is_one_sentence_and_nothing_is_left(convert, hf_folder, out):
    assert_fails(convert(hf_folder, out, preexec_fn=limit_file_size), str(out.parent), "space")
    assert list(out.parent.iterdir()) == []


def drop_root_rights() -> None:
    """Let the rights of files count for root as for everybody."""
    if os.geteuid() == 0:
        import ctypes

        drop_bounding_capability, override_rights, read_all = 24, 1, 2  # of linux/prctl.h and linux/capability.h
        for capability in (override_rights, read_all):
            assert ctypes.CDLL(None).prctl(drop_bounding_capability, capability, 0, 0, 0) == 0


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_that_is_read_only_is_one_sentence(convert, hf_folder, out):
    out.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert_fails(convert(hf_folder, out, preexec_fn=drop_root_rights), str(out.parent), "ermission")
    assert list(out.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_file_of_the_source_that_may_not_be_read_is_named(convert, source, out, name):
    (source / name).chmod(0)
    if os.geteuid() == 0:
        os.chown(source / name, 65534, 65534)  # of somebody else, for a root without its rights
    assert_fails(convert(source, out, preexec_fn=drop_root_rights), name, "ermission")
    assert list(out.parent.iterdir()) == []


def test_there_and_back_again_is_bit_identical(convert, hf_folder, tmp_path):
    assert convert(hf_folder, tmp_path / "mlx").returncode == 0
    assert convert(tmp_path / "mlx", tmp_path / "back", "--to", "huggingface").returncode == 0
    before, after = (mx.load(str(folder / "model.safetensors")) for folder in (hf_folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert mx.array_equal(array, after[name]), name
    files = ("preprocessor_config.json", "config.json")
    for name in files:
        assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((hf_folder / name).read_text())
