"""Quantization: what is quantized and what is not, the way back from disk, and what it costs in accuracy."""

import json
import re
import sys

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT
from mlx.utils import tree_flatten

from mlx_convnextv2 import (
    ConvNextImageProcessor,
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    convert,
    load,
    save,
)
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.model.quantization import MODES, count_parameters, dequantize, plan_quantization, quantize

sys.path.insert(0, str(ROOT / "examples"))
import train_digits


def make_model(**options):
    config = {"num_stages": 2, "hidden_sizes": [40, 64], "depths": [1, 1], "num_labels": 10, **options}
    return ConvNextV2ForImageClassification(ConvNextV2Config(**config)).eval()


def parameters(model):
    return dict(tree_flatten(model.parameters()))


ALL = [(mode, bits, size) for mode, o in MODES.items() for bits in o["bits"] for size in o["group_sizes"]]


@pytest.mark.parametrize(("mode", "bits", "group_size"), ALL)
def test_every_mode_comes_back_from_disk_bit_by_bit(tmp_path, mode, bits, group_size):
    model = make_model(hidden_sizes=[128, 256])
    quantize(model, bits, group_size, mode)
    save(model, tmp_path / "saved", ConvNextImageProcessor(size=32))
    loaded, _ = load(tmp_path / "saved")
    ours, theirs = parameters(model), parameters(loaded)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert theirs[name].dtype == array.dtype
        assert mx.array_equal(theirs[name], array), name
    x = mx.random.normal((1, 32, 32, 3))
    assert mx.array_equal(loaded(x).logits, model(x).logits)


@pytest.mark.parametrize(("mode", "bits", "group_size"), ALL)
def test_what_is_dequantized_computes_what_the_quantized_did(mode, bits, group_size):
    model = make_model(hidden_sizes=[32, 128])
    names, count = set(parameters(model)), sum(array.size for array in parameters(model).values())
    quantize(model, bits, group_size, mode)
    shapes = {name: array.shape for name, array in parameters(model).items()}
    assert count_parameters(shapes, bits) == count
    pixel_values = mx.random.normal((2, 32, 32, 3), key=mx.random.key(0))
    before = model(pixel_values).logits
    dequantize(model)
    after = model(pixel_values).logits
    assert mx.abs(after - before).max().item() <= 1e-5 * mx.abs(before).max().item()
    assert set(parameters(model)) == names
    assert {array.dtype for array in parameters(model).values()} == {mx.float32}
    assert "quantization" not in model.config.to_dict()


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_values_are_rounded_once_on_the_way_to_another_dtype(dtype):
    expected, model = (make_model(hidden_sizes=[32, 128]) for _ in range(2))
    expected.load_weights(tree_flatten(model.parameters()))
    for quantized in (expected, model):
        quantized.set_dtype(mx.bfloat16)
        quantize(quantized, 8)
    dequantize(expected, mx.float32)
    dequantize(model, None if dtype is None else getattr(mx, dtype))
    stored = mx.bfloat16 if dtype is None else getattr(mx, dtype)
    for name, array in parameters(model).items():
        assert array.dtype == stored
        assert mx.array_equal(array, parameters(expected)[name].astype(stored)), name


def test_a_model_that_is_not_quantized_is_not_dequantized():
    with pytest.raises(ValueError, match="not quantized"):
        dequantize(make_model())


def test_the_command_dequantizes_for_transformers_and_counts_the_parameters(tmp_path, capsys):
    count = sum(array.size for array in parameters(load(DEMO)[0]).values())
    quantized, back = str(tmp_path / "quantized"), str(tmp_path / "back")
    assert convert.main(["--hf-path", str(DEMO), "--mlx-path", quantized, "-q", "--q-bits", "3"]) == 0
    assert f"{count:,} parameters in " in capsys.readouterr().out
    command = ["--hf-path", quantized, "--mlx-path", back, "--to", "huggingface", "--dtype", "float16"]
    assert convert.main(command) == 2
    assert "transformers cannot read MLX's quantized weights" in capsys.readouterr().err
    assert convert.main([*command, "-d", "--verify"]) == 0
    written = capsys.readouterr().out
    assert f"{count:,} parameters in " in written
    assert "Verified against MLX on 8 images" in written
    assert "quantization" not in json.loads((tmp_path / "back" / "config.json").read_text())
    assert convert.main([*command, "-d", "--overwrite", "-q"]) == 2
    assert "not both" in capsys.readouterr().err


def test_each_layer_has_an_outcome_and_a_reason():
    # 40 inputs fit no group; 160 fit 32 but not 64; 64 and 256 fit 64
    plan = plan_quantization(make_model(), bits=8, group_size=64)
    outcome = {layer.path.removeprefix("convnextv2.encoder.stages."): layer for layer in plan.layers}
    assert outcome["0.layers.0.pwconv1"].group_size is None
    assert "40 inputs" in outcome["0.layers.0.pwconv1"].reason
    assert outcome["0.layers.0.pwconv2"].group_size == 32
    assert outcome["1.layers.0.pwconv1"].group_size == 64
    assert outcome["1.layers.0.pwconv2"].group_size == 64
    assert "convolution" in outcome["1.layers.0.dwconv"].reason
    assert len(plan.layers) == 9  # the stem, the downsampling, three in each block, and the classifier


def test_the_report_counts_the_bytes():
    model = make_model(hidden_sizes=[64, 128])
    before = sum(array.nbytes for array in parameters(model).values())
    report = quantize(model, 4, 32)
    after = sum(array.nbytes for array in parameters(model).values())
    assert (report.bytes_before, report.bytes_after) == (before, after)
    assert after < before / 2


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"mode": "int4"}, "mode"),
        ({"bits": 7}, "bits"),
        ({"bits": 0}, "bits"),
        ({"group_size": 48}, "group size"),
        ({"mode": "mxfp4", "bits": 8}, "bits"),
        ({"mode": "nvfp4", "group_size": 32}, "group size"),
    ],
)
def test_what_mlx_does_not_offer_is_refused(options, word):
    with pytest.raises(ValueError, match=word):
        quantize(make_model(), **options)


def test_a_model_is_not_quantized_twice_nor_where_nothing_fits():
    model = make_model()
    quantize(model)
    with pytest.raises(ValueError, match="quantized already"):
        quantize(model)
    with pytest.raises(ValueError, match="no layer"):
        quantize(make_model(hidden_sizes=[7, 9]))


def test_transformers_layout_is_refused(tmp_path):
    model = make_model()
    quantize(model)
    with pytest.raises(ValueError, match="original checkpoint"):
        save(model, tmp_path / "saved", format="huggingface")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    "entry", [None, {}, {"group_size": 32, "bits": 4}, {"group_size": 32, "bits": 7, "mode": "affine"}, "affine", []]
)
def test_a_quantization_entry_that_makes_no_sense_is_refused(tmp_path, entry):
    model = make_model()
    quantize(model)
    save(model, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps({**config, "quantization": entry}))
    with pytest.raises(ValueError, match="quantization"):
        load(tmp_path / "saved")


def test_a_backbone_of_a_quantized_classifier_and_a_cast(tmp_path):
    model = make_model()
    quantize(model)
    save(model, tmp_path / "saved", ConvNextImageProcessor(size=32))
    x = mx.random.normal((1, 32, 32, 3))
    backbone, _ = load(tmp_path / "saved", model_class=ConvNextV2Backbone)
    expected = model(x, output_hidden_states=True).hidden_states[-1]
    assert mx.array_equal(backbone(x, output_hidden_states=True).hidden_states[-1], expected)
    half, _ = load(tmp_path / "saved", dtype="float16")
    assert {array.dtype for array in parameters(half).values()} == {mx.uint32, mx.float16}


@pytest.mark.parametrize(("bits", "least"), [(8, 0.99), (4, 0.90)])
def test_the_demo_keeps_its_answers(bits, least):
    model, processor = load(DEMO)
    _, pixel_values, _ = train_digits.digits(processor, seed=0)
    held_out = mx.array(pixel_values[: train_digits.HELD_OUT])
    before = np.array(model(held_out).logits.argmax(axis=-1))
    quantize(model, bits)
    agreement = (np.array(model(held_out).logits.argmax(axis=-1)) == before).mean()
    print(f"{bits} bits: top-1 agreement {agreement:.1%} on {len(before)} held-out images")
    assert agreement >= least


def test_the_command_prints_the_table_and_classify_reads_the_result(run, tmp_path):
    out = tmp_path / "out"
    demo = tmp_path / "source"
    model, processor = load(DEMO)
    save(model, demo, processor, format="huggingface")
    result = run("convert", "--hf-path", demo, "--mlx-path", out, "-q", "--q-bits", 8, "--q-group-size", 64)
    assert result.returncode == 0, result.stderr
    # 384 inputs fit 64, 96 and 192 only 32 and 64: see the widths 24, 48, 96 and their fourfold
    assert re.search(r"1 x classifier +8 bits in groups of 32, because 64 does not divide its inputs", result.stdout)
    assert re.search(r"4 x dwconv +left as it is", result.stdout)
    assert re.search(r"0\.6 MB before, 0\.4 MB after", result.stdout)
    answers = [
        run("classify", DEMO / "images", "--model", m, "--format", "json", "--top-k", 1).stdout for m in (demo, out)
    ]
    labels = [[json.loads(line)["predictions"][0]["label"] for line in text.splitlines()] for text in answers]
    assert labels[0] == labels[1] == [str(digit) for digit in range(10)]


def test_quantization_options_without_q_are_refused(run, hf_folder, tmp_path):
    result = run("convert", "--hf-path", hf_folder, "--mlx-path", tmp_path / "out", "--q-bits", 8)
    assert result.returncode == 2
    assert "-q" in result.stderr


def test_dequantizing_leaves_the_callers_random_numbers_alone(mlx_folder):
    model, _ = load(mlx_folder)
    quantize(model)
    mx.random.seed(0)
    expected = mx.random.uniform().item()
    mx.random.seed(0)
    dequantize(model)
    assert mx.random.uniform().item() == expected
