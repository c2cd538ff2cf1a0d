"""`embed` and `search` as a user runs them, and the page that shows the right pictures."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_chromium
from conftest import ROOT
from libraries import content, picture, write
from PIL import Image

from mlx_convnextv2 import Library, embed_folder
from mlx_convnextv2.demo import DEMO

DIGITS = DEMO / "images"


@pytest.fixture(scope="module")
def library(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "library"
    done = run("embed", "--demo", "--output", folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder}: 10 added\n", "")
    return folder


def test_the_same_command_goes_on_and_another_model_is_refused(library, run, mlx_folder):
    again = run("embed", DIGITS, "--output", library)
    assert (again.returncode, again.stdout) == (0, f"{library}: 10 unchanged\n")
    other = run("embed", DIGITS, "--output", library, "--model", mlx_folder)
    assert other.returncode == 2
    assert re.fullmatch(
        rf"embed: error: .*made with {re.escape(str(DEMO))}, and the weights are others.*\n", other.stderr
    )


def test_what_failed_is_named_and_the_status_says_so(run, tmp_path):
    write(tmp_path / "photos" / "a\x1b[2J.png", b"no image")
    write(tmp_path / "photos" / "b.png", picture(0))
    done = run("embed", tmp_path / "photos", "--output", tmp_path / "library", "--model", DEMO)
    assert (done.returncode, done.stdout) == (1, f"{tmp_path / 'library'}: 1 added, 1 failed\n")
    assert re.fullmatch(r"embed: .*a\\x1b\[2J.png cannot be read.*\n|embed: .*is not an image.*\n", done.stderr)
    (tmp_path / "photos" / "b.png").unlink()
    done = run("embed", tmp_path / "photos", "--output", tmp_path / "library")
    assert (done.returncode, done.stdout) == (2, f"{tmp_path / 'library'}: 1 removed, 1 failed\n")
    for name in os.listdir(tmp_path / "photos"):
        (tmp_path / "photos" / name).unlink()
    write(tmp_path / "photos" / "c.png", picture(0))
    run("embed", tmp_path / "photos", "--output", tmp_path / "library")
    (tmp_path / "photos" / "c.png").unlink()
    done = run("embed", tmp_path / "photos", "--output", tmp_path / "library")
    assert "1 pictures are missing from folders that are empty" in done.stderr


def test_a_process_of_the_launcher_does_its_share(run, tmp_path):
    for number in range(6):
        write(tmp_path / "photos" / f"{number}.png", picture(number) if number else b"no image")
    for rank in "01":
        env = {"MLX_RANK": rank, "MLX_WORLD_SIZE": "2"}
        done = run("embed", tmp_path / "photos", "--output", tmp_path / "library", "--model", DEMO, env=env)
        assert done.returncode == 0  # also where a picture failed, because another status would end the other process
    assert [str(shard) for shard in Library(tmp_path / "library").shards] == ["1/2", "2/2"]
    assert len(content(tmp_path / "library")) == 5


def test_how_to_read_iphones_photos_is_said_once(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("a.heic", "b.heic"):
        write(tmp_path / "photos" / name, b"\0\0\0\x18ftypheic" + bytes(64))
    done = run("embed", tmp_path / "photos", "--output", tmp_path / "library", "--model", DEMO)
    assert (done.returncode, done.stderr.count("which needs the extra heic")) == (2, 2)
    assert done.stderr.count("pip install") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--output", "{}"], "embed: error: no such folder or image: nowhere"),
        (["{}", "--output", "{}"], "is a folder of other things"),
        (["{}", "--output", "{}/library", "--shard", "3/2"], "a shard is one of 1/2 to 2/2"),
        (["--output", "{}"], "give at least one FOLDER"),
        ([str(ROOT / ".github"), "--output", "{}/library"], "no images in"),
    ],
)
def test_a_mistake_is_one_sentence(run, tmp_path, arguments, message):
    write(tmp_path / "a.png", picture(0))
    done = run("embed", *(argument.format(tmp_path) for argument in arguments), "--model", DEMO)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_search_prints_lines_and_json(library, run):
    query = DIGITS / "digit-3.png"
    lines = run("search", library, query, "--top-k", 3).stdout.splitlines()
    assert lines[0] == f" 1.0000  {query}"
    assert len(lines) == 3
    rows = [json.loads(line) for line in run("search", library, query, "--format", "jsonl").stdout.splitlines()]
    assert rows == Library(library).search(query)
    from_pipe = run("search", library, "-", "--top-k", 3, stdin=query.read_bytes())
    assert from_pipe.stdout.splitlines() == lines
    (seven,) = run("search", library, "--label", "7").stdout.splitlines()
    assert seven.endswith("digit-7.png")
    groups = run("search", library, "--duplicates", "--threshold", 0.3).stdout.split("\n\n")
    assert [len(group.splitlines()) for group in groups] == [5, 2, 2]
    rows = run("search", library, "--duplicates", "--threshold", 0.3, "--format", "jsonl").stdout.splitlines()
    assert [json.loads(row)["group"] for row in rows] == [1] * 5 + [2] * 2 + [3] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give an IMAGE, or --label, or --duplicates"),
        (["x.jpg", "--duplicates"], "give an IMAGE, or --label, or --duplicates"),
        (["nowhere.jpg"], "search: error: no such image: nowhere.jpg"),
        (["--label", "cat"], "no label is called 'cat'"),
        (["--duplicates", "--threshold", "2"], "the threshold is a cosine above 0 and at most 1"),
        (["--duplicates", "--output", "/nowhere/page.html"], "it cannot be written"),
        (["--duplicates", "--output", "found.docx"], "found.docx does not say its format"),
    ],
)
def test_a_mistake_in_a_search_is_one_sentence(library, run, arguments, message):
    done = run("search", library, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


# --- the page -------------------------------------------------------------------------------------------------------


def shown(page: str) -> list[np.ndarray]:
    """The pictures of a page, in order."""
    data = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in data]


def test_the_page_shows_the_query_and_then_what_was_found(library, run, tmp_path):
    query = DIGITS / "digit-3.png"
    run("search", library, query, "--top-k", 4, "--output", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    files = [query, *(found["path"] for found in Library(library).search(query, 4))]
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    assert len(pictures) == 5
    assert all(np.array_equal(*pair) for pair in zip(shown(page), pictures, strict=True))
    assert "Most like digit-3.png" in page
    assert not re.search(r"https?://|<script", page)
    assert "default-src 'none'" in page


def test_the_page_of_duplicates_has_a_heading_for_each_group_and_its_pictures(library, run):
    page = run("search", library, "--duplicates", "--threshold", 0.3, "--format", "html").stdout
    assert re.findall(r"<h2>(\d) pictures</h2>", page) == ["5", "2", "2"]
    assert len(shown(page)) == 9


def test_names_are_text_on_the_page_and_a_picture_that_is_gone_leaves_a_word(tmp_path, run):
    name = "<img src=x onerror=alert(1)> \u202e&'\".png"
    write(tmp_path / "photos" / name, picture(0))
    write(tmp_path / "photos" / "gone.png", picture(1))
    embed_folder(tmp_path / "photos", tmp_path / "library", str(DEMO))
    (tmp_path / "photos" / "gone.png").unlink()
    page = run("search", tmp_path / "library", tmp_path / "photos" / name, "--format", "html").stdout
    assert "onerror=alert(1)>" not in page
    assert "\u202e" not in page
    assert "&lt;img src=x onerror=alert(1)&gt; \\u202e&amp;&#x27;&quot;.png" in page
    assert page.count("the file cannot be read any more") == 1


@pytest.mark.slow
@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium and its driver")
def test_a_browser_shows_every_picture_and_has_nothing_to_complain_of(library, run, tmp_path):
    page = tmp_path / "page.html"
    run("search", library, DIGITS / "digit-3.png", "--output", page)
    browser = Browser()
    try:
        browser.open(page.as_uri())
        assert browser.wait("[...document.images].every((image) => image.complete)")
        widths = browser.run("return [...document.images].map((image) => image.naturalWidth)")
        assert widths == [64] * 11
        assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.log() == []
    finally:
        browser.close()


# --- killed ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for number in range(100):
        write(folder / f"{number % 7}" / f"{number}.png", picture(number))
    return folder


def start(photos: Path, library: Path, *arguments: str) -> subprocess.Popen:
    code = (  # commit after each batch, as a run of large models does
        "import sys; from mlx_convnextv2.collections.library import update; update._SECONDS = -1;"
        "from mlx_convnextv2.embed import main; sys.exit(main())"
    )
    words = [sys.executable, "-c", code, str(photos), "--output", str(library), "--model", str(DEMO), *arguments]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_writers_killed_at_twenty_random_moments_leave_a_library_that_is_then_whole(many, tmp_path):
    whole, drawn = tmp_path / "whole", random.Random(0)
    begun = time.monotonic()
    for shard in ("1/2", "2/2"):
        _, stderr = (process := start(many, whole, "--shard", shard)).communicate(timeout=600)
        assert (process.returncode, stderr) == (0, "")
    duration = (time.monotonic() - begun) / 2
    expected, out = content(whole), tmp_path / "out"
    for _ in range(20):
        processes = [start(many, out, "--shard", shard) for shard in ("1/2", "2/2")]
        time.sleep(drawn.uniform(0.2, 1) * duration)
        for process in processes:
            process.kill()
            process.communicate(timeout=600)
        for path, entry in content(out).items() if out.exists() else ():
            assert entry[:7] == expected[path][:7]
    for shard in ("1/2", "2/2"):
        assert start(many, out, "--shard", shard).communicate(timeout=600)[1] == ""
    found = content(out)
    assert {path: entry[:7] for path, entry in found.items()} == {path: entry[:7] for path, entry in expected.items()}
    for path, entry in found.items():  # the last digits depend on the batches, which begin elsewhere after a kill
        ours, reference = (np.frombuffer(features, np.float16) for features in (entry[-1], expected[path][-1]))
        np.testing.assert_allclose(ours.astype(np.float32), reference.astype(np.float32), atol=2**-11)


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done(many, tmp_path):
    process = start(many, tmp_path / "library")
    while not list(tmp_path.glob("library/*.features")) or not content(tmp_path / "library"):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 130
    assert stderr == "embed: interrupted: what is done is kept, and the same command goes on\n"
    assert 0 < len(content(tmp_path / "library")) <= 100
