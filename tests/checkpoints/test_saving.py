"""Where save writes: the folder appears whole or not at all, and what is no checkpoint is never replaced."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import assert_same_weights, content
from conftest import ROOT, SMALL

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2Model, load, save
from mlx_convnextv2.files.atomic_folder import new_folder

OTHER = ConvNextV2Model(ConvNextV2Config(**SMALL))


class FailingProcessor(ConvNextImageProcessor):
    """Raises when it is written, which is after the weights."""

    def __init__(self, error: BaseException):
        super().__init__()
        self._error = error

    def to_dict(self) -> dict[str, Any]:
        raise self._error


@pytest.mark.parametrize("error", [ValueError("in the middle"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_exception_in_the_middle_leaves_what_was_there(tmp_path, small_model, error, overwrite):
    if overwrite:
        save(OTHER, tmp_path / "saved")
    before = content(tmp_path)
    with pytest.raises(type(error)):
        save(small_model, tmp_path / "saved", FailingProcessor(error), overwrite=overwrite)
    assert content(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == overwrite


def test_a_rename_that_fails_leaves_the_checkpoint_that_was_to_be_replaced(tmp_path, small_model, monkeypatch):
    save(OTHER, tmp_path / "saved")
    before = content(tmp_path)
    rename, calls = os.rename, []

    def second_fails(source: str, target: str, **options: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error", str(target))
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="Input/output"):
        save(small_model, tmp_path / "saved", overwrite=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
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
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "weights are written\n"
            (partial,) = tmp_path.iterdir()
            assert (partial / "model.safetensors").is_file()
            process.send_signal(sent)
            assert process.wait(timeout=600) != 0
        finally:
            process.kill()
    assert not (tmp_path / "saved").exists()
    if sent == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []
    save(load(mlx_folder)[0], tmp_path / "saved")  # what was left is in nobody's way
    assert (tmp_path / "saved" / "model.safetensors").is_file()


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


OCCUPIED: dict[str, Callable[[Path], object]] = {
    "a full folder": folder_with("thesis.txt"),
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


def test_a_checkpoint_is_replaced_only_when_asked_to(tmp_path, small_model):
    save(OTHER, tmp_path / "saved", max_shard_bytes=20_000)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite"):
        save(small_model, tmp_path / "saved")
    assert content(tmp_path) == before
    save(small_model, tmp_path / "saved", ConvNextImageProcessor(), overwrite=True)
    assert_same_weights(load(tmp_path / "saved")[0], small_model)
    assert not list((tmp_path / "saved").glob("*-of-*"))
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_an_empty_folder_is_filled_and_parents_are_made(tmp_path, small_model):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "saved"):
        save(small_model, folder, ConvNextImageProcessor())
        assert_same_weights(load(folder)[0], small_model)


def test_a_target_that_appears_in_the_meantime_is_left_alone(tmp_path):
    with pytest.raises(FileExistsError), new_folder(tmp_path / "saved") as folder:  # noqa: PT012 - what happens inside
        (folder / "config.json").write_text("{}")
        folder_with("thesis.txt")(tmp_path / "saved")
    assert content(tmp_path) == {"saved/thesis.txt": b"{}"}


@pytest.mark.parametrize("umask", [0o027, 0o002])
def test_the_new_folder_and_its_files_have_the_rights_that_the_umask_gives(tmp_path, small_model, umask):
    before = os.umask(umask)
    try:
        save(small_model, tmp_path / "saved", ConvNextImageProcessor())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "saved").stat().st_mode) == 0o777 & ~umask
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "saved").iterdir()}
    names = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    assert files == dict.fromkeys(names, 0o666 & ~umask)


@pytest.mark.usefixtures("as_everybody")
def test_a_parent_that_is_read_only_is_an_oserror(tmp_path, small_model):
    (tmp_path / "read-only").mkdir(mode=0o555)
    with pytest.raises(PermissionError):
        save(small_model, tmp_path / "read-only" / "saved")
    assert list((tmp_path / "read-only").iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_where_a_disk_is_mounted_nothing_is_replaced(tmp_path, small_model, monkeypatch, overwrite):
    target = tmp_path / "disk"
    target.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == target)
    with pytest.raises(FileExistsError, match="choose another folder"):
        save(small_model, target, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == [target]
