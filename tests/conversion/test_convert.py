"""`convert` as a user runs it: what it writes and prints, and each bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoint_files import (
    DTYPES,
    INDEX,
    WEIGHTS,
    change,
    content,
    edit_json,
    parameters,
    read,
)
from conftest import ROOT, Finished, assert_fails

from mlx_convnextv2 import load, save
from mlx_convnextv2.convert import build_parser


@pytest.fixture
def source(copy) -> Path:
    return copy.rename(copy.parent / "my-net")


@pytest.fixture
def out(tmp_path) -> Path:
    """A path that is free, alone in a folder."""
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "out"


@pytest.fixture
def convert(run):
    def convert(source: object, out: object, *arguments: object, **options) -> Finished:
        return run("convert", "--hf-path", source, "--mlx-path", out, *arguments, **options)

    return convert


# --- what it does ---------------------------------------------------------------------------------------------------


def test_a_converted_checkpoint_is_the_model_and_a_line_says_what_was_written(convert, source, out, small_model):
    before = content(source)
    result = convert(source, out)
    assert (result.returncode, result.stderr) == (0, "")
    weights = parameters(small_model)
    count = sum(array.size for array in weights.values())
    megabytes = (out / WEIGHTS).stat().st_size / 1e6
    summary = f"{count:,} parameters in {len(weights)} tensors, float32, {megabytes:.1f} MB"
    assert result.stdout == f"Wrote {out}: {summary}\n"

    written, metadata = read(out / WEIGHTS)
    assert metadata["format"] == "mlx"
    assert set(written) == set(weights)
    assert all(mx.array_equal(written[name], weights[name]) for name in weights)
    names = ["README.md", "config.json", WEIGHTS, "preprocessor_config.json"]
    assert sorted(content(out)) == names
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert content(source) == before


@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_the_dtype_is_the_one_asked_for_or_the_source_s(convert, classify, tmp_path, mlx_folder, out, dtype):
    model, processor = load(mlx_folder, dtype="float16")
    save(model, tmp_path / "half", processor, format="huggingface")
    result = convert(tmp_path / "half", out, *(["--dtype", dtype] if dtype else []))
    stored = dtype or "float16"
    assert f" {stored}, " in result.stdout
    assert {array.dtype for array in read(out / WEIGHTS)[0].values()} == {DTYPES[stored]}
    assert json.loads((out / "config.json").read_text())["dtype"] == stored
    assert classify(out) == classify(tmp_path / "half", "--dtype", stored)


@pytest.fixture
def classify(run, photo, tmp_path):
    """The predictions of `classify --model MODEL` for a photo."""
    photo.save(tmp_path / "photo.png")

    def classify(model: Path, *arguments: str) -> list[dict[str, object]]:
        result = run("classify", tmp_path / "photo.png", "--model", model, "--format", "json", *arguments)
        return json.loads(result.stdout)["predictions"]

    return classify


def test_a_source_without_a_preprocessor_file_is_a_warning_and_the_result_has_one(convert, source, out):
    (source / "preprocessor_config.json").unlink()
    result = convert(source, out)
    assert result.returncode == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("convert: warning: ")
    assert "preprocessor_config.json" in warning
    assert json.loads((out / "preprocessor_config.json").read_text())["size"] == {"shortest_edge": 224}


def test_dropped_leftovers_are_listed(convert, source, out):
    change(source, lambda weights: weights.update({f"optimizer.{i}": mx.zeros(1) for i in range(9)}))
    assert "Left out of what the file holds: optimizer.* (9 tensors)\n" in convert(source, out).stdout


def test_what_a_conversion_was_made_from_outlives_a_second_conversion_and_there_and_back_is_identical(
    convert, source, out
):
    assert convert(source, out).returncode == 0
    for target, arguments in (("half", ["--dtype", "float16"]), ("back", ["--to", "huggingface"])):
        assert convert(out, out.parent / target, *arguments).returncode == 0
        assert "Converted from `my-net`" in (out.parent / target / "README.md").read_text()
    before, after = (read(folder / WEIGHTS)[0] for folder in (source, out.parent / "back"))
    assert before.keys() == after.keys()
    assert all(mx.array_equal(array, after[name]) for name, array in before.items())
    for name in ("preprocessor_config.json", "config.json"):
        assert json.loads((out.parent / "back" / name).read_text()) == json.loads((source / name).read_text())


def test_convert_py_at_the_root_is_the_same_command(convert, hf_folder, tmp_path):
    (tmp_path / "module").mkdir()
    (tmp_path / "script").mkdir()
    module = convert(hf_folder, "out", "--dtype", "float16", cwd=tmp_path / "module")
    words = [sys.executable, ROOT / "convert.py", "--hf-path", hf_folder, "--mlx-path", "out", "--dtype", "float16"]
    script = subprocess.run(words, cwd=tmp_path / "script", capture_output=True, text=True)
    assert (module.returncode, module.stdout, module.stderr) == (script.returncode, script.stdout, script.stderr)
    assert module.returncode == 0
    assert content(tmp_path / "module") == content(tmp_path / "script")


def test_help_shows_examples_that_the_parser_takes(run):
    lines = run("convert", "--help").stdout.splitlines()
    examples = [line.split()[3:] for line in lines if line.startswith("  python -m mlx_convnextv2.convert ")]
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


def file(name: str, text: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(text)


def without_its_shard(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text('{"weight_map": {"classifier.weight": "model-2.safetensors"}}')


CORRUPT = [WEIGHTS, "truncated or corrupt"]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 104000\n"
BAD_SOURCES: dict[str, tuple[Callable[[Path], object], list[str]]] = {  # what is done to the folder, words of the error
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json"]),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), [WEIGHTS]),
    "no PyTorch file": (lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), ["pytorch_model.bin"]),
    "processor no JSON": (file("preprocessor_config.json", b"{"), ["preprocessor_config.json", "JSON"]),
    "processor unknown": (
        lambda folder: edit_json(folder / "preprocessor_config.json", do_flip=True),
        ["preprocessor_config.json", "do_flip"],
    ),
    "convnext v1": (lambda folder: edit_json(folder / "config.json", model_type="convnext"), ["'convnext'"]),
    "an HTML page": (file(WEIGHTS, b"<!DOCTYPE html><html><body>Sign in</body></html>"), CORRUPT),
    "a Git LFS pointer": (file(WEIGHTS, POINTER), [WEIGHTS]),
    "missing": (
        lambda folder: change(folder, lambda found: [found.pop("classifier.weight"), found.pop("classifier.bias")]),
        ["2 missing", "classifier.bias", "classifier.weight"],
    ),
    "no shard": (without_its_shard, ["model-2.safetensors"]),
}


@pytest.mark.parametrize(("spoil", "words"), BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_a_bad_source_is_one_sentence_and_changes_nothing(convert, source, out, mlx_folder, spoil, words):
    spoil(source)
    assert_fails(convert(source, out), str(source), *words)
    assert list(out.parent.iterdir()) == []
    shutil.copytree(mlx_folder, out)
    before = content(out.parent)
    assert_fails(convert(source, out, "--overwrite"), *words)
    assert content(out.parent) == before


@pytest.mark.parametrize("name", ["missing", "./missing", "/missing/folder", "", "somebody/net"])
def test_a_source_that_is_not_there_is_named(convert, out, tmp_path, name):
    assert_fails(convert(name, out, cwd=tmp_path), name)  # offline, so that Hub ids are not looked for
    assert list(out.parent.iterdir()) == []


def test_a_single_file_is_a_source_if_it_holds_weights(convert, source, out):
    assert_fails(convert(source / "config.json", out), "config.json", ".safetensors")
    assert list(out.parent.iterdir()) == []
    assert convert(source / WEIGHTS, out).returncode == 0


def test_a_folder_that_is_converted_already_is_refused(convert, mlx_folder, out):
    assert_fails(convert(mlx_folder, out), str(mlx_folder), "already")
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("name", [".", WEIGHTS])
def test_a_revision_of_something_local_is_refused(convert, source, out, name):
    assert_fails(convert(source / name, out, "--revision", "v2"), "v2", str(source))


@pytest.mark.usefixtures("as_everybody")
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", WEIGHTS])
def test_a_file_of_the_source_that_may_not_be_read_is_named(convert, source, out, name):
    (source / name).chmod(0)
    assert_fails(convert(source, out), name, "ermission")
    assert list(out.parent.iterdir()) == []


# --- bad targets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "--overwrite"])
def test_a_target_that_is_no_checkpoint_is_named_and_left_alone(convert, hf_folder, out, overwrite):
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert_fails(convert(hf_folder, out, *overwrite), str(out))
    assert content(out.parent) == {"out/thesis.txt": b"years of work"}


def test_a_checkpoint_is_replaced_with_overwrite_alone(convert, hf_folder, mlx_folder, out):
    shutil.copytree(mlx_folder, out)
    (out / WEIGHTS).write_bytes(b"an older one")
    before = content(out)
    assert_fails(convert(hf_folder, out), str(out), "--overwrite")
    assert content(out) == before
    assert convert(hf_folder, out, "--overwrite").returncode == 0
    assert (out / WEIGHTS).read_bytes() == (mlx_folder / WEIGHTS).read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def a_link(source: Path) -> Path:
    (source.parent / "link").symlink_to(source)
    return source.parent / "link"


def the_folder_around(source: Path) -> Path:
    """A checkpoint that holds the source: replacing it would delete the source."""
    for name in ("config.json", WEIGHTS):
        shutil.copy(source / name, source.parent / name)
    return source.parent


TARGETS: dict[str, Callable[[Path], Path]] = {
    "the same": lambda source: source,
    "with dots": lambda source: source.parent / "." / "x" / ".." / source.name,
    "a link": a_link,
    "the folder around": the_folder_around,
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_source_is_never_replaced_by_its_conversion(convert, source, target):
    (source.parent / "x").mkdir()
    out = target(source)
    before = content(source)
    for overwrite in ([], ["--overwrite"]):
        assert_fails(convert(source, out, *overwrite))
        assert content(source) == before


def test_the_current_folder_is_not_replaced_under_the_user_even_if_it_is_empty(convert, hf_folder, tmp_path):
    (tmp_path / "here").mkdir()
    before = (tmp_path / "here").stat().st_ino
    for name in ("", "."):
        assert_fails(convert(hf_folder, name, cwd=tmp_path / "here"))
    assert list((tmp_path / "here").iterdir()) == []
    assert (tmp_path / "here").stat().st_ino == before


@pytest.mark.parametrize("below", ["out", "folders/out"])
def test_a_target_below_a_file_is_named_before_the_source_is_looked_for(convert, tmp_path, below):
    (tmp_path / "file").write_text("years of work")
    target = tmp_path / "file" / below
    assert_fails(convert("no-such-source", target), f"{target} cannot be written: {tmp_path / 'file'} is not a folder")
    assert content(tmp_path) == {"file": b"years of work"}


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no /proc")
def test_a_target_where_nothing_can_be_made_is_named_as_it_was_given(convert, hf_folder):
    result = convert(hf_folder, "/proc/x/y")
    assert_fails(result, "/proc/x/y: it cannot be written")
    assert "partial" not in result.stderr


@pytest.mark.usefixtures("as_everybody")
def test_a_parent_that_is_read_only_is_one_sentence(convert, hf_folder, out):
    out.parent.chmod(0o500)
    assert_fails(convert(hf_folder, out), str(out.parent), "ermission")
    assert list(out.parent.iterdir()) == []


def test_a_tilde_is_the_home_folder_and_parents_are_made(convert, source, tmp_path):
    result = convert("~/sources/my-net", "~/new/folders/out", env={"HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert "Converted from `my-net`" in (tmp_path / "new" / "folders" / "out" / "README.md").read_text()
