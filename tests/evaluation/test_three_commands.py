"""Two folders of photos and three commands: train, evaluate, classify."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from mlx_convnextv2 import classify, evaluate, train


@pytest.fixture
def photos(tmp_path):
    """Twenty reddish and twenty bluish pictures, in a folder each."""
    random = np.random.RandomState(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = random.randint(0, 160, (48, 40, 3))
            pixels[..., channel] += 95
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_a_classifier_and_a_page_that_shows_how_good_it_is(photos, tiny_folder, tmp_path, capsys):
    model = str(tmp_path / "my-model")
    assert train.main(["--data", str(photos), "--model", str(tiny_folder), "--output", model]) == 0
    files = {name: str(tmp_path / f"out.{name}") for name in ("json", "csv", "html")}
    options = ["--json", files["json"], "--csv", files["csv"], "--report", files["html"]]
    assert evaluate.main(["--data", str(photos), "--model", model, *options]) == 0
    assert "from " + str(photos) + ", the 15% that training set aside" in capsys.readouterr().out

    with (tmp_path / "my-model" / "results.csv").open() as file:
        rows = [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]
    with (tmp_path / "out.json").open() as file:
        figures = json.load(file)
    assert figures["images"] == 6
    assert figures["top1"] == max(row["val_top1"] for row in rows)
    assert any(figures["loss"] == pytest.approx(row["val_loss"], rel=1e-3) for row in rows)
    assert figures["top1"] > 0.9
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert 'id="training"' in page

    assert classify.main([str(photos / "red" / "0.png"), "--model", model, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["label"] == "red"
