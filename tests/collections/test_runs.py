"""Runs in a folder: killed, started again, shared among processes and joined, they give what one run gives."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from photo_files import make_photos

from mlx_convnextv2 import ImageClassifier
from mlx_convnextv2.collections import Shard, Watch, classification, classify_images
from mlx_convnextv2.collections.manifest import agree
from mlx_convnextv2.collections.records import Record
from mlx_convnextv2.collections.runs import Names, find_parts
from mlx_convnextv2.demo import DEMO

LAUNCH = Path(sys.executable).parent / "mlx.launch"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"), 60)


@pytest.fixture
def classify(run, photos, tmp_path) -> Callable:
    """Classify the photos into `results`, in parts of ten."""

    def classify(*arguments, images=(photos,), demo=("--demo",)):
        return run("classify", *images, *demo, "--part-size", 10, "--output", tmp_path / "results", *arguments)

    return classify


@pytest.fixture
def results(tmp_path) -> Path:
    return tmp_path / "results"


def merged(run, results: Path, *arguments) -> list[str]:
    """The lines of all parts."""
    joined = run("classify", "--merge", results, "--format", "jsonl", *arguments)
    assert joined.returncode == 0, joined.stderr
    return joined.stdout.splitlines()


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- parts ----------------------------------------------------------------------------------------------------------


def test_a_run_fills_parts_and_a_second_one_finds_all_done(classify, results, run, photos) -> None:
    assert classify().returncode == 1  # for the file that is no image
    assert [path.name for _, _, path in find_parts(results)] == [f"part-1of1-{i:06}.jsonl" for i in range(7)]
    sizes = [len(path.read_text().splitlines()) for _, _, path in find_parts(results)]
    assert sizes == [10] * 6 + [1]
    lines = merged(run, results)
    printed = run("classify", photos, "--demo", "--format", "jsonl", "--batch-size", 1).stdout.splitlines()
    assert [json.loads(line)["image"] for line in lines] == [json.loads(line)["image"] for line in printed]
    before = content(results)
    again = classify()
    assert again.returncode == 0
    assert "0 images" in again.stderr
    assert "61 were done before, 1 of the folder's failed" in again.stderr
    assert content(results) == before


def test_what_is_new_is_done_and_what_is_done_is_not_repeated(classify, results, run, photos, tmp_path) -> None:
    growing = Path(shutil.copytree(photos, tmp_path / "growing"))
    for name in ("0/0.jpg", "0/7.jpg", "0/none.png"):
        (growing / name).unlink()
    classify(images=[growing])
    parts = content(results)
    shutil.copytree(photos, growing, dirs_exist_ok=True)
    assert "3 images" in classify(images=[growing]).stderr
    assert parts.items() - content(results).items() <= {("shard-1of1.json", parts["shard-1of1.json"])}
    names = [json.loads(line)["image"] for line in merged(run, results)]
    assert sorted(names) == sorted(str(path) for path in growing.rglob("*.*g"))


def test_an_image_that_is_named_twice_is_there_twice_after_any_number_of_runs(classify, results, run, photos) -> None:
    images = [photos / "0" / "1.jpg", photos / "0" / "2.jpg", photos / "0" / "1.jpg"]
    for _ in range(3):
        assert classify(images=images).returncode == 0
    assert [Path(json.loads(line)["image"]).name for line in merged(run, results)] == ["1.jpg", "2.jpg", "1.jpg"]


def test_names_are_taken_only_as_images_are_done(mlx_folder, photos, tmp_path) -> None:
    """So memory does not grow with the number of names, and a list may have no end."""
    taken, seen = [], []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield str(photos / "0" / "1.jpg")

    class Enough(Exception):  # noqa: N818
        pass

    class Stop(Watch):
        def advance(self, record: Record) -> None:
            seen.append(record)
            if len(seen) == 100:
                raise Enough

    classifier = ImageClassifier(mlx_folder, batch_size=4)
    with pytest.raises(Enough):
        classify_images(classifier, endless(), tmp_path / "results", part_size=30, watch=Stop())
    assert len(taken) <= 100 + 3 * 4 + 2 * (os.cpu_count() or 1)
    assert len(find_parts(tmp_path / "results")) == 3


def test_names_are_taken_as_often_as_they_are_there() -> None:
    names = Names(["a", "b", "a", "\udcff"])
    assert [names.take(name) for name in ("a", "a", "a", "b", "c", "\udcff")] == [True, True, False, True, False, True]
    many = [f"{i}.jpg" for i in range(2_000)] + ["same.jpg"] * 20_000  # looked for one by one it would take minutes
    names = Names(many)
    assert all(names.take(name) for name in many)
    assert not any(names.take(name) for name in many)


@pytest.mark.parametrize(
    ("arguments", "demo", "word"),
    [
        (("--top-k", "1"), ("--demo",), "--top-k 5, and this run has --top-k 1"),
        (("--max-pixels", "999"), ("--demo",), "--max-pixels"),
        (("--format", "parquet"), ("--demo",), "--format 'jsonl', and this run has --format 'parquet'"),
        (("--shard", "1/2"), ("--demo",), "N = 1, and this run has --shard I/N, N = 2"),
        ((), ("--model", "SMALL"), "the model"),
        (("--dtype", "float16"), ("--demo",), "the model"),
    ],
)
def test_other_options_and_other_models_are_refused_by_name(
    classify, results, mlx_folder, photos, arguments, demo, word
) -> None:
    if "parquet" in arguments:
        pytest.importorskip("pyarrow")
    classify(images=[photos / "0" / "1.jpg"])
    before = content(results)
    result = classify(*arguments, demo=[str(mlx_folder) if name == "SMALL" else name for name in demo])
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert word in result.stderr
    assert content(results) == before


def test_another_batch_size_and_a_converted_copy_of_the_model_go_on(classify, results, run, tmp_path, photos) -> None:
    classify(images=[photos / "0" / "1.jpg"])
    run("convert", "--hf-path", DEMO, "--mlx-path", tmp_path / "copy", "--to", "huggingface")
    result = classify("--batch-size", 3, images=[photos / "0"], demo=["--model", tmp_path / "copy"])
    assert "60 images" in result.stderr


def test_a_folder_that_holds_something_else_is_left_alone(classify, results) -> None:
    results.mkdir()
    (results / "thesis.txt").write_text("mine")
    result = classify()
    assert result.returncode == 2
    assert "thesis.txt" in result.stderr
    assert os.listdir(results) == ["thesis.txt"]


def test_a_folder_that_another_process_begins_at_the_same_moment_is_no_other(tmp_path, monkeypatch) -> None:
    def listed(folder: Path) -> list[str]:
        monkeypatch.undo()
        agree(folder, {"top_k": 5})
        (folder / "part-1of2-000000.jsonl").touch()
        return os.listdir(folder)

    monkeypatch.setattr(os, "listdir", listed)
    agree(tmp_path, {"top_k": 5})


@pytest.mark.parametrize("file", ["part-1of1-000000.jsonl", "manifest.json"])
def test_a_damaged_file_is_named(classify, results, photos, file) -> None:
    classify(images=[photos / "0" / "1.jpg"])
    (results / file).write_text('{"image"')
    result = classify()
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert file in result.stderr


def test_two_processes_do_not_work_at_one_shard(classify, results, photos, run, mlx_folder) -> None:
    from mlx_convnextv2.collections.runs import RunFolder

    held = RunFolder(results, {}, Shard(1, 2), "jsonl", 10)
    with pytest.raises(ValueError, match="another process works at shard 1/2"):
        RunFolder(results, {}, Shard(1, 2), "jsonl", 10)
    RunFolder(results, {}, Shard(2, 2), "jsonl", 10).finish(0, 0)
    held.finish(0, 0)


# --- shards and merging ---------------------------------------------------------------------------------------------


def test_shards_join_to_the_whole_and_an_unfinished_run_is_refused(classify, results, run, photos) -> None:
    classify("--shard", "1/3")
    classify("--shard", "3/3")
    refused = run("classify", "--merge", results, "--format", "csv")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "shard 2/3 is not done" in refused.stderr
    some = merged(run, results, "--partial")
    classify("--shard", "2/3")
    lines = merged(run, results)
    assert set(some) < set(lines)
    expected = run("classify", photos, "--demo", "--format", "jsonl").stdout.splitlines()
    assert sorted(json.loads(line)["image"] for line in lines) == [json.loads(line)["image"] for line in expected]


@pytest.mark.parametrize("parts", ["jsonl", "parquet"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_parts_of_each_format_join_to_a_file_of_each(classify, results, run, photos, tmp_path, parts, suffix) -> None:
    pytest.importorskip("pyarrow")
    images = [photos / "0" / name for name in ("1.jpg", "none.png", "2.jpg")]
    joined, direct = tmp_path / f"joined.{suffix}", tmp_path / f"direct.{suffix}"
    classify("--format", parts, "--batch-size", 1, images=images)
    assert classify("--format", parts, images=images).returncode == 0  # it reads what it has written
    assert run("classify", "--merge", results, "--output", joined).returncode == 0
    run("classify", *images, "--demo", "--batch-size", 1, "--output", direct)
    assert joined.read_bytes() == direct.read_bytes()


def test_a_part_that_was_deleted_is_missed_and_made_anew(classify, results, run, photos, tmp_path) -> None:
    classify(images=[photos / "0"])
    (results / "part-1of1-000002.jsonl").unlink()
    refused = run("classify", "--merge", results, "--output", tmp_path / "joined.csv")
    assert (refused.returncode, (tmp_path / "joined.csv").exists()) == (2, False)
    assert "51 of 61 images" in refused.stderr
    assert len(merged(run, results, "--partial")) == 51
    classify(images=[photos / "0"])
    assert len(merged(run, results)) == 61


@pytest.mark.parametrize(("folder", "word"), [("gone", "manifest.json"), (".", "manifest.json")])
def test_merging_what_is_no_run_is_a_sentence(run, tmp_path, folder, word) -> None:
    result = run("classify", "--merge", tmp_path / folder)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert word in result.stderr


def test_a_manifest_of_a_billion_shards_is_a_sentence(run, tmp_path) -> None:
    (tmp_path / "manifest.json").write_text('{"kind": "mlx_convnextv2 results", "shards": 1000000000}')
    result = run("classify", "--merge", tmp_path)
    assert (result.returncode, "how many shards" in result.stderr) == (2, True)


def test_the_launchers_processes_take_their_shares_and_a_bad_image_ends_no_other(
    run, photos, tmp_path, results
) -> None:
    environment = {"MLX_WORLD_SIZE": "2"}
    for rank in ("0", "1"):
        options = {"env": {**environment, "MLX_RANK": rank}}
        assert run("classify", photos, "--demo", "--output", results, **options).returncode == 0
        refused = run("classify", photos, "--demo", "--output", tmp_path / "one.csv", **options)
        assert (refused.returncode, "one file" in refused.stderr) == (2, True)
        assert run("classify", "@-", "--demo", **options).returncode == 2
    assert len(merged(run, results)) == 61


@pytest.mark.slow
def test_mlx_launch_shares_a_folder_among_three_processes(photos, results, run) -> None:
    command = [LAUNCH, "-n", "3", "--cwd", ROOT, "--python", sys.executable, "--", "-m", "mlx_convnextv2.classify"]
    command += [photos, "--demo", "--output", results]
    done = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "exited with code" not in done.stderr, done.stderr
    assert {shard for shard, _, _ in find_parts(results)} == {"1of3", "2of3", "3of3"}
    assert len(merged(run, results)) == 61


# --- killed ---------------------------------------------------------------------------------------------------------


def start(images: Path, results: Path, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "mlx_convnextv2.classify", images, "--demo", "--part-size", 10]
    command += ["--output", results, *arguments]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("moments", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_and_started_again_is_the_uninterrupted_one(
    moments, tmp_path, results, run
) -> None:
    photos = make_photos(tmp_path / "photos", 60 * moments)
    assert start(photos, tmp_path / "whole").wait(600) == 1
    drawn = random.Random(0)
    kept: dict[str, bytes] = {}
    for _ in range(moments):
        process = start(photos, results)
        while process.poll() is None and not list(results.glob(".part-*.partial")):
            time.sleep(0.001)
        time.sleep(drawn.random() / 4)
        process.kill()
        process.wait()
        parts = {name: data for name, data in content(results).items() if name.startswith("part")}
        assert kept.items() <= parts.items()  # a part that is there stays as it is
        kept = parts
    assert start(photos, results).wait(600) in (0, 1)
    assert merged(run, results) == merged(run, tmp_path / "whole")
    assert not list(results.glob(".*.partial"))


def test_an_interrupted_run_says_how_it_goes_on(classify, results, photos, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(classification, "stream_records", interrupted)
    ended = classify(images=[photos / "0"])
    assert (ended.returncode, ended.stderr.count("the same command goes on")) == (130, 1)
