"""Names, labels and values that others chose: no terminal obeys them, and no spreadsheet computes them."""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import edit_json, rewrite, write_parts
from PIL import Image

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, load, save, terminal
from mlx_convnextv2.classify import main
from mlx_convnextv2.convert import main as convert
from mlx_convnextv2.messages import LINE, csv_cell, cut, grouped, one_line, printable, sentence, short, some

CONTROLS = [*map(chr, range(32)), *map(chr, range(0x7F, 0xA0))]
UNSEEN = [*"\u2028\u2029\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\u061c\xad\udcff"]
ORDINARY = ["línea ü", "猫のしゃしん", "🐈 👨‍👩‍👧 ❤️", "עברית", "می‌خواهم", "a\\b", "50 % 'x' \"y\"", "a\xa0b"]
TITLE = "\x1b]0;owned\x07\x1b[2J"
HOSTILE = f"cat{TITLE}\n  99.9%  dog\r\u202egpj\x9b1m\x7f"
# What may never reach a terminal but for the ends of lines.
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


# --- the two functions ----------------------------------------------------------------------------------------------


def test_what_a_terminal_obeys_or_hides_is_written_as_an_escape():
    for character in [*CONTROLS, *UNSEEN]:
        assert printable(f"a{character}b") == "a" + character.encode("unicode_escape").decode() + "b"


def test_ordinary_text_stays_as_it_is():
    for text in ORDINARY:
        assert printable(text) == csv_cell(text) == text


def test_no_cell_begins_as_a_formula_or_has_a_control_but_the_newlines_that_csv_can_quote():
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", " =1", "\n=1", "\t=1", "\r=1", "=cmd|' /C calc'!A0", "＝1", "-"):  # noqa: RUF001
        assert re.match(r"['\\]", csv_cell(text))
    assert csv_cell("two\nlines\r\t\x1b\x85\u2028") == "two\nlines\\r\\t\\x1b\\x85\\u2028"


# --- what a file said is cut to a line ------------------------------------------------------------------------------

LONG = "x" * 100_000


def test_a_value_or_a_list_of_names_is_never_longer_than_a_line():
    deep = [[[[[[LONG] * 9] * 9] * 9] * 9] * 9] * 9
    for value in (LONG, [LONG] * 9, {LONG: [LONG]}, deep, 10**5_000, {"a": 10**5_000}, b"x" * 999):
        assert 0 < len(short(value)) <= LINE
    for make in (some, grouped):
        assert len(make([f"{i}{LONG}" for i in range(100)])) < 10 * LINE
    assert cut("a" * 300 + "b" * 300, 20) == "aaaaaaaa...bbbbbbbbb"
    assert cut("a" * LINE) == "a" * LINE
    assert len(one_line(RuntimeError(HOSTILE * 1_000))) <= LINE


def test_names_and_errors_have_nothing_that_a_terminal_obeys():
    texts = [some([HOSTILE]), grouped([HOSTILE, f"{HOSTILE}.a"]), one_line(RuntimeError(HOSTILE))]
    texts += [sentence(error) for error in (ValueError(HOSTILE), FileNotFoundError(2, "No such file", HOSTILE))]
    assert not [text for text in texts if RAW.search(text) or "\n" in text]
    assert one_line(RuntimeError()) == "RuntimeError"


# --- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hostile(tmp_path, photo, small_model, small_processor):
    """A model whose first label attacks, an image whose name does, and a broken image of such a name."""
    config = small_model.config.to_dict()
    labels = {0: HOSTILE, 1: "=1+1", 2: f"{HOSTILE} 2", 3: "-dash", 4: LONG, 5: "猫 🐈", 6: "@x"}
    model = type(small_model)(ConvNextV2Config.from_dict({**config, "label2id": None, "id2label": labels}))
    save(model, tmp_path / "model", small_processor)
    Image.Image.save(photo, tmp_path / f"a{TITLE}.png")
    (tmp_path / f"b{TITLE}\n\u202e.png").write_bytes(b"no image")
    (tmp_path / b"c\xff.png".decode("utf-8", "surrogateescape")).write_bytes(b"no image")
    return tmp_path, labels


def classify(hostile: tuple[Path, dict[int, str]], capsys: pytest.CaptureFixture[str], format: str) -> str:
    """What classify prints, in which nothing may be that a terminal obeys."""
    folder, _ = hostile
    assert main([str(folder), "--model", str(folder / "model"), "--format", format, "--top-k", "7"]) == 1
    output = capsys.readouterr()
    assert not RAW.search(output.out)
    assert not RAW.search(output.err)
    assert len(output.err.splitlines()) == 2
    return output.out


def test_a_label_forges_no_row_of_the_table_and_takes_one_line(hostile, capsys):
    lines = classify(hostile, capsys, "table").split("\n")
    assert len(lines) == 1 + 7 + 1  # the image, its labels, and what is after the last end of line
    assert max(map(len, lines[1:])) < LINE + 50


def test_csv_has_a_row_for_each_label_and_no_formula(hostile, capsys):
    rows = list(csv.reader(io.StringIO(classify(hostile, capsys, "csv"), newline="")))
    assert len(rows) == 1 + 7 + 2
    assert {len(row) for row in rows} == {6}
    assert not [cell for row in rows for cell in row if re.match(r"\s*[=+\-@]", cell)]
    assert {row[2] for row in rows[1:8]} == {csv_cell(label) for label in hostile[1].values()}


def test_json_has_the_names_and_labels_as_they_are(hostile, capsys):
    folder, labels = hostile
    first, *failed = map(json.loads, classify(hostile, capsys, "json").splitlines())
    assert first["image"] == f"{folder}/a{TITLE}.png"
    assert {p["label"] for p in first["predictions"]} == set(labels.values())
    assert [line["image"] for line in failed] == [f"{folder}/b{TITLE}\n\u202e.png", f"{folder}/c\udcff.png"]


def test_an_argument_is_repeated_without_what_a_terminal_obeys(capsys):
    with pytest.raises(SystemExit):
        main(["x.png", f"--{TITLE}"])  # what `classify *` makes of a file of that name
    assert not RAW.search(capsys.readouterr().err)


def test_a_warning_or_a_report_is_repeated_without_what_a_terminal_obeys(capsys):
    terminal.run(lambda _: warnings.warn(HOSTILE, stacklevel=1) or 0, argparse.Namespace(), "classify")
    assert not RAW.search(capsys.readouterr().err)
    terminal.tell(f"one{TITLE}\ntwo\r")
    assert capsys.readouterr().out == f"one{printable(TITLE)}\ntwo\\r\n"


def test_convert_says_what_it_left_out_in_one_line(tmp_path, copy, capsys):
    names = {f"optimizer.{HOSTILE}{i}{LONG}": np.zeros(7, np.float32) for i in range(2)}
    rewrite(copy, lambda weights: {**weights, **names})
    assert convert(["--hf-path", str(copy), "--mlx-path", str(tmp_path / f"out{TITLE}")]) == 0
    output = capsys.readouterr().out
    assert not RAW.search(output)
    assert len(output.splitlines()) == 2
    assert "optimizer." in output
    assert len(output) < 1_000 + len(str(tmp_path))


# --- errors about files ---------------------------------------------------------------------------------------------

CONFIGS: dict[str, Any] = {
    "model_type": LONG,
    "hidden_sizes": [LONG] * 9,
    "depths": {LONG: LONG},
    "num_labels": int("9" * 4_000),
    "out_features": [LONG],
    "id2label": {LONG: "a"},
    "patch_size": [LONG],
    "hidden_act": LONG,
    "problem_type": [LONG] * 9,
    "label2id": LONG,
}
PROCESSORS: dict[str, Any] = {
    **dict.fromkeys(ConvNextImageProcessor().to_dict(), [LONG] * 3),
    "image_processor_type": LONG,
    "feature_extractor_type": {LONG: LONG},
    LONG: 1,
    HOSTILE: 1,
}
TIMM = [{"model_args": {LONG: LONG}}, {"pretrained_cfg": LONG}, {"pretrained_cfg": {"input_size": [3, LONG, 8]}}]


def assert_a_short_sentence(error: pytest.ExceptionInfo[BaseException], folder: Path) -> None:
    message = str(error.value)
    assert len(message) < len(str(folder)) + 700  # our words, and a line or two of the file's
    assert "x" * (LINE + 1) not in message
    assert not RAW.search(message)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_repeated_no_longer_than_a_line(copy, name):
    edit_json(copy / "config.json", **{name: CONFIGS[name]})
    with pytest.raises(ValueError, match=r"config\.json") as error:
        load(copy)
    assert_a_short_sentence(error, copy)
    if name != "label2id":  # which is not looked at without id2label
        with pytest.raises(ValueError, match=r"\w") as error:
            ConvNextV2Config.from_dict({name: CONFIGS[name]})
        assert_a_short_sentence(error, copy)


def test_a_processors_values_are_repeated_no_longer_than_a_line(copy):
    whole = (copy / "preprocessor_config.json").read_bytes()
    for name, value in PROCESSORS.items():
        (copy / "preprocessor_config.json").write_bytes(whole)
        edit_json(copy / "preprocessor_config.json", **{name: value})
        with pytest.raises(ValueError, match=r"preprocessor_config\.json") as error:
            ConvNextImageProcessor.from_pretrained(copy)
        assert_a_short_sentence(error, copy)


@pytest.mark.parametrize("values", TIMM)
def test_timms_values_are_repeated_no_longer_than_a_line(copy, values):
    (copy / "config.json").write_text(json.dumps({"architecture": "convnextv2_atto", **values}))
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"config") as error:
        load(copy)
    assert_a_short_sentence(error, copy)


TENSORS: dict[str, dict[str, np.ndarray]] = {
    "a name that nothing has": {LONG: np.zeros(1, np.float32)},
    "a hostile name": {f"convnextv2.{HOSTILE}": np.zeros(1, np.float32)},
    "a type that is not read": {LONG: np.zeros(1, np.int16)},
    "a shape of many sides": {"classifier.bias": np.zeros((1,) * 30, np.float32)},
    "two copies": {f"{'module.' * 90_000}classifier.bias": np.zeros(7, np.float32)},
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_weight_files_names_are_repeated_no_longer_than_a_line(copy, kind):
    rewrite(copy, lambda weights: {**weights, **TENSORS[kind]})
    with pytest.raises(ValueError, match="copy") as error:
        load(copy)
    assert_a_short_sentence(error, copy)
    assert "module." * 40 not in str(error.value)


@pytest.mark.parametrize(
    "header",
    [json.dumps({LONG: {"dtype": LONG}}), json.dumps({"a": {"dtype": HOSTILE}}), '{"a": ' + LONG, f'{{"{HOSTILE}"'],
    ids=["long", "hostile", "cut", "no JSON"],
)
def test_what_safetensors_says_is_repeated_no_longer_than_a_line(copy, header):
    write_parts(copy / "model.safetensors", header.encode("utf-8", "backslashreplace"), b"")
    with pytest.raises(ValueError, match="truncated or corrupt") as error:
        load(copy)
    assert_a_short_sentence(error, copy)


@pytest.mark.parametrize(
    "content", [{LONG: 1}, [LONG], LONG, {"a": {HOSTILE: LONG}}], ids=["key", "list", "text", "deep"]
)
@pytest.mark.parity
def test_a_pytorch_files_content_is_repeated_no_longer_than_a_line(tmp_path, content):
    torch = pytest.importorskip("torch")
    torch.save(content, tmp_path / "copy.pt")
    with pytest.raises(ValueError, match="copy") as error:
        load(tmp_path / "copy.pt")
    assert_a_short_sentence(error, tmp_path)
