"""`classify` as a user runs it: its exit status, and what it prints."""

import csv
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time

import pytest
from conftest import ROOT
from PIL import Image

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2Model, ImageClassifier, load, save


@pytest.fixture
def classify(run, mlx_folder):
    def classify(*arguments, model=mlx_folder, **options):
        return run("classify", *arguments, "--model", model, **options)

    return classify


@pytest.fixture
def folder(tmp_path, photo):
    """Photos at two depths, among other files."""
    root = tmp_path / "photos"
    (root / "below").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in ("b.png", "a.JPG", "below/c.webp", ".hidden/d.png", ".e.png"):
        photo.save(root / name, format="JPEG" if name.endswith("JPG") else None)
    (root / "notes.txt").write_text("no image")
    return root


def json_lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- what goes in ---------------------------------------------------------------------------------------------------


def test_a_file_gives_what_the_library_gives(classify, folder, mlx_folder):
    (line,) = json_lines(classify(folder / "b.png", "--format", "json", "--top-k", 3))
    assert line["image"] == str(folder / "b.png")
    assert line["predictions"] == ImageClassifier(mlx_folder)(folder / "b.png", top_k=3)


def test_a_folder_is_searched_for_images_in_order_without_hidden_ones(classify, folder):
    result = classify(folder, "--format", "json")
    assert result.returncode == 0, result.stderr
    names = [os.path.relpath(line["image"], folder) for line in json_lines(result)]
    assert names == ["a.JPG", "b.png", "below/c.webp"]


def test_standard_input_is_an_image(classify, folder):
    content = (folder / "b.png").read_bytes()
    (piped,) = json_lines(classify("-", "--format", "json", stdin=content))
    (from_file,) = json_lines(classify(folder / "b.png", "--format", "json"))
    assert piped == {**from_file, "image": "-"}


def test_images_come_out_in_the_order_in_which_they_were_given(classify, folder):
    given = [folder / "below" / "c.webp", folder / "a.JPG", folder / "b.png", folder / "a.JPG"]
    lines = json_lines(classify(*given, "--format", "json", "--batch-size", 3))
    assert [line["image"] for line in lines] == list(map(str, given))


@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_batch_size_changes_no_answer(classify, folder, size):
    usual = json_lines(classify(folder, "--format", "json"))
    for line, expected in zip(
        json_lines(classify(folder, "--format", "json", "--batch-size", size)), usual, strict=True
    ):
        assert [p["index"] for p in line["predictions"]] == [p["index"] for p in expected["predictions"]]
        scores = [p["score"] for p in expected["predictions"]]
        assert [p["score"] for p in line["predictions"]] == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize(
    "name", ["two words.png", "quote'\".png", "comma,.png", "línea.png", "new\nline.png", "-dash.png"]
)
def test_odd_names_are_read_and_written_back(classify, tmp_path, photo, name):
    photo.save(tmp_path / name)
    (line,) = json_lines(classify(tmp_path / name, "--format", "json"))
    assert line["image"] == str(tmp_path / name)
    rows = list(csv.DictReader(io.StringIO(classify(tmp_path / name, "--format", "csv").stdout, newline="")))
    assert {row["image"] for row in rows} == {str(tmp_path / name)}


def test_a_name_that_is_no_text_is_read(classify, tmp_path, photo):
    path = os.fsencode(tmp_path) + b"/\xff.png"
    with open(path, "wb") as file:
        photo.save(file, format="PNG")
    for file_format in ("table", "json", "csv"):
        assert classify(os.fsdecode(path), "--format", file_format).returncode == 0


# --- what comes out -------------------------------------------------------------------------------------------------


def test_the_table_shows_file_score_bar_and_label(classify, folder):
    first, *lines = classify(folder / "b.png", "--top-k", 2).stdout.splitlines()
    predictions = json_lines(classify(folder / "b.png", "--top-k", 2, "--format", "json"))[0]["predictions"]
    assert first == str(folder / "b.png")
    for line, prediction in zip(lines, predictions, strict=True):
        score, bar, label = line[2:8], line[10:34], line[36:]
        assert score == f"{prediction['score']:6.1%}"
        # a bar of 24 characters has 192 eighths
        eighths = 8 * bar.count("█") + sum("▏▎▍▌▋▊▉".find(c) + 1 for c in bar)
        assert eighths == round(prediction["score"] * 192)
        assert label == prediction["label"]


def test_the_table_falls_back_to_ascii(run_process, folder, mlx_folder):
    result = run_process("classify", folder / "b.png", "--model", mlx_folder, env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert result.stdout.isascii()
    assert "#" in result.stdout


def test_csv_has_a_line_for_each_label_and_each_error(classify, folder, tmp_path):
    result = classify(folder / "b.png", tmp_path / "gone.png", "--format", "csv", "--top-k", 2)
    header, *rows = list(csv.reader(io.StringIO(result.stdout)))
    assert header == ["image", "rank", "label", "index", "score", "error"]
    predictions = json_lines(classify(folder / "b.png", "--format", "json", "--top-k", 2))[0]["predictions"]
    expected = [
        [str(folder / "b.png"), str(i + 1), p["label"], str(p["index"]), str(p["score"]), ""]
        for i, p in enumerate(predictions)
    ]
    assert rows[:2] == expected
    assert rows[2][:5] == [str(tmp_path / "gone.png"), "", "", "", ""]
    assert "gone.png" in rows[2][5]


def test_labels_of_any_kind_reach_every_format(tmp_path, run, photo, small_model, small_processor):
    labels = ['a, "b"', "猫", "🐈", "two\nlines", "e", "f", "g"]
    model = type(small_model)(
        ConvNextV2Config.from_dict(
            {**small_model.config.to_dict(), "label2id": None, "id2label": dict(enumerate(labels))}
        )
    )
    save(model, tmp_path / "model", small_processor)
    photo.save(tmp_path / "a.png")
    results = {
        f: run("classify", tmp_path / "a.png", "--model", tmp_path / "model", "--top-k", 7, "--format", f)
        for f in ("table", "json", "csv")
    }
    assert all(result.returncode == 0 for result in results.values())
    assert {p["label"] for p in json_lines(results["json"])[0]["predictions"]} == set(labels)
    rows = csv.DictReader(io.StringIO(results["csv"].stdout, newline=""))
    assert {row["label"] for row in rows} == set(labels)
    assert all(label.replace("\n", "\\n") in results["table"].stdout for label in labels)


def test_a_half_type_gives_the_same_first_answers(classify, folder):
    usual = [line["predictions"][0]["index"] for line in json_lines(classify(folder, "--format", "json"))]
    for dtype in ("float16", "bfloat16"):
        lines = json_lines(classify(folder, "--format", "json", "--dtype", dtype))
        assert [line["predictions"][0]["index"] for line in lines] == usual


# --- exit statuses --------------------------------------------------------------------------------------------------


def test_one_bad_image_is_named_and_the_rest_is_done(classify, folder, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no photo")
    result = classify(folder / "a.JPG", tmp_path / "bad.jpg", folder / "b.png", "--format", "json")
    assert result.returncode == 1
    assert "bad.jpg" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    good, bad, rest = json_lines(result)
    assert "predictions" in good
    assert "predictions" in rest
    assert "bad.jpg" in bad["error"]


def test_an_empty_folder_keeps_its_place(classify, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    result = classify(folder / "b.png", tmp_path / "empty", folder / "a.JPG", "--format", "json")
    assert result.returncode == 1
    first, empty, last = json_lines(result)
    assert "predictions" in first
    assert empty == {"image": str(tmp_path / "empty"), "error": f"no images in the folder {tmp_path / 'empty'}"}
    assert "predictions" in last


def test_a_file_that_is_no_image_is_said_to_be_none(classify, tmp_path):
    (tmp_path / "notes.jpg").write_text("no image")
    assert "notes.jpg is not an image" in classify(tmp_path / "notes.jpg").stderr


@pytest.mark.parametrize("name", ["gone.png", "empty", "text.png"])
def test_nothing_done_is_2(classify, tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    result = classify(tmp_path / name)
    assert result.returncode == 2
    assert result.stdout == ""
    assert name in result.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "IMAGE"),
        (("--top-k", "0", "x.png"), "at least 1"),
        (("--top-k", "many", "x.png"), "many"),
        (("--batch-size=-1", "x.png"), "at least 1"),
        (("--format", "xml", "x.png"), "xml"),
        (("--dtype", "int8", "x.png"), "int8"),
        (("--demo", "--model", "m"), "--model"),
        (("--colour", "x.png"), "--colour"),
    ],
)
def test_wrong_arguments_are_2(run, arguments, word):
    result = run("classify", *arguments)
    assert result.returncode == 2
    assert word in result.stderr


@pytest.mark.parametrize("model", ["./gone", "/gone/folder", "some where", "", "somebody/uncached"])
def test_a_model_that_is_not_there_is_2_and_one_line(classify, folder, model):
    result = classify(folder / "b.png", model=model)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("classify: error: ")


def test_a_model_without_classes_is_2(classify, folder, tmp_path, mlx_folder, small_processor):
    headless, _ = load(mlx_folder, model_class=ConvNextV2Model)
    save(headless, tmp_path / "headless", small_processor)
    result = classify(folder / "b.png", model=tmp_path / "headless")
    assert result.returncode == 2
    assert "no classification head" in result.stderr


def test_help_shows_examples(run):
    result = run("classify", "--help")
    assert result.returncode == 0
    assert "python -m mlx_convnextv2.classify cat.jpg" in result.stdout


# --- interrupted ----------------------------------------------------------------------------------------------------


def start(folder, model, *arguments, **options):
    command = [sys.executable, "-m", "mlx_convnextv2.classify", *map(str, arguments), "--model", str(model)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture(scope="module")
def many(tmp_path_factory, photo):
    folder = tmp_path_factory.mktemp("many")
    Image.Image.save(photo, folder / "000.png")
    for i in range(1, 400):
        os.link(folder / "000.png", folder / f"{i:03}.png")
    return folder


def test_a_reader_that_has_seen_enough_is_no_error(many, mlx_folder):
    process = start(many, mlx_folder, many, "--format", "json", "--batch-size", 1)
    json.loads(process.stdout.readline())
    process.stdout.close()
    assert process.wait(600) == 0
    assert process.stderr.read() == ""


def test_ctrl_c_leaves_complete_lines_and_no_traceback(many, mlx_folder):
    process = start(many, mlx_folder, many, "--format", "json", "--batch-size", 1)
    lines = [process.stdout.readline()]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    lines += out.splitlines(keepends=True)
    assert process.returncode == 130
    assert err == ""
    assert 0 < len(lines) < 400
    for line in lines:
        assert line.endswith("\n")
        json.loads(line)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_waiting_for_standard_input_can_be_ended(mlx_folder, sent, status):
    reader, writer = os.pipe()
    with tempfile.TemporaryFile("w+") as err:
        command = [sys.executable, "-m", "mlx_convnextv2.classify", "-", "--model", str(mlx_folder)]
        process = subprocess.Popen(command, cwd=ROOT, stdin=reader, stdout=subprocess.DEVNULL, stderr=err)
        os.write(writer, b"the beginning")
        while fcntl.ioctl(reader, termios.FIONREAD, bytes(4)) != bytes(4):  # until it is read, and waits for the rest
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(sent)
        try:
            assert process.wait(600) == status
        finally:
            process.kill()
            os.close(reader)
            os.close(writer)
        err.seek(0)
        assert err.read() == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_stream_that_the_shell_has_closed_is_no_traceback(closed, mlx_folder, photo, tmp_path):
    Image.Image.save(photo, tmp_path / "photo.png")
    image = "-" if closed == "<&-" else tmp_path / "photo.png"
    command = f"{sys.executable} -m mlx_convnextv2.classify {image} --model {mlx_folder} {closed}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=600)
    expected = "classify: <stdin> cannot be read: it is empty\n" if closed == "<&-" else ""
    assert (done.returncode, done.stderr) == (2 if closed == "<&-" else 0, expected)
    assert bool(done.stdout) == (closed == "2>&-")


# --- on a terminal --------------------------------------------------------------------------------------------------


def read_terminal(command, until=None, env=None):
    """Run a command with a terminal for its standard error, up to a word there: what came there, and the output."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with tempfile.TemporaryFile("w+") as out:
        environment = {**os.environ, **(env or {})}
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=follower, env=environment)
        os.close(follower)
        seen = b""
        while (until is None or until not in seen) and select.select([leader], [], [], 600)[0]:
            try:
                seen += os.read(leader, 4096)
            except OSError:  # the other end is closed
                break
        process.kill()
        process.wait()
        os.close(leader)
        out.seek(0)
        return seen.decode(), out.read()


def test_many_images_are_counted_on_a_terminal_alone(many, mlx_folder, run):
    some = [*sorted(many.iterdir())[:20], "--model", mlx_folder, "--format", "json"]
    seen, out = read_terminal([sys.executable, "-m", "mlx_convnextv2.classify", *some])
    assert "/20 [" in seen
    assert re.search(r"\r *\rclassify: 20 images in [\d.]+ s, [\d.]+ a second\s*$", seen)  # the bar is wiped
    assert len(out.splitlines()) == 20
    assert run("classify", *some).stderr == ""


def test_the_first_word_comes_before_a_model_is_downloaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        env = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_ETAG_TIMEOUT": "3600",
        }
        command = [sys.executable, "-m", "mlx_convnextv2.classify", "cat.jpg"]
        seen, _ = read_terminal(command, until=b"...", env=env)
    assert "Loading facebook/convnextv2-tiny-1k-224" in seen


def test_verbose_says_what_computes_and_how_fast_on_standard_error(run):
    plain = run("classify", "--demo", "--top-k", "1", "--format", "csv")
    result = run("classify", "--demo", "--top-k", "1", "--format", "csv", "--verbose")
    assert (result.returncode, result.stdout) == (0, plain.stdout)
    machine, rate = result.stderr.splitlines()
    assert re.fullmatch(r"classify: MLX [\d.]+ on the [CG]PU, blocks .+; loaded in \d+\.\d\d s", machine)
    assert re.fullmatch(r"classify: 10 images in \d+\.\d\d s, \d+\.\d a second", rate)
