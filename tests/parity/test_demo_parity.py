"""The bundled digits checkpoint, saved in Hugging Face's format and run by transformers."""

import sys

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mlx_convnextv2 import load, save  # noqa: E402
from mlx_convnextv2.demo import DEMO  # noqa: E402

sys.path.insert(0, str(DEMO.parents[1] / "examples"))
import train_digits  # noqa: E402

pytestmark = pytest.mark.parity


def test_transformers_gives_the_same_predictions_on_the_whole_held_out_set(tmp_path):
    model, processor = load(DEMO)
    save(model, tmp_path / "huggingface", processor, format="huggingface")
    theirs = transformers.ConvNextV2ForImageClassification.from_pretrained(tmp_path / "huggingface").eval()
    _, pixel_values, _ = train_digits.digits(processor, seed=0)
    pixel_values = pixel_values[: train_digits.HELD_OUT]
    with torch.no_grad():
        expected = theirs(torch.tensor(pixel_values.transpose(0, 3, 1, 2))).logits.numpy()
    logits = np.array(model(mx.array(pixel_values)).logits)
    assert (logits.argmax(-1) == expected.argmax(-1)).all()
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
