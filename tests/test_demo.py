"""The bundled demo: its size, its accuracy on digits it was not trained on, and the script that makes it."""

import json
import re
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mlx_convnextv2 import ConvNextImageProcessor, load
from mlx_convnextv2.demo import DEMO

sys.path.insert(0, str(ROOT / "examples"))
import train_digits

SEED = 0  # of the bundled checkpoint: the script's default


@pytest.fixture(scope="module")
def held_out():
    processor = ConvNextImageProcessor.from_pretrained(DEMO)
    pictures, pixel_values, classes = train_digits.digits(processor, SEED)
    return pictures[: train_digits.HELD_OUT], pixel_values[: train_digits.HELD_OUT], classes[: train_digits.HELD_OUT]


def accuracy(model, pixel_values, classes):
    """The share of images whose class is the model's first answer."""
    return float((np.array(model(mx.array(pixel_values)).logits.argmax(axis=-1)) == classes).mean())


def test_the_demo_is_small():
    assert sum(file.stat().st_size for file in DEMO.rglob("*") if file.is_file()) <= 1_500_000


def test_the_bundled_checkpoint_is_right_on_98_percent_of_the_held_out_digits(held_out):
    _, pixel_values, classes = held_out
    model, _ = load(DEMO)
    assert accuracy(model, pixel_values, classes) >= 0.98


def test_the_bundled_images_are_held_out_digits_named_after_their_class(held_out):
    pictures, _, classes = held_out
    files = sorted((DEMO / "images").iterdir())
    assert [file.name for file in files] == [f"digit-{digit}.png" for digit in range(10)]
    for digit, file in enumerate(files):
        same = (pictures == np.asarray(Image.open(file))).all(axis=(1, 2))
        assert digit in classes[same], file


def test_the_demo_command_names_the_bundled_digits(run):
    result = run("classify", "--demo", "--format", "json")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    answers = [(line["image"][-len("7.png")], line["predictions"][0]["label"]) for line in lines]
    assert answers == [(str(digit), str(digit)) for digit in range(10)]


@pytest.mark.slow
def test_the_training_script_reaches_98_percent(tmp_path):
    result = subprocess.run(
        [sys.executable, "examples/train_digits.py", "--output", tmp_path / "digits"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (printed,) = map(float, re.findall(r"held-out accuracy: ([\d.]+)%", result.stdout))
    assert printed >= 98
    model, processor = load(tmp_path / "digits")
    _, pixel_values, classes = train_digits.digits(processor, SEED)
    measured = accuracy(model, pixel_values[: train_digits.HELD_OUT], classes[: train_digits.HELD_OUT])
    assert printed == pytest.approx(100 * measured, abs=0.01)
    assert len(list((tmp_path / "digits" / "images").glob("*.png"))) == 10
