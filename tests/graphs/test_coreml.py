"""A model as a Core ML program: what the saved package computes, operation by operation, and what it says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("coremltools", reason="needs the extra coreml")

import coremltools
from conftest import randomize
from proof.coreml import execute

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, load, save
from mlx_convnextv2.benchmarking import exports
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.export import main
from mlx_convnextv2.graphs.coreml import export_coreml, write_logits_program
from mlx_convnextv2.graphs.export import export
from mlx_convnextv2.model.config import ACTIVATIONS
from mlx_convnextv2.model.labels import imagenet_1k
from mlx_convnextv2.model.quantization import quantize

IMAGES = sorted((DEMO / "images").glob("*.png"))
HALF = 2.0**-8  # what float16 may err by, as a part of the largest value
# Of the digits' embedding; other weights would have other errors.
QUANTIZED = {8: 2.0**-8, 6: 2.0**-6, 4: 2.0**-4}


def small(hidden_act: str = "gelu", **options) -> ConvNextV2ForImageClassification:
    options = {"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2, **options}
    model = ConvNextV2ForImageClassification(ConvNextV2Config(hidden_act=hidden_act, **options))
    randomize(model)
    model.eval()
    return model


def one_block(hidden_act: str = "gelu", **options) -> ConvNextV2ForImageClassification:
    return small(hidden_act, hidden_sizes=[8], depths=[1], num_stages=1, **options)


def chw(images: list[Image.Image]) -> np.ndarray:
    """What Core ML makes of images: (N, C, H, W), 0 to 255."""
    return np.stack([np.asarray(image, np.float32) for image in images]).transpose(0, 3, 1, 2)


def specification(package: Path):
    return coremltools.models.MLModel(str(package), skip_model_load=True).get_spec()


@pytest.fixture(scope="module")
def digits():
    """The bundled model, its processor, the images as an app has them, and what the model answers."""
    model, processor = load(DEMO)
    pixels = chw([processor.resize(Image.open(image).convert("RGB")) for image in IMAGES])
    pooled = model.convnextv2(processor(IMAGES)).pooler_output
    return model, processor, pixels, np.array(pooled), np.array(mx.softmax(model.classifier(pooled), axis=-1))


@pytest.mark.parametrize("how", ["float32", "float16", 8, pytest.param(6, marks=pytest.mark.slow), 4], ids=str)
def test_the_program_answers_as_the_model_does(how, digits, tmp_path: Path) -> None:
    model, processor, pixels, pooled, probabilities = digits
    bits, dtype = (how, "float16") if isinstance(how, int) else (None, how)
    package = tmp_path / "Digits.mlpackage"
    export_coreml(model, processor, package, features=True, dtype=dtype, q_bits=bits)
    tolerance = 1e-5 if how == "float32" else QUANTIZED.get(how, HALF)
    outputs = execute(package, {"image": pixels[7:8]})
    assert outputs["classLabel"] == "7"
    assert_answers(outputs, probabilities[7], pooled[7], tolerance)


def assert_answers(outputs: dict, probabilities: np.ndarray, pooled: np.ndarray, tolerance: float) -> None:
    scores = np.array([outputs["classLabel_probs"][str(label)] for label in range(10)])
    assert np.abs(scores - probabilities).max() <= tolerance
    assert np.abs(outputs["embedding"] - pooled).max() <= tolerance * np.abs(pooled).max()


@pytest.mark.parametrize(
    ("hidden_act", "dtype"),
    [
        *((act, "float32") for act in ACTIVATIONS),
        *(pytest.param(act, "float16", marks=pytest.mark.slow) for act in ACTIVATIONS),
    ],
)
def test_every_activation(hidden_act: str, dtype: str, tmp_path: Path) -> None:
    model = one_block(hidden_act)
    pixel_values = np.random.default_rng(0).standard_normal((2, 3, 16, 20)).astype(np.float32)
    expected = np.array(model(mx.array(pixel_values.transpose(0, 2, 3, 1))).logits)
    package = tmp_path / "Small.mlpackage"
    write_logits_program(model, package, pixel_values.shape, dtype)
    (logits,) = execute(package, {"pixel_values": pixel_values}).values()
    assert np.abs(logits - expected).max() <= {"float32": 1e-5, "float16": HALF}[dtype] * np.abs(expected).max()


@pytest.mark.parametrize("folder", ["hf_folder", "quantized"])
def test_a_checkpoint_of_any_kind_is_exported(folder: str, request, tmp_path: Path) -> None:
    if folder == "quantized":
        source = tmp_path / "quantized"
        model = small(hidden_sizes=[32, 64])
        quantize(model, 4, 32)
        save(model, source, ConvNextImageProcessor(size=32))
    else:
        source = request.getfixturevalue(folder)
    written = export(source, tmp_path / "Small.mlpackage", format="coreml", dtype="float32")
    assert ("quantized weights are float32 here" in str(written)) == (folder == "quantized")
    model, processor = load(source)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    mean, std = np.array(processor.image_mean, np.float32), np.array(processor.image_std, np.float32)
    pixel_values = (pixels * np.float32(processor.rescale_factor) - mean) / std
    expected = mx.softmax(model(mx.array(pixel_values)).logits, axis=-1)
    outputs = execute(tmp_path / "Small.mlpackage", {"image": pixels.transpose(0, 3, 1, 2).astype(np.float32)})
    assert np.abs(np.array(list(outputs["classLabel_probs"].values())) - np.array(expected)).max() <= 1e-5


class TestResponseNormInFloat16:
    """GRN of 56 x 56 x 384, the first stage of tiny: there the sum of squares passes 65504 from a mean of 4.6 on.

    The machine stops at a result that is not finite, and at a sum that would not be in another order.
    """

    @pytest.fixture
    def model(self):
        config = ConvNextV2Config(hidden_sizes=[96], depths=[1], num_stages=1, id2label={0: "a", 1: "b"})
        model = ConvNextV2ForImageClassification(config)
        random = np.random.default_rng(0)
        block = model.convnextv2.encoder.stages[0].layers[0]
        block.grn.weight = mx.array(random.standard_normal((1, 1, 1, 384)).astype(np.float32))
        block.pwconv2.weight = block.pwconv2.weight * 1e-3  # so that what comes after fits
        return model

    @pytest.mark.parametrize(
        "size",
        [
            *("up to the largest", "of all sizes", "zero"),
            *(pytest.param(size, marks=pytest.mark.slow) for size in ("small", "ordinary", "large")),
        ],
    )
    def test_no_step_overflows_and_none_loses_more_than_its_rounding(self, size: str, model, tmp_path: Path) -> None:
        layer = model.convnextv2.encoder.stages[0].layers[0].pwconv1
        random = np.random.default_rng(1)
        weight = random.standard_normal((384, 96)).astype(np.float32) / 10
        scale = {"small": 1e-2, "ordinary": 1, "large": 300, "up to the largest": 2000, "zero": 0}.get(size)
        scales = 10.0 ** random.uniform(-2, 2.5, (384, 1)) if scale is None else np.asarray(scale)
        layer.weight, layer.bias = mx.array((weight * scales).astype(np.float32)), mx.zeros(384)
        pixel_values = random.standard_normal((1, 3, 224, 224)).astype(np.float32)
        write_logits_program(model, tmp_path / "Block.mlpackage", pixel_values.shape, "float16")
        seen: dict[str, np.ndarray] = {}
        execute(tmp_path / "Block.mlpackage", {"pixel_values": pixel_values}, seen)

        activations = seen["stage1_block1_act"].astype(np.float64)
        sum_of_squares = (activations**2).sum((2, 3), keepdims=True)
        if size in ("large", "up to the largest", "of all sizes"):
            assert sum_of_squares.max() > 65504, "this case would not have overflowed"
        norms = np.sqrt(sum_of_squares)
        weight = np.array(model.convnextv2.encoder.stages[0].layers[0].grn.weight).reshape(1, -1, 1, 1)
        factor = weight * norms / (norms.mean(1, keepdims=True) + 1e-6)
        error = np.abs(seen["stage1_block1_grn"] - activations * (1 + factor))
        assert (error <= HALF * np.abs(activations) * (1 + np.abs(factor)) + 2.0**-24).all()


def test_a_mean_over_large_features_fits_in_float16(tmp_path: Path) -> None:
    model = one_block()
    model.convnextv2.embeddings.layernorm.weight = mx.full((8,), 5000.0)
    pixel_values = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    write_logits_program(model, tmp_path / "Large.mlpackage", pixel_values.shape, "float16")
    seen: dict[str, np.ndarray] = {}
    execute(tmp_path / "Large.mlpackage", {"pixel_values": pixel_values}, seen)
    features = seen["stage1_block1_residual"].astype(np.float64)
    assert np.abs(features).sum((2, 3)).max() > 65504
    assert np.abs(seen["pool"] - features.mean((2, 3), keepdims=True)).max() <= HALF * np.abs(features).max()


def test_several_images_at_once(digits, tmp_path: Path) -> None:
    model, processor, pixels, _, probabilities = digits
    package = tmp_path / "Digits.mlpackage"
    export_coreml(model, processor, package, batches=[1, 4], dtype="float32")
    for batch in (1, 4):
        (answer,) = execute(package, {"pixels": pixels[:batch]}).values()
        assert np.abs(answer - probabilities[:batch]).max() <= 1e-5
    (told,) = specification(package).description.input
    shapes = [list(shape.shape) for shape in told.type.multiArrayType.enumeratedShapes.shapes]
    assert shapes == [[1, 3, 32, 32], [4, 3, 32, 32]]
    assert json.loads(specification(package).description.metadata.userDefined["labels"]) == list("0123456789")


class TestWhatTheProgramSaysOfItself:
    def test_xcode_finds_a_classifier_of_images_and_its_terms(self, digits, tmp_path: Path) -> None:
        model, processor, *_ = digits
        name, licence = "owner/digits", "cc-by-nc-4.0"
        export_coreml(model, processor, tmp_path / "Digits.mlpackage", name=name, licence=licence)
        description = specification(tmp_path / "Digits.mlpackage").description
        image = description.input[0].type.imageType
        assert (description.input[0].name, image.width, image.height) == ("image", 32, 32)
        assert image.colorSpace == image.RGB
        assert [output.name for output in description.output] == ["classLabel", "classLabel_probs"]
        assert description.predictedFeatureName == "classLabel"
        assert description.metadata.shortDescription.startswith("owner/digits: ")
        assert description.metadata.license.startswith("cc-by-nc-4.0, as the source states. For the published")
        assert "Woo" in description.metadata.author
        told = description.metadata.userDefined
        assert told["com.apple.coreml.model.preview.type"] == "imageClassifier"
        assert json.loads(told["preprocessing"]) == processor.to_dict()

    @pytest.mark.parametrize(
        ("processor", "said", "option"),
        [
            (ConvNextImageProcessor(size=224, crop_pct=0.875), "short side resized to 256 (bicubic)", "centerCrop"),
            (ConvNextImageProcessor(size=384), "squeezed to 384 x 384 (bicubic);", "scaleFill"),
            (ConvNextImageProcessor(size=40, crop_pct=0.8, crop_mode="squash"), "squeezed to 50 x 50", "scaleFill"),
            (ConvNextImageProcessor(do_resize=False), "224 x 224 pixels", "centerCrop"),
        ],
        ids=["crop", "squeeze", "timm's squash", "no resizing"],
    )
    def test_how_an_image_is_to_be_cut_and_scaled(self, processor, said: str, option: str, tmp_path: Path) -> None:
        export_coreml(one_block(), processor, tmp_path / "Small.mlpackage")
        description = specification(tmp_path / "Small.mlpackage").description
        assert said in description.input[0].shortDescription
        assert description.metadata.userDefined["imageCropAndScaleOption"] == option

    def test_two_labels_of_one_name_are_two_keys(self, tmp_path: Path) -> None:
        """ImageNet's 134 and 517 are both called crane; a dictionary would have one of them."""
        model = one_block(num_labels=1000)
        export_coreml(model, ConvNextImageProcessor(size=32), tmp_path / "Small.mlpackage")
        outputs = execute(tmp_path / "Small.mlpackage", {"image": np.zeros((1, 3, 32, 32), np.float32)})
        labels = list(outputs["classLabel_probs"])
        assert len(labels) == 1000
        assert (labels[134], labels[517]) == ("crane (134)", "crane (517)")
        assert labels[281] == imagenet_1k()[281]

    def test_grey_images(self, tmp_path: Path) -> None:
        processor = ConvNextImageProcessor(size=32, image_mean=[0.5], image_std=[0.5])
        export_coreml(one_block(num_channels=1), processor, tmp_path / "Grey.mlpackage")
        image = specification(tmp_path / "Grey.mlpackage").description.input[0].type.imageType
        assert image.colorSpace == image.GRAYSCALE

    @pytest.mark.slow
    def test_the_package_is_its_weights_and_little_more(self, tmp_path: Path) -> None:
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("atto"))
        processor = ConvNextImageProcessor(size=224)
        parameters = 3_708_400
        for bits, least in ((None, 2 * parameters), (8, parameters), (4, parameters / 2)):
            program = export_coreml(model, processor, tmp_path / "A.mlpackage", q_bits=bits, overwrite=True)
            there = sum(file.stat().st_size for file in (tmp_path / "A.mlpackage").rglob("*") if file.is_file())
            assert program.bytes == there
            # the convolutions and the norms stay at two bytes, an eighth of atto
            assert least <= program.bytes <= least + 2 * parameters / 8 + 300_000


class TestTheCommand:
    def test_writes_what_the_library_does_and_replaces_it_if_asked_to(self, tmp_path: Path, capsys) -> None:
        package = tmp_path / "Digits.mlpackage"
        arguments = ["--demo", "--format", "coreml", "--output", str(package)]
        assert main([*arguments, "-q", "--q-bits", "6", "--features"]) == 0
        assert "float16, image to classLabel and classLabel_probs and embedding" in capsys.readouterr().out
        assert sorted(path.name for path in package.iterdir()) == ["Data", "Manifest.json"]
        assert main(arguments) == 2
        assert "--overwrite" in capsys.readouterr().err
        assert main([*arguments, "--overwrite", "--dtype", "float32"]) == 0
        assert main(["--demo", "--output", str(package), "--overwrite"]) == 2
        assert "is not an exported model" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["Digits.mlpackage"]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--output", "Digits"], "call it Digits.mlpackage"),
            (["--dtype", "bfloat16"], "computes in float16 or float32, not in 'bfloat16'"),
            (["-q", "--q-bits", "5"], "takes bits of 8, 6, 4 in mode palette, not 5"),
            (["-q", "--q-bits", "4", "--q-mode", "affine"], "takes bits of 8 in mode affine, not 4"),
            (["-q", "--q-mode", "mxfp4"], "modes are affine and palette, not 'mxfp4'"),
            (["-q", "--q-group-size", "32"], "leave the group size (--q-group-size) out"),
            (["--batch", "5000"], "at most 4096"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_mistakes_are_a_sentence_and_leave_nothing(
        self, arguments: list[str], said: str, tmp_path: Path, capsys, monkeypatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["--demo", "--format", "coreml", "--output", "Digits.mlpackage", *arguments]) == 2
        assert said in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_a_palette_is_core_ml_s(self, tmp_path: Path, capsys) -> None:
        assert main(["--demo", "--output", str(tmp_path / "graph"), "-q", "--q-mode", "palette"]) == 2
        assert "the quantization mode must be one of affine" in capsys.readouterr().err

    def test_without_coremltools_it_says_what_to_install(self, tmp_path: Path, capsys, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "coremltools", None)
        assert main(["--demo", "--format", "coreml", "--output", str(tmp_path / "Digits.mlpackage")]) == 2
        assert 'pip install "mlx-convnextv2[coreml]"' in capsys.readouterr().err

    @pytest.mark.slow
    def test_it_needs_no_pytorch_and_is_silent_but_for_its_answer(self, tmp_path: Path) -> None:
        program = (
            "import sys\n"
            "sys.modules.update(dict.fromkeys(('torch', 'sklearn', 'tensorflow', 'transformers')))\n"
            "from mlx_convnextv2.export import main\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        arguments = ["--demo", "--format", "coreml", "--output", str(tmp_path / "Digits.mlpackage")]
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 1


def test_a_model_without_a_head_and_weights_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no classification head"):
        export_coreml(small(num_labels=0), ConvNextImageProcessor(size=32), tmp_path / "Small.mlpackage")
    model = small()
    model.classifier.weight = model.classifier.weight * 1e6
    with pytest.raises(ValueError, match="too large for float16"):
        export_coreml(model, ConvNextImageProcessor(size=32), tmp_path / "Small.mlpackage")
    model.classifier.weight = model.classifier.weight * float("nan")
    with pytest.raises(ValueError, match="no finite numbers"):
        export_coreml(model, ConvNextImageProcessor(size=32), tmp_path / "Small.mlpackage")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # PyTorch is imported
def test_a_benchmark_measures_this_program(hf_folder: Path, tmp_path: Path) -> None:
    exports.export("coreml", hf_folder, tmp_path / "model.mlpackage", "float32", (2, 32, 36))
    pixel_values = np.random.default_rng(0).standard_normal((2, 3, 32, 36)).astype(np.float32)
    (logits,) = execute(tmp_path / "model.mlpackage", {"pixel_values": pixel_values}).values()
    expected = np.array(load(hf_folder)[0](mx.array(pixel_values.transpose(0, 2, 3, 1))).logits)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML predicts on macOS alone")
@pytest.mark.parametrize("units", ["CPU_ONLY", "CPU_AND_GPU", "ALL"])
@pytest.mark.parametrize("how", ["float32", "float16", 8, 4], ids=str)
def test_core_ml_itself_predicts_the_same(how, units: str, digits, tmp_path: Path) -> None:
    model, processor, _, pooled, probabilities = digits
    bits, dtype = (how, "float16") if isinstance(how, int) else (None, how)
    package = tmp_path / "Digits.mlpackage"
    export_coreml(model, processor, package, features=True, dtype=dtype, q_bits=bits)
    program = coremltools.models.MLModel(str(package), compute_units=coremltools.ComputeUnit[units])
    tolerance = 1e-4 if how == "float32" else QUANTIZED.get(how, 2 * HALF)
    for i, path in enumerate(IMAGES):
        outputs = program.predict({"image": processor.resize(Image.open(path).convert("RGB"))})
        assert outputs["classLabel"] == str(i)
        assert_answers(outputs, probabilities[i], pooled[i], tolerance)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML predicts on macOS alone")
@pytest.mark.parametrize("units", ["CPU_ONLY", "CPU_AND_GPU", "ALL"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_core_ml_itself_predicts_the_same_with_the_widths_of_atto(dtype: str, units: str, tmp_path: Path) -> None:
    model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("atto"))
    for block in (block for stage in model.convnextv2.encoder.stages for block in stage.layers):
        block.grn.weight = mx.random.normal(block.grn.weight.shape, key=mx.random.key(0)) * 0.5
    model.classifier.weight = mx.random.normal(model.classifier.weight.shape, key=mx.random.key(1)) * 0.2
    processor = ConvNextImageProcessor(size=224, crop_pct=1.0)
    picture = Image.open(IMAGES[8]).convert("RGB").resize((224, 224))
    export_coreml(model, processor, tmp_path / "Atto.mlpackage", dtype=dtype)
    program = coremltools.models.MLModel(str(tmp_path / "Atto.mlpackage"), compute_units=coremltools.ComputeUnit[units])
    scores = np.array(list(program.predict({"image": picture})["classLabel_probs"].values()))
    expected = np.array(mx.softmax(model(processor(picture)).logits, axis=-1))[0]
    assert np.abs(np.sort(scores) - np.sort(expected)).max() <= (1e-4 if dtype == "float32" else 2.0**-5)
