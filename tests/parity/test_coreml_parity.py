"""Core ML programs beside transformers, on the same random weights: what a saved package computes, op by op."""

from __future__ import annotations

import gc
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("coremltools", reason="needs the extra coreml")

import torch
from proof.coreml import execute
from reference import pair, relative_error

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification
from mlx_convnextv2.graphs.coreml import export_coreml
from mlx_convnextv2.model.config import SIZES
from mlx_convnextv2.model.quantization import quantize

pytestmark = pytest.mark.parity

TOLERANCE = {"float32": 1e-5, "float16": 2.0**-7}  # a rounding after each of hundreds of operations
SIDE = {"atto": 224, "tiny": 224}  # the others' blocks are the same, and their weights too many to wait for


@pytest.mark.parametrize("size", SIZES)
def test_the_program_computes_transformers_logits(size: str, tmp_path: Path) -> None:
    side = SIDE.get(size, 64)
    theirs, ours = pair(ConvNextV2ForImageClassification, ConvNextV2Config.from_size(size))
    processor = ConvNextImageProcessor(size=side, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, side, side)).astype(np.float32)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (processor.image_mean, processor.image_std))
    with torch.no_grad():
        expected = theirs(torch.from_numpy((pixels * np.float32(1 / 255) - mean) / std)).logits
    del theirs
    gc.collect()
    for dtype, tolerance in TOLERANCE.items():
        package = tmp_path / "Model.mlpackage"
        export_coreml(ours, processor, package, dtype=dtype, overwrite=True)
        seen: dict[str, np.ndarray] = {}
        outputs = execute(package, {"image": pixels}, seen)
        error = relative_error(seen["logits"], expected)
        print(f"{size} {dtype} {error:.1e}")
        assert error <= (2e-5 if (size, dtype) == ("huge", "float32") else tolerance)
        probabilities = torch.softmax(expected, -1)[0].numpy()
        assert np.abs(np.array(list(outputs["classLabel_probs"].values())) - probabilities).max() <= tolerance
        assert outputs["classLabel"] == list(outputs["classLabel_probs"])[int(expected.argmax())]


def test_a_palette_of_four_bits_errs_about_as_mlx_s_four_bits_do(tmp_path: Path) -> None:
    theirs, ours = pair(ConvNextV2ForImageClassification, ConvNextV2Config.from_size("tiny"))
    pixel_values = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixel_values)).logits
    processor = ConvNextImageProcessor(size=64, crop_pct=1.0, do_rescale=False, do_normalize=False)
    export_coreml(ours, processor, tmp_path / "Model.mlpackage", dtype="float32", q_bits=4)
    seen: dict[str, np.ndarray] = {}
    execute(tmp_path / "Model.mlpackage", {"image": pixel_values}, seen)
    quantize(ours, 4, 32)
    mlx_s = relative_error(ours(mx.array(pixel_values.transpose(0, 2, 3, 1))).logits, expected)
    error = relative_error(seen["logits"], expected)
    print(f"4 bits: palette {error:.2f}, MLX {mlx_s:.2f}")
    assert error <= 1.5 * mlx_s
