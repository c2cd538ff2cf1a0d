"""Small results kept on a machine: read as they were written, or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from mlx_convnextv2.files import user_cache

KEY = {"device": "Apple M3", "shape": (1, 7, 7, 8)}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MLX_CONVNEXTV2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kept(folder: Path) -> Path:
    (path,) = folder.glob("*.json")
    return path


def test_what_was_kept_is_read_under_its_key_alone() -> None:
    assert user_cache.read(KEY) is None
    assert user_cache.write(KEY, {"choice": "plain"})
    assert user_cache.read(KEY) == {"choice": "plain"}
    for changed in ({**KEY, "device": "Apple M4"}, {**KEY, "shape": (2, 7, 7, 8)}, {**KEY, "dtype": "float16"}):
        assert user_cache.read(changed) is None
    assert user_cache.write(KEY, {"choice": "compiled"})
    assert user_cache.read(KEY) == {"choice": "compiled"}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[1]", b"\xff\xfe", b"[" * 60_000, b'{"key": {}, "value": {}}'),
        json.dumps({"key": {**KEY, "device": "other"}, "value": {}}).encode(),
        json.dumps({"key": KEY, "value": [1]}).encode(),
        json.dumps({"key": KEY}).encode(),
        json.dumps({"key": KEY, "value": {"long": "x" * 100_000}}).encode(),
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_broken_or_foreign_file_is_not_there_and_can_be_replaced(content: bytes, folder: Path) -> None:
    user_cache.write(KEY, {"choice": "plain"})
    kept(folder).write_bytes(content)
    assert user_cache.read(KEY) is None
    assert user_cache.write(KEY, {"choice": "plain"})
    assert user_cache.read(KEY) == {"choice": "plain"}


def test_a_folder_in_place_of_the_file_is_ignored(folder: Path) -> None:
    user_cache.write(KEY, {"choice": "plain"})
    path = kept(folder)
    path.unlink()
    path.mkdir()
    assert user_cache.read(KEY) is None
    assert not user_cache.write(KEY, {"choice": "plain"})
    assert [name.name for name in folder.iterdir()] == [path.name]  # nothing half written is left


def test_a_folder_that_cannot_be_made_keeps_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MLX_CONVNEXTV2_CACHE", str(tmp_path / "file" / "below"))
    assert not user_cache.write(KEY, {})
    assert user_cache.read(KEY) is None
    with user_cache.alone() as alone:
        assert not alone


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_keeps_nothing(folder: Path) -> None:
    folder.mkdir()
    (folder / "lock").touch()
    folder.chmod(0o500)
    assert not user_cache.write(KEY, {})
    with user_cache.alone() as alone:
        assert not alone


class TestFolder:
    @pytest.mark.parametrize(
        ("platform", "variables", "expected"),
        [
            ("darwin", {}, "home/Library/Caches/mlx_convnextv2"),
            ("linux", {}, "home/.cache/mlx_convnextv2"),
            ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/mlx_convnextv2"),
            ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache/mlx_convnextv2"),
            ("linux", {"XDG_CACHE_HOME": "/xdg", "MLX_CONVNEXTV2_CACHE": "~/here"}, "home/here"),
        ],
    )
    def test_is_the_systems_unless_a_variable_names_another(
        self, platform: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("MLX_CONVNEXTV2_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setattr("sys.platform", platform)
        assert user_cache.folder() == tmp_path / expected

    def test_is_none_for_a_user_without_a_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLX_CONVNEXTV2_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        assert user_cache.folder() is None
        assert not user_cache.write(KEY, {})
        assert user_cache.read(KEY) is None


def _hold(ready, folder: str) -> None:
    os.environ["MLX_CONVNEXTV2_CACHE"] = folder
    with user_cache.alone() as alone:
        ready.send(alone)
        signal.pause()


def test_only_one_process_is_alone_and_a_killed_one_is_in_nobodys_way(folder: Path) -> None:
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=_hold, args=(there, str(folder)))
    other.start()
    try:
        assert here.poll(600)
        assert here.recv()
        with user_cache.alone() as alone:
            assert not alone
    finally:
        other.kill()
        other.join()
    with user_cache.alone() as alone:
        assert alone


def _write_often(folder: str, number: int) -> None:
    os.environ["MLX_CONVNEXTV2_CACHE"] = folder
    while True:
        user_cache.write(KEY, {"number": number, "padding": "x" * 20_000})


def test_a_reader_beside_writers_that_are_killed_sees_whole_values(folder: Path) -> None:
    user_cache.write(KEY, {"number": 0, "padding": "x" * 20_000})
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(str(folder), number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    try:
        seen = [user_cache.read(KEY) for _ in range(300)]
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    assert all(value is not None and len(value["padding"]) == 20_000 for value in seen)
    assert user_cache.read(KEY) is not None
