"""Quantization: what is quantized and what is not, the way back from disk, and what it costs in accuracy."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import mlx.core as mx
import pytest
from checkpoint_files import assert_close, assert_same_weights, edit_json, parameters
from conftest import ROOT

from mlx_convnextv2 import ConvNextV2Backbone, ConvNextV2Config, ConvNextV2ForImageClassification, convert, load, save
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.model.quantization import MODES, count_parameters, dequantize, plan_quantization, quantize

sys.path.insert(0, str(ROOT / "examples"))
import train_digits

pytestmark = pytest.mark.filterwarnings("ignore:.* has no preprocessor_config.json")


def make_model(**options: Any) -> ConvNextV2ForImageClassification:
    config = {"num_stages": 2, "hidden_sizes": [40, 64], "depths": [1, 1], "num_labels": 10, **options}
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**config))
    model.eval()
    return model


ALL = [(mode, bits, size) for mode, o in MODES.items() for bits in o["bits"] for size in o["group_sizes"]]


@pytest.mark.parametrize(("mode", "bits", "group_size"), ALL)
def test_every_mode_comes_back_from_disk_and_what_is_dequantized_computes_the_same(tmp_path, mode, bits, group_size):
    model = make_model(hidden_sizes=[32, 128])
    names, before = set(parameters(model)), sum(array.nbytes for array in parameters(model).values())
    report = quantize(model, bits, group_size, mode)
    after = sum(array.nbytes for array in parameters(model).values())
    assert (report.bytes_before, report.bytes_after) == (before, after)
    shapes = {name: array.shape for name, array in parameters(model).items()}
    assert count_parameters(shapes, bits) * 4 == before
    save(model, tmp_path / "saved")
    loaded, _ = load(tmp_path / "saved")
    assert_same_weights(loaded, model)
    pixel_values = mx.random.normal((2, 32, 32, 3), key=mx.random.key(0))
    expected = model(pixel_values).logits
    assert mx.array_equal(loaded(pixel_values).logits, expected)
    mx.random.seed(0)
    number = mx.random.uniform().item()
    mx.random.seed(0)
    dequantize(model)
    assert mx.random.uniform().item() == number  # the caller's random numbers are left alone
    assert_close(model(pixel_values).logits, expected)
    assert set(parameters(model)) == names
    assert {array.dtype for array in parameters(model).values()} == {mx.float32}
    assert "quantization" not in model.config.to_dict()


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_values_are_rounded_once_on_the_way_to_another_dtype(dtype):
    expected, model = (make_model(hidden_sizes=[32, 128]) for _ in range(2))
    expected.load_weights(list(parameters(model).items()))
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


def test_the_command_dequantizes_for_transformers_and_counts_the_parameters(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # MLX verifies; PyTorch does in tests/parity
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
    edit_json(tmp_path / "saved" / "config.json", quantization=entry)
    with pytest.raises(ValueError, match="quantization"):
        load(tmp_path / "saved")


def test_a_backbone_of_a_quantized_classifier_and_a_cast(tmp_path):
    model = make_model()
    quantize(model)
    save(model, tmp_path / "saved")
    x = mx.random.normal((1, 32, 32, 3))
    backbone, _ = load(tmp_path / "saved", model_class=ConvNextV2Backbone)
    states = [net(x, output_hidden_states=True).hidden_states or () for net in (model, backbone)]
    assert mx.array_equal(states[0][-1], states[1][-1])
    half, _ = load(tmp_path / "saved", dtype="float16")
    assert {array.dtype for array in parameters(half).values()} == {mx.uint32, mx.float16}


def test_the_demo_keeps_its_answers():
    model, processor = load(DEMO)
    _, pixel_values, _ = train_digits.digits(processor, seed=0)
    held_out = mx.array(pixel_values[:200])
    before = model(held_out).logits.argmax(axis=-1)
    for bits, least in ((8, 0.99), (4, 0.90)):
        model, _ = load(DEMO)
        quantize(model, bits)
        agreement = (model(held_out).logits.argmax(axis=-1) == before).mean().item()
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
