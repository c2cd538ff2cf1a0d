"""Conversions that are killed, stopped, or two at a time: the target is absent or whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import content
from conftest import ROOT, randomize

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, load, save
from mlx_convnextv2.conversion.convert import convert
from mlx_convnextv2.files.atomic_folder import new_folder


def command(source: Path, out: Path, *arguments: str) -> list[str | Path]:
    return [sys.executable, "-m", "mlx_convnextv2.convert", "--hf-path", source, "--mlx-path", out, *arguments]


def start(source: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    words = command(source, out, *arguments)
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=600)
    return process.returncode, stderr


def assert_one_sentence(stderr: str) -> None:
    assert stderr.startswith("convert: error: ")
    assert len(stderr.splitlines()) == 1, stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A published size at random weights, so that writing it takes a while."""
    model = randomize(ConvNextV2ForImageClassification(ConvNextV2Config.from_size("pico")))
    folder = tmp_path_factory.mktemp("sources") / "pico"
    save(model, folder, ConvNextImageProcessor(size=224), format="huggingface")
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    """What an uninterrupted conversion writes, and how long it takes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    begin = time.monotonic()
    assert finish(start(source, out)) == (0, "")
    duration = time.monotonic() - begin
    load(out)
    return content(out), duration


@pytest.fixture(scope="module")
def old(small_model, small_processor, tmp_path_factory) -> Path:
    """The checkpoint that is there before, where one is to be replaced."""
    folder = tmp_path_factory.mktemp("old") / "out"
    save(small_model, folder, small_processor)
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


# --- killed ---------------------------------------------------------------------------------------------------------


def killed_after(seconds: float, source: Path, out: Path, *arguments: str) -> None:
    process = start(source, out, *arguments)
    time.sleep(seconds)
    process.kill()
    finish(process)


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_a_conversion_killed_at_random_moments_leaves_nothing_the_old_or_the_new(source, whole, old, out, overwrite):
    expected, duration = whole
    drawn = random.Random(0)
    for part in range(20):  # a moment in each part of the time that a conversion takes
        if overwrite:
            shutil.copytree(old, out)
        moment = (part + drawn.random()) / 20 * duration
        killed_after(moment, source, out, *(["--overwrite"] if overwrite else []))
        if out.exists():  # else it had not come so far, or was between the two renames
            assert content(out) in ((content(old), expected) if overwrite else (expected,))
            if not overwrite:
                shutil.rmtree(out)
        convert(source, out, overwrite=overwrite)  # the second run
        assert content(out) == expected
        assert os.listdir(out.parent) == ["out"]
        shutil.rmtree(out)


# Kills itself before the step of the given number, of those that open, make, rename or remove a file near the target.
STEP_BY_STEP = """
import os, signal, sys
number, near, *arguments = sys.argv[1:]
from mlx_convnextv2.convert import main
steps = []
def watch(event, arguments):
    path = str(arguments[0]) if arguments else ""
    if near in path and event.split(".")[0] in ("os", "open", "shutil", "tempfile"):
        steps.append(event)
        if len(steps) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
status = main(arguments)
print(*steps)
sys.exit(status)
"""


def run_to_step(number: int, source: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = command(source, out, *arguments)[3:]
    script = [sys.executable, "-c", STEP_BY_STEP, str(number), str(out.parent), *words]
    return subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwrite"])
def test_a_conversion_killed_before_any_step_loses_nothing(hf_folder, mlx_folder, old, out, tmp_path, overwrite):
    arguments = ["--overwrite"] if overwrite else []
    convert(hf_folder, tmp_path / "expected" / "out")
    expected, before = content(tmp_path / "expected" / "out"), content(old)
    out = tmp_path / "near" / "out"

    def prepare() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        if overwrite:
            shutil.copytree(old, out)

    prepare()
    steps = run_to_step(0, hf_folder, out, *arguments).stdout.splitlines()[-1].split()
    put_back = 0
    assert steps.count("os.rename") == (2 if overwrite else 1)
    for number in range(1, len(steps) + 1):
        prepare()
        assert run_to_step(number, hf_folder, out, *arguments).returncode == -signal.SIGKILL
        if out.exists():
            assert content(out) in ([before, expected] if overwrite else [expected])
        elif overwrite:  # between the two renames: the next run puts the old one back, and says that it is there
            with pytest.raises(FileExistsError):
                convert(hf_folder, out)
            assert content(out) == before
            put_back += 1
        convert(hf_folder, out, overwrite=overwrite or out.exists())
        assert content(out) == expected
        assert os.listdir(out.parent) == ["out"]
    assert put_back == overwrite


@pytest.mark.parametrize("other_exists", [False, True])
def test_what_a_killed_run_left_beside_another_target_is_left_alone(hf_folder, old, tmp_path, other_exists):
    # "out.b" begins as "out" does: what is left of the one is not the other's to remove or to take.
    out, longer = tmp_path / "out", tmp_path / "out.b"
    shutil.copytree(old, tmp_path / ".out.b.abcdefgh.replaced.partial")
    if other_exists:
        shutil.copytree(old, out)
    convert(hf_folder, out, overwrite=other_exists)
    with pytest.raises(FileExistsError):
        convert(hf_folder, longer)
    assert content(longer) == content(old)


# --- stopped --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_conversion_that_is_stopped_while_it_writes_leaves_nothing_and_says_nothing(source, out, sent):
    for _ in range(20):  # until it is still writing when the signal arrives
        process = start(source, out)
        while process.poll() is None and not any(path.name.endswith(".partial") for path in out.parent.iterdir()):
            time.sleep(0.001)
        process.send_signal(sent)
        status, stderr = finish(process)
        if status != 0:
            break
        shutil.rmtree(out)
    assert (status, stderr) in ((128 + sent, ""), (-sent, ""))
    assert os.listdir(out.parent) == []


# --- two at a time --------------------------------------------------------------------------------------------------


def test_of_two_conversions_to_one_target_one_wins_and_the_other_says_so(hf_folder, out):
    results = [finish(process) for process in [start(hf_folder, out) for _ in range(2)]]
    assert sorted(status for status, _ in results) == [0, 2], results
    (stderr,) = [stderr for status, stderr in results if status == 2]
    assert_one_sentence(stderr)
    assert str(out) in stderr
    load(out)
    assert os.listdir(out.parent) == ["out"]


@pytest.mark.slow
def test_of_two_replacements_at_a_time_the_result_is_that_of_one(source, whole, old, out):
    for _ in range(5):
        shutil.copytree(old, out)
        results = [finish(process) for process in [start(source, out, "--overwrite") for _ in range(2)]]
        assert 0 in [status for status, _ in results]
        for status, stderr in results:
            assert status in (0, 2)
            if status == 2:
                assert_one_sentence(stderr)
        assert content(out) == whole[0]
        assert os.listdir(out.parent) == ["out"]
        shutil.rmtree(out)


@pytest.mark.parametrize("begun", ["before", "meanwhile"])
def test_a_replacement_that_another_process_overtakes_between_its_renames_says_so(old, out, monkeypatch, begun):
    shutil.copytree(old, out)
    rename, calls = os.rename, []

    def fill(folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text)
        (folder / "model.safetensors").write_text(text)

    other = new_folder(out, overwrite=True)
    if begun == "before":
        fill(other.__enter__(), "the other's")

    def rename_and_be_overtaken(source: str, target: str, **options: Any) -> None:
        rename(source, target, **options)
        calls.append(target)
        if len(calls) == 1:  # the old checkpoint is out of the way, the new one not in place
            if begun == "meanwhile":
                fill(other.__enter__(), "the other's")
            other.__exit__(None, None, None)

    with pytest.raises(FileExistsError, match="out"), new_folder(out, overwrite=True) as folder:  # noqa: PT012
        fill(folder, "ours")
        monkeypatch.setattr(os, "rename", rename_and_be_overtaken)
    monkeypatch.undo()
    assert (out / "config.json").read_text() == "the other's"
    assert os.listdir(out.parent) == ["out"]


def test_a_place_that_is_filled_while_the_old_checkpoint_is_put_back_is_no_obstacle(old, out, monkeypatch):
    # A killed run has left the old checkpoint beside the target; two processes come by, and the other is faster.
    abandoned = out.parent / ".out.abcdefgh.replaced.partial"
    shutil.copytree(old, abandoned)
    rename = os.rename

    def rename_too_late(source: str, target: str, **options: Any) -> None:
        if Path(source) == abandoned and not out.exists():
            shutil.copytree(old, out)
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", rename_too_late)
    with new_folder(out, overwrite=True) as folder:
        (folder / "config.json").write_text("ours")
    monkeypatch.undo()
    assert content(out) == {"config.json": b"ours"}
