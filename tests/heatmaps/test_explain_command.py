"""`python -m mlx_convnextv2.explain` as a user types it."""

import json

import numpy as np
import pytest
from PIL import Image

from mlx_convnextv2.explain import main


@pytest.fixture
def world(tmp_path, photo, monkeypatch):
    photo.save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_picture_gets_its_heat_map(world, mlx_folder, capsys):
    assert main(["cat.png", "--model", str(mlx_folder), "--label", "thing 3"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("heatmaps/cat.heatmap.png: thing 3  ")
    with Image.open(world / "heatmaps" / "cat.heatmap.png") as drawn:
        assert drawn.size == (90, 70)


def test_the_map_itself_is_printed_or_written(world, mlx_folder, capsys):
    assert main(["cat.png", "--model", str(mlx_folder), "--format", "json", "--layer", "stage2"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["image"] == "cat.png"
    assert np.array(printed["heat_map"]).shape == (4, 4)
    options = ["--format", "npy", "--layer", "stage2", "--output", "maps"]
    assert main(["cat.png", "--model", str(mlx_folder), *options]) == 0
    assert np.abs(np.load(world / "maps" / "cat.heatmap.npy") - printed["heat_map"]).max() < 1e-5


def test_one_failure_among_others_is_named_and_counted(world, mlx_folder, capsys):
    assert main(["cat.png", "dog.png", "--model", str(mlx_folder)]) == 1
    output = capsys.readouterr()
    assert output.err == "explain: no such image: dog.png\n"
    assert output.out.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cat.png", "--label", "dog"], "explain: error: no label is called 'dog'"),
        (["cat.png", "--layer", "stage7"], "explain: error: layer must be one of stem, stage1"),
        (["cat.png", "--layer", "stage1", "--method", "exact"], "explain: error: only the last stage"),
        (["cat.png", "--label", "1", "--against", "thing 1"], "explain: error: the label thing 1 cannot be compared"),
        (["."], "explain: error"),
        (["nothing.png"], "explain: no such image: nothing.png"),
    ],
)
def test_a_mistake_is_one_sentence(world, mlx_folder, capsys, arguments, message):
    (world / "cat.png").unlink() if arguments == ["."] else None
    assert main([*arguments, "--model", str(mlx_folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message.replace(": error", "")) or error.startswith(message)
    assert error.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--demo", "--model", "m"], ["cat.png", "--method", "lime"]])
def test_wrong_usage_is_told_with_status_2(world, capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2


def test_the_demo_explains_a_digit_from_anywhere(world, capsys):
    assert main(["--demo", "--layer", "stage1"]) == 0
    assert capsys.readouterr().out.startswith("heatmaps/digit-8.heatmap.png: 8  93")


def test_standard_input_is_a_picture(world, mlx_folder, run):
    picture = (world / "cat.png").read_bytes()
    result = run("explain", "-", "--model", mlx_folder, "--format", "json", stdin=picture)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["image"] == "-"
