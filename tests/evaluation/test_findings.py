"""What follows from the answers, and how it reads: tables, JSON, CSV, plot."""

import csv
import importlib.util
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from labelled import answered, three
from PIL import Image

from mlx_convnextv2.evaluation import check_outputs
from mlx_convnextv2.evaluation.findings import Confusion


def test_figures_follow_from_the_answers(tmp_path):
    found = three(tmp_path)
    assert len(found) == 6
    assert found.correct.tolist() == [True, True, True, False, False, False]
    assert found.predictions.tolist() == [0, 0, 1, 0, 1, 0]
    assert found.top1 == 0.5
    assert found.top5 == 1
    assert found.confusion_matrix.tolist() == [[2, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert Confusion(label=2, prediction=0, images=1) in found.confusions
    assert sum(confusion.images for confusion in found.confusions) == 6
    assert found.most_confused(1) == [Confusion(1, 0, 1)]
    assert found.mistakes() == [5, 3, 4]  # by confidence
    assert found.mistakes(1) == [5]
    low, high = found.top1_interval
    assert 0.1 < low < 0.5 < high < 0.9


def test_mistakes_are_joined_where_there_are_many_classes(tmp_path):
    logits = np.eye(7)[[0, 1, 2, 6, 6, 5]] * 9
    found = answered(tmp_path, logits, [0, 2, 2, 6, 0, 4])
    shares, group = found.mistake_shares(4)
    assert group == 2
    assert shares.tolist() == [[0, 0, 0, 0.5], [0.5, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    whole, group = found.mistake_shares(7)
    assert group == 1
    assert whole[0].tolist() == [0, 0, 0, 0, 0, 0, 0.5]


def test_the_table_has_the_figures_the_classes_and_the_mistakes(tmp_path):
    text = str(three(tmp_path))
    for line in (
        r"images +6 in 3 classes, from photos, 1 failed",
        r"top-1 +50.00% \(95 % interval 18.76% to 81.24%\)",
        r"by class +precision 33.3%, recall 50.0%, F1 38.9%: means over classes",
        r"speed +3.0 images a second",
        r"cat +50.0% +100.0% +66.7% +2",
        r"1 dog +1 +1 +\.",
        r" +1  dog -> cat",
        r" +\d+\.\d%  cat, but it is bird: .*5\.png",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), line
    assert "top-5" not in text  # of three classes


def test_of_many_classes_the_worst_are_shown(tmp_path):
    logits = np.eye(50)[[*range(49), 0]] * 9
    text = str(answered(tmp_path, logits, range(50)))
    assert "The 30 classes with the lowest F1, of 50:" in text
    assert re.search(r"^class 49 +0.0% +0.0% +0.0% +1$", text, re.MULTILINE)
    assert "class 48" not in text
    assert "Confusion matrix" not in text
    assert "top-5        98.00%" in text


def test_a_table_of_hostile_names_stays_on_its_lines(tmp_path):
    found = three(tmp_path, model="m\x1b[31m\nx", data="d\u202e")
    found.labels[0] = "\x1b]0;title\x07" + "long " * 100
    text = str(found)
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", text)
    assert max(map(len, text.splitlines())) < 200


def test_the_json_has_every_figure(tmp_path):
    found = three(tmp_path)
    found.write(json=tmp_path / "figures.json")
    values = json.loads((tmp_path / "figures.json").read_text())
    assert values == found.to_json()
    assert (values["top1"], values["top5"], values["images"]) == (0.5, 1, 6)
    assert values["loss"] == pytest.approx(found.loss)
    assert values["macro"] == pytest.approx({"precision": 1 / 3, "recall": 0.5, "f1": 7 / 18})
    assert values["classes"][0] == pytest.approx(
        {"index": 0, "label": "cat", "precision": 0.5, "recall": 1, "f1": 2 / 3, "support": 2, "predicted": 4}
    )
    assert {"label": 2, "prediction": 0, "images": 1} in values["confusion_matrix"]
    assert values["calibration"]["expected_error"] == pytest.approx(found.calibration.expected_error)
    assert sum(one["images"] for one in values["calibration"]["bins"]) == 6
    assert [mistake["image"] for mistake in values["mistakes"]] == [str(found.images[i]) for i in (5, 3, 4)]
    assert values["mistakes"][0]["prediction"] == "cat"
    assert values["failed"] == [{"image": "bad.png", "error": "bad.png is broken"}]


def test_what_is_no_number_is_null(tmp_path):
    found = three(tmp_path)
    for name in ("targets", "ranks", "losses", "target_scores", "answers", "scores"):
        setattr(found, name, getattr(found, name)[:0])
    found.images = []
    values = found.to_json()
    assert values["top1"] is values["loss"] is values["macro"]["f1"] is values["calibration"]["expected_error"] is None
    assert math.isnan(found.top1)
    json.dumps(values, allow_nan=False)


def test_the_csv_has_a_line_for_each_image(tmp_path):
    found = three(tmp_path)
    found.write(csv=tmp_path / "answers.csv")
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [*map(str, found.images), "bad.png"]
    assert [row["correct"] for row in rows] == ["1", "1", "1", "0", "0", "0", ""]
    assert rows[5] | {"image": "", "score": "", "label_score": ""} == {
        **{"image": "", "score": "", "label_score": ""},
        **{"label": "bird", "prediction": "cat", "correct": "0", "rank": "2", "error": ""},
    }
    assert float(rows[5]["score"]) == pytest.approx(float(found.scores[5, 0]), rel=1e-5)
    assert float(rows[5]["label_score"]) == pytest.approx(float(found.target_scores[5]), rel=1e-5)
    assert rows[6]["error"] == "bad.png is broken"


def test_a_cell_is_no_formula_and_no_command_to_a_terminal(tmp_path):
    found = three(tmp_path)
    found.labels[:2] = ["=1+1", 'a,"b"\x1b']
    found.write(csv=tmp_path / "answers.csv")
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1][1] == "'=1+1"
    assert rows[3][1] == 'a,"b"\\x1b'


def test_names_that_are_no_utf_8_are_written_all_the_same(tmp_path):
    found = three(tmp_path)
    found.images[5] = Path(os.fsdecode(b"caf\xe9.png"))
    found.write(csv=tmp_path / "answers.csv", json=tmp_path / "figures.json", report=tmp_path / "report.html")
    assert "caf\\udce9.png" in (tmp_path / "answers.csv").read_text(encoding="utf-8")
    assert "caf\\udce9.png" in (tmp_path / "report.html").read_text(encoding="utf-8")


# --- the plot -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "suffix"),
    [(40, ".png"), *(pytest.param(2, suffix, marks=pytest.mark.slow) for suffix in (".png", ".svg", ".pdf"))],
)
def test_the_plot_is_a_picture_of_its_kind(tmp_path, classes, suffix):
    pytest.importorskip("matplotlib")
    found = answered(
        tmp_path, np.eye(classes)[[0, 1, 1]] * 3, [0, 1, 0], labels=["$x$ & y", *map(str, range(classes - 1))]
    )
    found.write(plot=tmp_path / f"plot{suffix}")
    content = (tmp_path / f"plot{suffix}").read_bytes()
    assert content.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    if suffix == ".png":
        width, height = Image.open(tmp_path / "plot.png").size
        assert 1000 < width < 4000
        assert 500 < height < 2500


@pytest.mark.filterwarnings("error:Glyph")
def test_a_name_in_letters_that_no_font_has_is_drawn_without_a_word(tmp_path):
    pytest.importorskip("matplotlib")
    found = answered(tmp_path, np.eye(2), [0, 1], labels=["犬", "\U00013080"])
    found.write(plot=tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=re.escape('pip install "mlx-convnextv2[benchmark]"')):
        check_outputs(plot=tmp_path / "plot.png")


# --- the files ------------------------------------------------------------------------------------------------------


def test_files_are_checked_before_and_whole_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "there.json").write_text("old")
    check_outputs(json=tmp_path / "there.json", csv=tmp_path / "new.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there.json"]
    assert (tmp_path / "there.json").read_text() == "old"
    with pytest.raises(OSError, match="cannot be written"):
        check_outputs(report=tmp_path / "absent" / "report.html")
    with pytest.raises(ValueError, match="two of the files to write are one"):
        check_outputs(json=tmp_path / "a", csv=tmp_path / "." / "a")
    check_outputs(json="/dev/null", csv="/dev/null")
    found = three(tmp_path)
    monkeypatch.setattr(type(found), "top1", property(lambda self: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        found.write(json=tmp_path / "there.json")
    assert (tmp_path / "there.json").read_text() == "old"
