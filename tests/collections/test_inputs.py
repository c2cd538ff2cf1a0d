"""What a user may name, and what becomes of it: folders, patterns, lists, broken links, addresses, videos."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mlx_convnextv2.collections import Shard, find_inputs
from mlx_convnextv2.collections.inputs import find_sources

FILES = ("a.png", "b.jpg", "sub/c.png", "sub/deep/d.jpg", "sub/.hidden.png", "notes.txt", "clip.mp4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


@pytest.fixture
def classify(run, mlx_folder, tmp_path) -> Callable:
    def classify(*arguments, **options):
        result = run("classify", *arguments, "--model", mlx_folder, "--format", "jsonl", cwd=tmp_path, **options)
        return result, [json.loads(line) for line in result.stdout.splitlines()]

    return classify


def names(*arguments: object, **options) -> list[str]:
    return [source.name for source in find_sources(map(str, arguments), **options)]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", ["a.png"]),
        ("**/*.png", ["a.png", "sub/c.png"]),
        ("*/*.[jp][pn]g", ["sub/c.png"]),
        ("su?", ["sub/c.png", "sub/deep/d.jpg"]),
        ("**", ["a.png", "b.jpg", "clip.mp4", "notes.txt", "sub/c.png", "sub/deep/d.jpg"]),
    ],
)
def test_a_quoted_pattern_means_what_it_means_to_a_shell(folder: Path, pattern: str, found: list[str]) -> None:
    assert names(folder / pattern) == [str(folder / name) for name in found]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_a_pattern_cannot_look_into_is_named(folder: Path) -> None:
    (folder / "sub").chmod(0)
    try:
        assert names(folder / "**/*.png") == [str(folder / "a.png"), str(folder / "sub")]
    finally:
        (folder / "sub").chmod(0o755)


def test_links_that_form_loops_are_not_followed_by_a_pattern(folder: Path, monkeypatch) -> None:
    for name in ("one", "two", "sub/up"):
        (folder / name).symlink_to(folder)
    monkeypatch.chdir(folder)
    assert names("**/*.png") == ["a.png", "sub/c.png"]
    assert names("**/sub/**/*.jpg", "./sub/**") == ["sub/deep/d.jpg", "./sub/c.png", "./sub/deep/d.jpg"]


def test_a_file_whose_name_looks_like_a_pattern_or_a_list_is_that_file(folder: Path, monkeypatch) -> None:
    for name in ("IMG[1].png", "@home.png"):
        (folder / name).touch()
    assert names(folder / "IMG[1].png") == [str(folder / "IMG[1].png")]
    monkeypatch.chdir(folder)
    assert names("@home.png") == ["@home.png"]


def test_a_pattern_without_images_is_named(classify) -> None:
    result, (line,) = classify("gone/*.jpg")
    assert result.returncode == 2
    assert line == {"image": "gone/*.jpg", "error": "no image matches gone/*.jpg"}


def test_a_list_names_files_folders_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(os.fsencode(f"{folder}/a.png\r\n\n{folder}/sub\n*.png\n{folder}/\udcff.png"))
    expected = [folder / "a.png", folder / "sub/c.png", folder / "sub/deep/d.jpg", "*.png", folder / "\udcff.png"]
    assert names(f"@{tmp_path / 'list'}") == [*map(str, expected)]


@pytest.mark.parametrize(("encoding", "found"), [("utf-8-sig", ["é.png"]), ("utf-16", "UTF-8")])
def test_a_list_that_windows_has_saved(classify, tmp_path: Path, photo, encoding, found) -> None:
    photo.save(tmp_path / "é.png")
    (tmp_path / "list.txt").write_text("é.png\r\n", encoding=encoding)
    result, lines = classify("@list.txt")
    assert [line["image"] for line in lines] == found if result.returncode == 0 else found in result.stderr


def test_names_come_from_standard_input_with_newlines_in_them_after_0(classify, tmp_path: Path, photo) -> None:
    for name in ("a.png", "new\nline.png"):
        photo.save(tmp_path / name)
    result, lines = classify("@-", "-0", stdin=b"a.png\0new\nline.png\0")
    assert (result.returncode, [line["image"] for line in lines]) == (0, ["a.png", "new\nline.png"])
    result, _ = classify("@-", stdin=b"a.png\0new\nline.png\0")
    assert (result.returncode, "-0" in result.stderr) == (2, True)


@pytest.mark.parametrize(("argument", "word"), [("@", "@list.txt"), ("@gone", "no such list"), ("@zeros", "names")])
def test_a_list_that_cannot_be_read_is_a_sentence(classify, tmp_path: Path, argument: str, word: str) -> None:
    (tmp_path / "zeros").write_bytes(b"x" * 1_000_000)
    result, _ = classify(argument)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert word in result.stderr


def test_a_list_of_nothing_is_said_to_be_empty_and_replaces_nothing(classify, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text("old")
    for arguments in ((), ("--output", "old.jsonl"), ("--output", "new/")):
        result, _ = classify("@-", *arguments, stdin=b"\n\n")
        assert (result.returncode, result.stderr) == (2, "classify: error: no images are named\n")
    assert (tmp_path / "old.jsonl").read_text() == "old"


def test_a_broken_link_in_a_folder_is_named_and_the_rest_is_done(classify, tmp_path: Path, photo) -> None:
    (tmp_path / "photos").mkdir()
    photo.save(tmp_path / "photos/a.png")
    (tmp_path / "photos/link.png").symlink_to("/gone/b.png")
    result, (good, bad) = classify("photos")
    assert result.returncode == 1
    assert "predictions" in good
    assert bad == {"image": "photos/link.png", "error": "no such image: photos/link.png (it is a link to /gone/b.png)"}


def test_the_shards_of_a_folder_are_the_same_wherever_it_is_mounted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(folder)
    for one in (folder, tmp_path / "elsewhere", f"{folder}/"):
        taken = [names(one, shard=Shard(i, 2)) for i in (1, 2)]
        assert [[Path(path).name for path in paths] for paths in taken] == [["a.png", "b.jpg", "d.jpg"], ["c.png"]]
        taken = [names(f"{one}/**/*.*g", shard=Shard(i, 2)) for i in (1, 2)]
        assert [[Path(path).name for path in paths] for paths in taken] == [["a.png", "b.jpg", "d.jpg"], ["c.png"]]


def test_a_million_names_are_taken_one_by_one() -> None:
    def endless():
        number = 0
        while True:
            yield f"{number}.jpg"
            number += 1

    inputs = find_inputs(endless())
    assert [next(inputs).name for _ in range(3)] == ["0.jpg", "1.jpg", "2.jpg"]


def test_heic_advice_comes_once_and_each_file_is_named(classify, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    for name in "abc":
        (tmp_path / f"{name}.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    Image.new("RGB", (40, 40)).save(tmp_path / "d.png")
    result, lines = classify("a.heic", "b.heic", "c.heic", "d.png")
    said = result.stderr.splitlines()
    assert [line.split()[1] for line in said] == ["a.heic", "b.heic", "c.heic"]
    assert ["pip install" in line for line in said] == [True, False, False]
    assert all("needs the extra heic" in line["error"] and "pip" not in line["error"] for line in lines[:3])


def test_videos_in_folders_are_taken_only_with_fps(folder: Path) -> None:
    assert "clip.mp4" not in str(names(folder))
    assert str(folder / "clip.mp4") in names(folder, fps=1.0)
