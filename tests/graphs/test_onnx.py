"""A model as an ONNX file: what ONNX Runtime computes with it, and what it says of itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from conftest import ROOT, randomize

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, load
from mlx_convnextv2.classify import main as classify
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.export import main
from mlx_convnextv2.files import onnx_file
from mlx_convnextv2.files.onnx_file import encoded
from mlx_convnextv2.graphs.compression import quantize
from mlx_convnextv2.graphs.export import export
from mlx_convnextv2.graphs.onnx import export_onnx
from mlx_convnextv2.inference.onnx_graph import inference_graph
from mlx_convnextv2.model.config import ACTIVATIONS

IMAGES = sorted((DEMO / "images").glob("*.png"))
HALF = 2.0**-8


def small(**options) -> ConvNextV2ForImageClassification:
    options = {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, **options}
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**options))
    randomize(model)
    model.eval()
    return model


def run(file: Path | bytes, as_written: bool = False, **inputs: np.ndarray) -> list[np.ndarray]:
    """`as_written` keeps ONNX Runtime from replacing operations by ones of its own."""
    source, options = file if isinstance(file, bytes) else str(file), onnxruntime.SessionOptions()
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.fixture(scope="module")
def digits():
    """The bundled model, its processor, the images as an app has them, and what the model answers."""
    model, processor = load(DEMO)
    pixels = np.stack([np.asarray(processor.resize(Image.open(image).convert("RGB"))) for image in IMAGES])
    pooled = model.convnextv2(processor(IMAGES)).pooler_output
    return model, processor, pixels, np.array(pooled), np.array(mx.softmax(model.classifier(pooled), axis=-1))


@pytest.mark.parametrize("input", ["uint8", "float32"])
@pytest.mark.parametrize(("dtype", "bits"), [("float32", None), ("float16", None), ("float32", 8)])
def test_onnx_runtime_answers_as_the_model_does(
    dtype: str, bits: int | None, input: str, digits, tmp_path: Path
) -> None:
    model, processor, pixels, pooled, probabilities = digits
    told = export_onnx(model, processor, tmp_path / "o", features=True, dtype=dtype, q_bits=bits, input=input)
    tolerance = 2.0**-6 if bits else HALF if dtype == "float16" else 1e-5
    for images in (slice(0, 1), slice(None)):  # the batch is free
        answer, embedding = run(tmp_path / "o" / "model.onnx", pixels=pixels[images].astype(input))
        assert answer.dtype == embedding.dtype == np.float32
        assert np.abs(answer - probabilities[images]).max() <= tolerance
        assert np.abs(embedding - pooled[images]).max() <= tolerance * np.abs(pooled).max()
        assert np.array_equal(answer.argmax(-1), probabilities[images].argmax(-1))
    assert told.bytes == sum(file.stat().st_size for file in (tmp_path / "o").iterdir())


@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
def test_every_activation_and_any_size_of_image(hidden_act: str) -> None:
    model = small(hidden_act=hidden_act)
    model.convnextv2.layernorm.eps = 1  # JSON has whole numbers too
    graph = encoded(inference_graph(model))
    onnx.checker.check_model(graph, full_check=True)
    for shape in ((2, 16, 20, 3), (1, 37, 29, 3)):
        pixel_values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        (logits,) = run(graph, pixel_values=pixel_values)
        expected = np.array(model(mx.array(pixel_values)).logits)
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_pooled_features_alone() -> None:
    model = small()
    pixel_values = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    expected = np.array(model.convnextv2(mx.array(pixel_values)).pooler_output)
    for graph in (inference_graph(model, pooled=True), inference_graph(model.convnextv2)):
        (pooled,) = run(encoded(graph), pixel_values=pixel_values)
        assert np.abs(pooled - expected).max() <= 1e-5 * np.abs(expected).max()


def test_eight_bits_are_those_of_the_nearest_integers(tmp_path: Path) -> None:
    """The model whose linear layers are the integers times their scales, to the rounding of float32.

    ONNX Runtime, left to itself, multiplies integers, for which it rounds the activations too.
    """
    model, processor = small(), ConvNextImageProcessor(size=16, crop_pct=1.0)
    layers = [block for stage in model.convnextv2.encoder.stages for block in stage.layers]
    for block in layers:  # GRN's bias becomes a part of pwconv2's by the weights as they were
        block.grn.bias = mx.zeros(block.grn.bias.shape)
    export_onnx(model, processor, tmp_path / "o", q_bits=8)
    for linear in [model.classifier, *(layer for block in layers for layer in (block.pwconv1, block.pwconv2))]:
        stored = quantize(np.array(linear.weight))
        assert np.abs(stored.integers * stored.scale[:, None] - np.array(linear.weight)).max() <= stored.scale.max()
        linear.weight = mx.array(stored.integers * stored.scale[:, None])
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    expected = np.array(mx.softmax(model(processor(Image.fromarray(pixels[0]))).logits, axis=-1))
    (answer,) = run(tmp_path / "o" / "model.onnx", as_written=True, pixels=pixels)
    assert np.abs(answer - expected).max() <= 1e-5
    (answer,) = run(tmp_path / "o" / "model.onnx", pixels=pixels)
    assert np.abs(answer - expected).max() <= 2.0**-6


def test_sums_of_squares_do_not_overflow_in_float16(tmp_path: Path) -> None:
    model = small(hidden_sizes=[8], depths=[1], num_stages=1)
    block = model.convnextv2.encoder.stages[0].layers[0]
    block.pwconv1.weight = block.pwconv1.weight * 500
    block.pwconv2.weight = block.pwconv2.weight / 500
    processor = ConvNextImageProcessor(size=224, crop_pct=1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    answers = []
    for dtype in ("float32", "float16"):
        export_onnx(model, processor, tmp_path / dtype, dtype=dtype)
        answers += run(tmp_path / dtype / "model.onnx", pixels=pixels)
    assert np.abs(answers[0] - answers[1]).max() <= 2 * HALF


def test_weights_that_protobuf_could_not_hold_lie_beside_the_graph(digits, tmp_path: Path, monkeypatch) -> None:
    model, processor, pixels, _, probabilities = digits
    monkeypatch.setattr(onnx_file, "MAX_WEIGHT_BYTES", 1000)
    told = export_onnx(model, processor, tmp_path / "o")
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == ["model.json", "model.onnx", "model.onnx_data"]
    assert told.bytes == sum(file.stat().st_size for file in (tmp_path / "o").iterdir())
    (answer,) = run(tmp_path / "o" / "model.onnx", pixels=pixels)
    assert np.abs(answer - probabilities).max() <= 1e-5


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    processor = ConvNextImageProcessor(size=40, crop_pct=0.8)
    model = small(id2label={0: "Äpfel", 1: "pears\ud800"})
    export_onnx(model, processor, tmp_path / "o", name="owner/fruit", licence="mit")
    graph = onnx.load(tmp_path / "o" / "model.onnx")
    told = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(told["labels"]) == ["Äpfel", "pears\ud800"]
    assert told["model"] == "owner/fruit"
    assert told["licence"].startswith("mit, as the source states.")
    described = json.loads((tmp_path / "o" / "model.json").read_text(encoding="utf-8"))
    assert described["labels"] == ["Äpfel", "pears\ud800"]
    assert json.loads(told["preprocessing"]) == described["preprocessing"]
    resize = described["preprocessing"]["resize"]
    assert (resize["short_side"], resize["filter"]) == (50, "Pillow's bicubic")
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 21)]
    (takes,), shape = graph.graph.input, graph.graph.input[0].type.tensor_type.shape.dim
    assert (takes.name, shape[0].dim_param, [dim.dim_value for dim in shape[1:]]) == ("pixels", "batch", [40, 40, 3])


def test_the_python_of_the_page_on_apps_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^## ONNX\n.*?```python\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    model = small(id2label={0: "Äpfel", 1: "pears"})
    export_onnx(model, ConvNextImageProcessor(size=224), tmp_path / "tiny-onnx")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() in ("Äpfel", "pears"), done.stderr


def test_a_checkpoint_is_exported(hf_folder: Path, tmp_path: Path) -> None:
    source = hf_folder
    export(source, tmp_path / "o", format="onnx")
    model, _ = load(source)
    processor = ConvNextImageProcessor(size=32, crop_pct=1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    expected = np.array(mx.softmax(model(processor(Image.fromarray(pixels[0]))).logits, axis=-1))
    (answer,) = run(tmp_path / "o" / "model.onnx", pixels=pixels)
    assert np.abs(answer - expected).max() <= 1e-5


class TestTheCommand:
    def test_writes_what_the_library_does_and_replaces_it_if_asked_to(self, tmp_path: Path, capsys) -> None:
        arguments = ["--demo", "--format", "onnx", "--output", str(tmp_path / "o")]
        assert main([*arguments, "-q", "--features"]) == 0
        said = capsys.readouterr().out
        assert "linear layers in 8 bits, uint8 pixels (batch, 32, 32, 3) to probabilities and embedding" in said
        assert main(arguments) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert main([*arguments, "--overwrite", "--dtype", "float16", "--input", "float32"]) == 0
        assert main(["--demo", "--output", str(tmp_path / "o"), "--overwrite"]) == 2
        assert "is not an exported model" in capsys.readouterr().err
        assert classify(["--model", str(tmp_path / "o"), str(IMAGES[0])]) == 2
        assert "is an ONNX model" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["o"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--dtype", "bfloat16"], "computes in float32 or float16, not in 'bfloat16'"),
            (["-q", "--q-bits", "4"], "quantized to 8 bits, not to 4"),
            (["-q", "--q-mode", "affine"], "leave the mode (--q-mode) out"),
            (["-q", "--q-group-size", "32"], "leave the group size (--q-group-size) out"),
            (["--batch", "8"], "leave the batch (--batch) out"),
            (["--format", "mlx", "--input", "uint8"], "leave the input (--input) out"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_mistakes_are_a_sentence_and_leave_nothing(self, arguments, said: str, tmp_path: Path, capsys) -> None:
        assert main(["--demo", "--format", "onnx", "--output", str(tmp_path / "o"), *arguments]) == 2
        assert said in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_without_onnx_it_says_what_to_install(self, tmp_path: Path, capsys, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "onnx", None)
        assert main(["--demo", "--format", "onnx", "--output", str(tmp_path / "o")]) == 2
        assert 'pip install "mlx-convnextv2[onnx]"' in capsys.readouterr().err

    @pytest.mark.slow
    def test_it_needs_neither_pytorch_nor_onnx_runtime(self, tmp_path: Path) -> None:
        program = (
            "import sys\n"
            "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'onnxruntime')))\n"
            "from mlx_convnextv2.export import main\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        arguments = ["--demo", "--format", "onnx", "--output", str(tmp_path / "o")]
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_weights_that_float16_cannot_hold_and_a_model_without_a_head_are_refused(tmp_path: Path) -> None:
    processor = ConvNextImageProcessor(size=32)
    model = small()
    model.classifier.weight = model.classifier.weight * 1e6
    with pytest.raises(ValueError, match="too large for float16"):
        export_onnx(model, processor, tmp_path / "o", dtype="float16")
    with pytest.raises(ValueError, match="no classification head"):
        export_onnx(small(num_labels=0), processor, tmp_path / "o")
    assert list(tmp_path.iterdir()) == []
