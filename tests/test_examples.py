"""The examples, run as their first lines say."""

from __future__ import annotations

import re
import runpy

import pytest
from conftest import ROOT

from mlx_convnextv2.demo import DEMO


@pytest.fixture
def run_example(mlx_folder, monkeypatch, capsys):
    def run_example(name: str, *arguments: object, model: object = mlx_folder) -> str:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments), "--model", str(model)])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def test_embeddings_finds_a_digit_like_itself_and_unlike_another(run_example):
    def similarity(one: int, other: int) -> float:
        images = (DEMO / "images" / f"digit-{digit}.png" for digit in (one, other))
        (found,) = re.findall(r"similarity: (-?[\d.]+)", run_example("embeddings.py", *images, model=DEMO))
        return float(found)

    assert similarity(3, 3) == 1
    assert similarity(3, 8) < 0.5


def test_feature_maps_prints_each_stage(run_example, photo, tmp_path):
    photo.save(tmp_path / "a.png")
    # the processor makes 32 x 32 pixels; the stages of the small model are 8, 12, 20 and 33 channels wide
    assert run_example("feature_maps.py", tmp_path / "a.png").splitlines() == [
        "stage1: 8 x 8 positions of 8 channels, one for every 4 pixels",
        "stage2: 4 x 4 positions of 12 channels, one for every 8 pixels",
        "stage4: 1 x 1 positions of 33 channels, one for every 32 pixels",
    ]


def test_frames_prints_a_label_for_each_frame(run_example):
    lines = run_example("frames.py").splitlines()
    assert len(lines) == 8
    for number, line in enumerate(lines):
        assert re.fullmatch(rf"frame {number}: thing [0-6] \(\d+\.\d%\)", line)
