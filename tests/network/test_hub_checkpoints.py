"""The 18 published checkpoints, from the Hub itself: their numbers on a photo of two cats that everybody uses.

The logits are those of transformers with Pillow's preprocessing. Needs about 7 GB in huggingface_hub's cache.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_convnextv2 import ConvNextV2Model, ImageClassifier, load

pytestmark = pytest.mark.network

IMAGE = "http://images.cocodataset.org/val2017/000000039769.jpg"

# The first five logits, within 1e-3.
LOGITS = {
    "atto-1k-224": [-0.3930, 0.1747, -0.5246, 0.4177, 0.4295],
    "femto-1k-224": [-0.1727, -0.5341, -0.7818, -0.4745, -0.6566],
    "pico-1k-224": [-0.0333, 0.1563, -0.9137, 0.1054, 0.0381],
    "nano-1k-224": [-0.1744, -0.1555, -0.0713, 0.0950, -0.1431],
    "tiny-1k-224": [0.9996, 0.1966, -0.4386, -0.3472, 0.6661],
    "base-1k-224": [-0.2553, -0.6708, -0.1359, 0.2518, -0.2488],
    "large-1k-224": [-0.0673, -0.5627, -0.3753, -0.2722, 0.0178],
    "huge-1k-224": [-0.6377, -0.7458, -0.2150, 0.1184, -0.0597],
    "nano-22k-224": [1.0799, 0.2322, -0.8860, 1.0219, 0.6231],
    "nano-22k-384": [0.3766, 0.4917, -1.1426, 0.9942, 0.6024],
    "tiny-22k-224": [0.4220, -0.6919, -0.4317, -0.2881, -0.6609],
    "tiny-22k-384": [0.1082, -0.8286, -0.5095, 0.4681, -0.8085],
    "base-22k-224": [-0.2419, -0.6221, 0.2176, -0.0980, -0.7527],
    "base-22k-384": [0.0391, -0.4371, 0.3786, 0.1251, -0.2784],
    "large-22k-224": [-0.0504, 0.5636, -0.1729, -0.6507, -0.3949],
    "large-22k-384": [0.3560, 0.9486, 0.3149, -0.2667, -0.5138],
    "huge-22k-384": [-0.2469, -0.4550, -0.5853, -0.0810, 0.0309],
    "huge-22k-512": [-0.3090, 0.0802, -0.0682, -0.1979, -0.2826],
}


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """The photo, or a skip where it or the Hub is out of reach; asked once."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    path = tmp_path_factory.mktemp("photo") / "cats.jpg"
    try:
        urllib.request.urlopen(
            f"{endpoint}/facebook/convnextv2-atto-1k-224/resolve/main/config.json", timeout=5
        ).close()
        with urllib.request.urlopen(IMAGE, timeout=10) as response:
            path.write_bytes(response.read())
    except (OSError, ValueError) as error:
        pytest.skip(f"the Hub or the photo is out of reach: {error}")
    return path


@pytest.mark.parametrize("name", LOGITS)
def test_a_published_checkpoint_gives_its_published_logits(photo, name):
    model, processor = load(f"facebook/convnextv2-{name}")
    logits = np.array(model(processor(photo)).logits)
    assert logits.shape == (1, 1000)
    np.testing.assert_allclose(logits[0, :5], LOGITS[name], atol=1e-3)


def test_tiny_sees_a_tabby(photo):
    best = ImageClassifier("facebook/convnextv2-tiny-1k-224")(photo)[0]
    assert (best["label"], best["index"]) == ("tabby, tabby cat", 281)


def test_the_last_hidden_state_of_tiny_has_seven_by_seven_places(photo):
    model, processor = load("facebook/convnextv2-tiny-1k-224", model_class=ConvNextV2Model)
    last_hidden_state = model(processor(photo)).last_hidden_state
    mx.eval(last_hidden_state)
    assert last_hidden_state.shape == (1, 7, 7, 768)


def test_the_classify_command_names_the_cat(photo, run):
    result = run("classify", photo, "--top-k", 1, env={"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0")})
    assert result.returncode == 0, result.stderr
    assert "tabby, tabby cat" in result.stdout
