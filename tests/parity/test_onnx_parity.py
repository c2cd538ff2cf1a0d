"""ONNX Runtime, with our files and as our engine, beside transformers on the same random weights."""

from __future__ import annotations

import gc
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime")

import onnxruntime
import torch
from PIL import Image
from reference import pair

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, fuse
from mlx_convnextv2.graphs.onnx import export_onnx
from mlx_convnextv2.model.config import SIZES

pytestmark = pytest.mark.parity

SIDE = {"atto": 224, "tiny": 224}  # the others' blocks are the same, and their weights too many to wait for


@pytest.mark.parametrize("size", SIZES)
def test_onnx_runtime_s_answers_are_transformers(size: str, tmp_path: Path) -> None:
    """Of huge the weights are more than 2 GB, so that they lie beside the graph."""
    side = SIDE.get(size, 64)
    theirs, ours = pair(ConvNextV2ForImageClassification, ConvNextV2Config.from_size(size))
    processor = ConvNextImageProcessor(size=side, crop_pct=1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    pixel_values = np.array(processor([Image.fromarray(image) for image in pixels]))
    with torch.no_grad():
        outputs = theirs.convnextv2(torch.from_numpy(pixel_values.transpose(0, 3, 1, 2).copy()))
        embedding = outputs.pooler_output.numpy()
        logits = theirs.classifier(outputs.pooler_output)
        probabilities, logits = torch.softmax(logits, -1).numpy(), logits.numpy()
    del theirs
    gc.collect()
    float32 = 2e-5 if size == "huge" else 1e-5
    for expected, pooled in ((logits, False), (embedding, True)):
        answer = np.array(fuse(ours, "onnxruntime", pooled=pooled)(mx.array(pixel_values)))
        print(f"{size} engine {np.abs(answer - expected).max() / np.abs(expected).max():.1e}")
        assert np.abs(answer - expected).max() <= float32 * np.abs(expected).max()
    precisions = [("float32", None, float32), ("float16", None, 2.0**-7)]
    for dtype, bits, tolerance in precisions if size == "huge" else [*precisions, ("float32", 8, 2.0**-4)]:
        export_onnx(ours, processor, tmp_path / "o", features=True, dtype=dtype, q_bits=bits, overwrite=True)
        assert (tmp_path / "o" / "model.onnx_data").exists() == ((size, dtype) == ("huge", "float32"))
        session = onnxruntime.InferenceSession(str(tmp_path / "o" / "model.onnx"), providers=["CPUExecutionProvider"])
        answers = dict(zip(("probabilities", "embedding"), session.run(None, {"pixels": pixels}), strict=True))
        errors = [np.abs(answers["probabilities"] - probabilities).max() / probabilities.max()]
        errors += [np.abs(answers["embedding"] - embedding).max() / np.abs(embedding).max()]
        print(f"{size} {dtype} {bits or ''} {errors[0]:.1e} {errors[1]:.1e}")
        assert max(errors) <= tolerance
        del session
        gc.collect()
