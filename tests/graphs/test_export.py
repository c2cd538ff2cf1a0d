"""A model as one file: the graph answers as the model does, and its description tells the truth."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoint_files import as_original, as_timm
from conftest import parameters
from mlx.utils import tree_map
from PIL import Image
from safetensors.numpy import save_file

from mlx_convnextv2 import (
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ImageClassifier,
    load,
    save,
)
from mlx_convnextv2.classify import main as classify
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.export import main
from mlx_convnextv2.files.names import PROGRAM_FILE
from mlx_convnextv2.graphs.trace import export_model
from mlx_convnextv2.model.quantization import MODES, quantize

IMAGES = sorted((DEMO / "images").glob("*.png"))


def imported(file: Path) -> Any:
    return mx.import_function(str(file))


def largest(array: mx.array) -> float:
    return float(np.abs(np.array(array)).max())


def pixels_of(images: list[Path], processor: ConvNextImageProcessor) -> mx.array:
    """What an app hands to the graph: resized and cropped, and nothing more."""
    return mx.array(np.stack([np.asarray(processor.resize(Image.open(image).convert("RGB"))) for image in images]))


@pytest.mark.parametrize("how", ["float32", "float16", "bfloat16", "8 bits", "4 bits"])
def test_the_graph_answers_as_the_model_does(how: str, tmp_path: Path) -> None:
    model, processor = load(DEMO, dtype=how if "float" in how else None)
    if "bits" in how:
        quantize(model, int(how[0]), 32)
    export_model(model, processor, tmp_path / "graph", batches=[10], features=True)
    graph = imported(tmp_path / "graph" / "model.mlxfn")
    probabilities, embedding = graph(pixels_of(IMAGES, processor))
    assert probabilities.dtype == embedding.dtype == mx.float32

    pixel_values = processor(IMAGES)
    tolerance = 2.0**-5 if how == "bfloat16" else 2.0**-8 if how == "float16" else 1e-5
    expected = mx.softmax(model(pixel_values).logits.astype(mx.float32), axis=-1)
    assert largest(probabilities - expected) <= tolerance
    pooled = model.convnextv2(pixel_values).pooler_output.astype(mx.float32)
    assert largest(embedding - pooled) <= tolerance * largest(pooled)
    assert mx.array_equal(probabilities.argmax(-1), expected.argmax(-1))


@pytest.fixture(scope="session")
def sources(small_model, hf_folder, mlx_folder, tmp_path_factory) -> dict[str, Path]:
    """The same weights under the names and in the layout of each source."""
    folders = {"Hugging Face": hf_folder, "converted": mlx_folder}
    for scheme, weights in (("timm", as_timm(small_model)), ("original", as_original(small_model))):
        folders[scheme] = tmp_path_factory.mktemp(scheme) / "weights.safetensors"
        save_file(weights, folders[scheme])
    return folders


def assert_exported_as_it_is(model, tmp_path: Path, batches: list[int] | None = None) -> None:
    processor = ConvNextImageProcessor(size=32, crop_pct=1.0)  # which leaves images of this size alone
    export_model(model, processor, tmp_path / "graph", batches=batches or [2])
    graph = imported(tmp_path / "graph" / "model.mlxfn")
    dtype = model.convnextv2.embeddings.patch_embeddings.weight.dtype
    tolerance = {mx.float32: 1e-5, mx.float16: 2.0**-8, mx.bfloat16: 2.0**-5}[dtype]
    for batch in batches or [2]:
        images = np.random.RandomState(batch).randint(0, 256, (batch, 32, 32, 3), np.uint8)
        (probabilities,) = graph(mx.array(images))
        expected = mx.softmax(model(processor(list(images))).logits.astype(mx.float32), axis=-1)
        assert largest(probabilities - expected) <= tolerance


@pytest.mark.filterwarnings("ignore:.*images are prepared")
@pytest.mark.parametrize("scheme", ["Hugging Face", "timm", "original"])
def test_a_checkpoint_of_any_source_is_exported(scheme: str, sources, tmp_path: Path) -> None:
    assert_exported_as_it_is(load(sources[scheme])[0], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [None, *((mode, bits) for mode in MODES for bits in MODES[mode]["bits"])])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_dtype_and_quantization(dtype, quantization, mlx_folder, tmp_path) -> None:
    model, _ = load(mlx_folder, dtype=dtype)
    if quantization is not None:
        quantize(model, quantization[1], None, quantization[0])
    assert_exported_as_it_is(model, tmp_path, [3, 1, 8])


def transposed(array: mx.array) -> mx.array:
    return mx.contiguous(array.transpose()).transpose()


def expanded(array: mx.array) -> mx.array:
    return mx.broadcast_to(array[:1], array.shape)


def cut_out(array: mx.array) -> mx.array:
    return mx.concatenate([array, array, array])[len(array) : 2 * len(array)]


@pytest.mark.parametrize(("lie", "bits"), [(transposed, None), (expanded, 4), (cut_out, 4)])
def test_however_the_weights_lie_in_memory(lie, bits: int | None, sources, tmp_path: Path) -> None:
    model, _ = load(sources["converted"])
    if bits is not None:
        quantize(model, bits, 32)
    model.update(tree_map(lie, model.parameters()))
    mx.eval(model.parameters())
    assert_exported_as_it_is(model, tmp_path)


def test_all_batches_share_one_set_of_weights(tmp_path: Path) -> None:
    model, processor = load(DEMO)
    sizes = []
    for batches in ([1], [1, 2, 8]):
        description = export_model(model, processor, tmp_path / str(len(batches)), batches=batches)
        assert description["batches"] == batches
        sizes.append(description["bytes"])
    weights = sum(array.nbytes for array in parameters(model).values())
    assert sizes[1] - sizes[0] < 0.2 * weights
    graph = imported(tmp_path / "3" / "model.mlxfn")
    one = pixels_of(IMAGES[:1], processor)
    (single,), (several,) = graph(one), graph(mx.repeat(one, 8, axis=0))
    assert mx.allclose(several, mx.repeat(single, 8, axis=0), atol=1e-6)
    with pytest.raises(ValueError, match="3"):
        graph(mx.repeat(one, 3, axis=0))


def test_the_file_is_the_weights_and_two_percent_and_a_tenth_of_a_megabyte_for_each_further_batch(tmp_path) -> None:
    model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("atto"))
    quantize(model, 4, 32)
    weights = sum(array.nbytes for array in parameters(model).values())
    description = export_model(model, ConvNextImageProcessor(size=224), tmp_path / "atto", batches=[1, 8])
    assert weights <= description["bytes"] <= 1.02 * weights + 0.1e6


def test_the_description_says_what_is_there(tmp_path: Path) -> None:
    model, processor = load(DEMO)
    export_model(model, processor, tmp_path / "graph", batches=[2], features=True, name="digits")
    folder = tmp_path / "graph"
    description = json.loads((folder / "model.json").read_text())
    content = (folder / "model.mlxfn").read_bytes()
    assert description["sha256"] == hashlib.sha256(content).hexdigest()
    assert description["bytes"] == len(content)
    assert description["labels"] == [str(digit) for digit in range(10)]
    assert (description["mlx_version"], description["model"]) == (metadata.version("mlx"), "digits")
    assert description["input"]["shape"] == ["batch", 32, 32, 3]
    outputs = imported(folder / "model.mlxfn")(mx.zeros((2, 32, 32, 3), mx.uint8))
    for output, told in zip(outputs, description["outputs"], strict=True):
        assert list(output.shape) == [2, *told["shape"][1:]]


@pytest.mark.parametrize(
    "processor",
    [
        ConvNextImageProcessor(size=48, crop_pct=0.8),
        ConvNextImageProcessor(size=384),
        ConvNextImageProcessor(size=40, crop_pct=0.9, crop_mode="squash"),
        ConvNextImageProcessor(size=40, crop_pct=0.9, crop_mode="center"),
    ],
    ids=["crop", "squeeze", "timm-squash", "timm-center"],
)
def test_resizing_as_described_gives_the_processor_s_pixels(processor: ConvNextImageProcessor, tmp_path: Path) -> None:
    """By somebody who knows Pillow and model.json alone, on a wide, a high and a square image."""
    model = ConvNextV2ForImageClassification(ConvNextV2Config(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2))
    told = export_model(model, processor, tmp_path / "graph")["preprocessing"]
    for size in ((90, 60), (61, 97), (70, 70)):
        image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (*size[::-1], 3), dtype=np.uint8))
        if "short_side" in told["resize"]:
            short = told["resize"]["short_side"]
            long = int(short * max(size) / min(size))
            shape = (short, long) if size[0] <= size[1] else (long, short)
        else:
            shape = told["resize"]["width"], told["resize"]["height"]
        assert told["resize"]["filter"] == "Pillow's bicubic"
        crop = told["crop"]["width"]
        left, top = (round((length - crop) / 2) if processor.crop_mode else (length - crop) // 2 for length in shape)
        resized = image.resize(shape, Image.Resampling.BICUBIC).crop((left, top, left + crop, top + crop))
        assert np.array_equal(np.asarray(resized), np.asarray(processor.resize(image)))


def test_the_command_and_what_its_readme_shows(run, tmp_path: Path) -> None:
    result = run("export", "--model", DEMO, "--output", tmp_path / "graph", "--batch", "2,1", "-q", "--q-bits", "8")
    assert result.returncode == 0, result.stderr
    assert "8 bits in groups of 32" in result.stdout
    assert re.search(r"^Wrote .*graph: 0\.\d MB, batches of 1, 2, MLX ", result.stdout, re.MULTILINE)
    if not (mx.metal.is_available() or mx.cuda.is_available()):
        assert "runs on the CPU wherever it is loaded" in result.stdout

    readme = (tmp_path / "graph" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    _, processor = load(DEMO)
    pixels = "pixels = mx.array(" + repr(pixels_of(IMAGES[7:8], processor).tolist()) + ", dtype=mx.uint8)\n"
    program = f"import mlx.core as mx\n{pixels}{code}"
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, cwd=tmp_path / "graph")
    assert done.stdout.strip() == ImageClassifier(DEMO)(IMAGES[7])[0]["label"] == "7"


def test_grey_images(tmp_path: Path) -> None:
    config = ConvNextV2Config(hidden_sizes=[8], depths=[1], num_stages=1, num_channels=1)
    processor = ConvNextImageProcessor(size=32, image_mean=[0.5], image_std=[0.5])
    description = export_model(ConvNextV2ForImageClassification(config), processor, tmp_path / "graph")
    assert description["input"]["colour"] == "grey"
    assert "takes uint8 grey pixels, (1, 32, 32, 1)," in (tmp_path / "graph" / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "0"], "at least 1"),
        (["--batch", "1,x"], "at least 1"),
        (["--batch", "1,3000000000"], "at most 4096"),
        (["--output", "\udcff/graph"], "not in UTF-8"),
        (["--q-bits", "4"], "go with -q"),
        (["--model", "/nowhere"], "no folder called '/nowhere'"),
        (["-q", "--q-bits", "7"], "bits"),
    ],
)
def test_mistakes_are_a_sentence_and_leave_nothing(arguments: list[str], said: str, run, tmp_path: Path) -> None:
    result = run("export", "--model", DEMO, "--output", tmp_path / "graph", *arguments)
    assert result.returncode == 2
    assert said in result.stderr.splitlines()[-1]
    assert not (tmp_path / "graph").exists()


def test_an_exported_model_is_replaced_if_asked_to_and_nothing_else_is(mlx_folder, tmp_path: Path, capsys) -> None:
    graph, checkpoint = tmp_path / "graph", shutil.copytree(mlx_folder, tmp_path / "net")
    before = sorted(path.name for path in checkpoint.iterdir())
    assert main(["--demo", "--output", str(graph)]) == 0
    assert main(["--demo", "--output", str(graph)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["--demo", "--output", str(graph), "--overwrite", "--batch", "2"]) == 0
    assert json.loads((graph / "model.json").read_text())["batches"] == [2]
    for more in ([], ["--overwrite"]):
        assert main(["--demo", "--output", str(checkpoint), *more]) == 2
    assert "is not an exported model" in capsys.readouterr().err
    assert sorted(path.name for path in checkpoint.iterdir()) == before
    with pytest.raises(FileExistsError, match="is not a checkpoint folder"):
        save(load(mlx_folder)[0], graph, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph", "net"]


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    model = ConvNextV2ForImageClassification(ConvNextV2Config(hidden_sizes=[8], depths=[1], num_stages=1, num_labels=0))
    with pytest.raises(ValueError, match="no classification head"):
        export_model(model, ConvNextImageProcessor(size=32), tmp_path / "graph")
    assert not (tmp_path / "graph").exists()


def test_another_thread_than_the_first_is_a_sentence(tmp_path: Path) -> None:
    """MLX's streams belong to threads, and it loads files in the first one's."""
    code = (
        "import sys, threading; import mlx.core as mx\n"
        "from mlx_convnextv2 import load; from mlx_convnextv2.graphs.trace import export_model\n"
        "mx.eval(mx.ones(3) + 1)\n"
        "def export():\n"
        "    try: export_model(*load(sys.argv[1]), sys.argv[2])\n"
        "    except ValueError as error: print(error)\n"
        "thread = threading.Thread(target=export); thread.start(); thread.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, DEMO, tmp_path / "graph"], capture_output=True, text=True)
    assert "export in the one that used MLX first" in done.stdout, done.stderr
    assert not (tmp_path / "graph").exists()


def test_weights_that_are_no_numbers_are_named_as_what_they_are(tmp_path, mlx_folder):
    model, processor = load(mlx_folder)
    model.classifier.bias = mx.full(model.classifier.bias.shape, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        export_model(model, processor, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_exported_model_given_as_a_checkpoint_is_called_what_it_is(tmp_path: Path, capsys) -> None:
    assert main(["--demo", "--output", str(tmp_path / "graph")]) == 0
    program = tmp_path / "Digits.mlpackage" / PROGRAM_FILE
    program.parent.mkdir(parents=True)
    program.touch()
    for folder, kind in (
        (tmp_path / "graph", "an exported graph"),
        (tmp_path / "Digits.mlpackage", "a Core ML program"),
    ):
        assert classify(["--model", str(folder), str(IMAGES[0])]) == 2
        said = capsys.readouterr().err
        assert f"{folder} is {kind}" in said
        assert "the checkpoint here that it was exported from" in said
