"""Results in files: what each format holds, that none is half written, and that no cell is a formula."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from mlx_convnextv2 import ImageClassifier
from mlx_convnextv2.collections import Summary, classify_images
from mlx_convnextv2.collections.formats import read_records
from mlx_convnextv2.messages import json_text

ODD = [
    "=1+1.png",
    "@SUM(A1).png",
    "\t=x.png",
    "tab\t\x1b[2J.png",
    "猫 ü.png",
    "\u202egpj.png",
    "\udcff.png",
    "a\x85.png",
]


@pytest.fixture
def photos(tmp_path: Path, photo) -> Path:
    """Photos with odd names, and a file that is no photo."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ODD:
        with (folder / name).open("wb") as file:
            Image.Image.save(photo, file, format="PNG")
    (folder / "none.png").write_text("no image")
    return folder


@pytest.fixture
def classify(run, mlx_folder, photos):
    def classify(*arguments, images=("@-",), **options):
        listed = b"\0".join(os.fsencode(name) for name in [*ODD, "none.png"])
        given = ["classify", *images, "-0", "--model", mlx_folder, "--top-k", 2, *arguments]
        return run(*given, cwd=photos, stdin=listed, **options)

    return classify


@pytest.fixture
def expected(mlx_folder, photos) -> dict:
    classifier = ImageClassifier(mlx_folder)
    return {name: classifier(photos / name, top_k=2) for name in ODD}


def test_json_lines_are_utf_8_and_give_every_name_back(classify, expected) -> None:
    result = classify("--format", "jsonl")
    assert result.returncode == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    for line, (name, predictions) in zip(lines, expected.items(), strict=False):
        assert line["image"] == name
        assert [p["label"] for p in line["predictions"]] == [p["label"] for p in predictions]
    assert lines[-1]["error"] == "none.png is not an image, or of a format that is not read"
    assert "猫 ü.png" in result.stdout
    assert not any(unsafe in result.stdout for unsafe in "\x1b\x85\u202e\x7f")
    assert classify("--format", "json").stdout == result.stdout


@pytest.mark.parametrize(
    "value", ["\x00\x7f\x9f\u2028\u202e\ud800\U000e0001", {"\x85": ["a\x1b"]}, 1.5, None, "\\u202e"]
)
def test_json_without_unsafe_characters_means_the_same(value: object) -> None:
    assert json.loads(json_text(value)) == value
    assert json_text(value).encode().decode().isprintable()


def test_csv_has_whole_numbers_empty_cells_and_no_formulas(classify, expected, photos) -> None:
    result = classify("--output", "labels.csv")
    assert (result.returncode, result.stdout) == (1, "")
    text = (photos / "labels.csv").read_text(encoding="utf-8")
    assert not any(unsafe in text for unsafe in "\t\r\x1b\x85\u202e")
    header, *rows = csv.reader(io.StringIO(text))
    assert header == ["image", "rank", "label", "index", "score", "error"]
    assert [row[:2] for row in rows[:2]] == [["'=1+1.png", "1"], ["'=1+1.png", "2"]]
    assert not any(cell.strip().startswith(("=", "+", "-", "@")) for row in rows for cell in row)
    assert [row[3] for row in rows[:2]] == [str(p["index"]) for p in expected[ODD[0]]]
    assert rows[-1][:5] == ["none.png", "", "", "", ""]


def test_parquet_has_types_and_the_same_values(classify, photos) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert classify("--output", "labels.parquet").returncode == 1
    assert classify("--output", "labels.jsonl").returncode == 1
    table = parquet.read_table(photos / "labels.parquet")
    types = ["string", "int32", "string", "int32", "double", "string"]
    assert [str(kind) for kind in table.schema.types] == types
    rows = table.to_pylist()
    for line in map(json.loads, (photos / "labels.jsonl").read_text().splitlines()):
        for rank, found in enumerate(line.get("predictions", []), start=1):
            row = rows.pop(0)
            assert row["image"] == line["image"].encode("utf-8", "backslashreplace").decode()
            assert {**found, "rank": rank} == {name: row[name] for name in ("label", "score", "index", "rank")}
    assert rows == [{**dict.fromkeys(table.column_names), "image": "none.png", "error": line["error"]}]


def test_without_pyarrow_parquet_names_its_extra_before_anything_is_computed(classify, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = classify("--output", "labels.parquet")
    assert result.returncode == 2
    assert result.stderr == 'classify: error: Parquet needs the extra parquet: pip install "mlx-convnextv2[parquet]"\n'


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--output", "labels.xls"], ".parquet"),
        (["--output", "labels.csv", "--format", "table"], "table"),
        (["--output", "results/", "--format", "csv"], "--merge"),
        (["--output", "none.png/"], "is a file"),
        (["--output", "gone/labels.csv"], "gone/labels.csv"),
        (["--format", "parquet"], "--output"),
        (["--shard", "3/2"], "1/2"),
    ],
)
def test_a_place_that_does_not_fit_is_a_sentence(classify, photos, arguments, word) -> None:
    before = sorted(photos.iterdir())
    result = classify(*arguments)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert word in result.stderr
    assert sorted(photos.iterdir()) == before


def test_a_dash_as_output_is_standard_output(classify, photos) -> None:
    assert classify("--output", "-", "--format", "csv").stdout == classify("--format", "csv").stdout
    assert not (photos / "-").exists()


def test_a_file_that_is_interrupted_leaves_the_old_one(classify, photos, mlx_folder, monkeypatch) -> None:
    (photos / "labels.csv").write_text("old")
    stream = ImageClassifier.stream

    def interrupted(*arguments, **options):
        yield next(results := stream(*arguments, **options))
        results.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageClassifier, "stream", interrupted)
    before = sorted(photos.iterdir())
    assert classify("--output", "labels.csv").returncode == 130
    assert (photos / "labels.csv").read_text() == "old"
    assert sorted(photos.iterdir()) == before


def test_the_summary_counts_images_failures_by_kind_and_speed(classify, photos) -> None:
    (photos / "link.png").symlink_to("gone")
    summary = classify("--output", "labels.csv", images=["@-", "link.png"]).stderr.splitlines()[-1]
    counted = "; 2 failed: 1 no images, damaged or too large, 1 not there"
    assert summary.startswith("classify: 10 images in ")
    assert summary.endswith(f" a second{counted}")
    assert classify("--output", "one.csv", images=[ODD[0]]).stderr == ""


def test_a_program_gets_the_same(mlx_folder, photos, tmp_path) -> None:
    summary = classify_images(ImageClassifier(mlx_folder), [str(photos / ODD[0])], tmp_path / "out.jsonl", top_k=3)
    assert isinstance(summary, Summary)
    assert (summary.images, summary.failed) == (1, 0)
    assert len(json.loads((tmp_path / "out.jsonl").read_text())["predictions"]) == 3


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"image": 5, "error": "gone"}',
        '{"image": "a"}',
        '{"image": "a", "predictions": [1]}',
        '{"image": "a", "predictions": [{"label": {}, "score": 1.0, "index": 1}]}',
    ],
)
def test_a_damaged_line_names_its_file(tmp_path, line) -> None:
    (tmp_path / "part.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"part\.jsonl is damaged"):
        list(read_records(tmp_path / "part.jsonl"))


def test_a_damaged_parquet_file_is_named(classify, photos) -> None:
    pytest.importorskip("pyarrow")
    classify("--output", "part.parquet")
    content = (photos / "part.parquet").read_bytes()
    said = set()
    for place in range(4, len(content), 97):
        (photos / "part.parquet").write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        try:
            list(read_records(photos / "part.parquet"))
        except ValueError as error:
            said.add(str(error).partition(":")[0])
    assert said == {f"{photos / 'part.parquet'} is damaged"}
