"""Checkpoints between transformers and this package, both ways: the same numbers, the same labels, the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from conftest import SMALL, parameters  # noqa: E402
from reference import IMAGENET, TheirProcessor, picture, randomize  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from mlx_convnextv2 import (  # noqa: E402
    ConvNextImageProcessor,
    ConvNextV2Backbone,
    ConvNextV2ForImageClassification,
    ConvNextV2Model,
    load,
    save,
)

pytestmark = pytest.mark.parity

LABELS = ["ash", "beech, Fagus", "čeremcha", "dogwood", "elm", "fir", "ginkgo"]


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "classifier": (
        transformers.ConvNextV2ForImageClassification,
        {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}},
    ),
    "no labels": (transformers.ConvNextV2ForImageClassification, {"num_labels": 0}),
    "base model": (transformers.ConvNextV2Model, {}),
    "backbone": (transformers.ConvNextV2Backbone, {"out_features": ["stem", "stage2", "stage4"]}),
}


def make(kind: str, folder: Path | None = None, dtype: str = "float32", **options: Any) -> Any:
    """A random model of theirs, saved with its processor where there is a folder."""
    model_class, fields = KINDS[kind]
    model = model_class(transformers.ConvNextV2Config(**SMALL, **fields)).eval().requires_grad_(False)
    randomize(model, seed=list(KINDS).index(kind))
    model.to(getattr(torch, dtype))
    if folder is not None:
        model.save_pretrained(folder, **options)
        TheirProcessor(**IMAGENET).save_pretrained(folder)
    return model


OURS = {
    "classifier": ConvNextV2ForImageClassification,
    "no labels": ConvNextV2ForImageClassification,
    "base model": ConvNextV2Model,
    "backbone": ConvNextV2Backbone,
}


def outputs(model: Any, pixel_values: np.ndarray) -> list[np.ndarray]:
    """What a model of theirs or ours gives for (N, H, W, C), features as (N, H, W, C) or (N, C)."""
    if isinstance(model, torch.nn.Module):
        with torch.no_grad():
            out = model(torch.tensor(pixel_values.transpose(0, 3, 1, 2)).to(next(model.parameters()).dtype))
    else:
        out = model(mx.array(pixel_values))
    if hasattr(out, "feature_maps"):
        tensors = list(out.feature_maps)
    elif hasattr(out, "pooler_output"):
        tensors = [out.last_hidden_state, out.pooler_output]
    else:
        tensors = [out.logits]
    if isinstance(model, torch.nn.Module):
        arrays = [tensor.float().numpy() for tensor in tensors]
        return [array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for array in arrays]
    return [np.array(tensor.astype(mx.float32)) for tensor in tensors]


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float = 1e-5) -> None:
    """Within a part of the reference's largest magnitude."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


@pytest.fixture(scope="module")
def pixel_values() -> np.ndarray:
    return np.random.RandomState(0).standard_normal((2, 70, 57, 3)).astype(np.float32)


# --- from transformers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["5GB", "30KB"], ids=["one file", "sharded"])
@pytest.mark.parametrize("kind", OURS)
def test_a_checkpoint_of_transformers_gives_its_numbers_before_and_after_converting(
    run, tmp_path, pixel_values, kind, shard
):
    theirs = make(kind, tmp_path / "theirs", max_shard_size=shard)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == (shard == "30KB")
    result = run("convert", "--hf-path", tmp_path / "theirs", "--mlx-path", tmp_path / "converted")
    assert result.returncode == 0, result.stderr
    expected = outputs(theirs, pixel_values)
    for folder in ("theirs", "converted"):
        model, _ = load(tmp_path / folder)
        assert type(model) is OURS[kind]
        assert_close(outputs(model, pixel_values), expected)


@pytest.mark.parametrize("kind", OURS)
def test_a_bfloat16_checkpoint_keeps_its_type_and_gives_the_numbers_of_its_weights(run, tmp_path, pixel_values, kind):
    theirs = make(kind, tmp_path / "theirs", "bfloat16")
    result = run("convert", "--hf-path", tmp_path / "theirs", "--mlx-path", tmp_path / "converted")
    assert result.returncode == 0, result.stderr
    model, _ = load(tmp_path / "converted")
    assert {array.dtype for array in parameters(model).values()} == {mx.bfloat16}
    # In float32, where the order of the additions does not show: the rounded weights are the same.
    model, _ = load(tmp_path / "converted", dtype="float32")
    assert_close(outputs(model, pixel_values), outputs(theirs.float(), pixel_values))


@pytest.mark.parametrize("model_class", [ConvNextV2Model, ConvNextV2Backbone])
def test_parts_of_a_classifier_are_transformers_own_parts_of_it(tmp_path, pixel_values, model_class):
    make("classifier", tmp_path / "theirs")
    their_class = getattr(transformers, model_class.__name__)
    stages: dict[str, Any] = {"out_features": ["stage1", "stage3"]} if model_class is ConvNextV2Backbone else {}
    theirs = their_class.from_pretrained(tmp_path / "theirs", **stages).eval()
    model, _ = load(tmp_path / "theirs", model_class=model_class, **stages)
    assert_close(outputs(model, pixel_values), outputs(theirs, pixel_values))


@pytest.mark.parametrize("size", [32, 224, 384])
def test_classify_says_what_transformers_says(run, tmp_path, size):
    theirs = make("classifier", tmp_path / "theirs")
    processor = TheirProcessor(size={"shortest_edge": size}, crop_pct=0.875, resample=3, **IMAGENET)
    processor.save_pretrained(tmp_path / "theirs")
    result = run("convert", "--hf-path", tmp_path / "theirs", "--mlx-path", tmp_path / "converted")
    assert result.returncode == 0, result.stderr
    pictures = {"wide.png": picture(90, 70), "tall.png": picture(57, 301), "square.png": picture(64, 64)}
    for name, image in pictures.items():
        image.save(tmp_path / name)
    result = run(
        "classify",
        *(tmp_path / name for name in pictures),
        *("--model", tmp_path / "converted", "--format", "json", "--top-k", len(LABELS)),
    )
    assert result.returncode == 0, result.stderr
    for line, (name, image) in zip(map(json.loads, result.stdout.splitlines()), pictures.items(), strict=True):
        assert line["image"] == str(tmp_path / name)
        with torch.no_grad():
            logits = theirs(**processor(image, return_tensors="pt")).logits
        scores, indices = logits.softmax(-1)[0].sort(descending=True)
        assert [p["index"] for p in line["predictions"]] == indices.tolist()
        assert [p["label"] for p in line["predictions"]] == [theirs.config.id2label[i] for i in indices.tolist()]
        assert [p["score"] for p in line["predictions"]] == pytest.approx(scores.tolist(), abs=1e-5)


# --- to transformers ------------------------------------------------------------------------------------------------


def load_in_transformers(folder: Path, kind: str) -> Any:
    """The model, after seeing that no key was missing, left over or of another shape."""
    model, info = KINDS[kind][0].from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "most", "dtype"),
    [
        *((kind, 5_000_000_000, "float32") for kind in OURS),
        ("classifier", 30_000, "float32"),  # in shards
        *(("classifier", 5_000_000_000, dtype) for dtype in ("float16", "bfloat16")),
    ],
)
def test_what_is_saved_for_transformers_has_the_bits_that_came_from_there(tmp_path, pixel_values, kind, most, dtype):
    theirs = make(kind, tmp_path / "theirs", dtype)
    model, processor = load(tmp_path / "theirs")
    save(model, tmp_path / "mlx", processor)
    model, processor = load(tmp_path / "mlx")
    save(model, tmp_path / "back", processor, format="huggingface", max_shard_bytes=most)

    back = load_in_transformers(tmp_path / "back", kind)
    expected = theirs.state_dict()
    assert list(back.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.state_dict().items())
    for ours, reference in zip(outputs(back, pixel_values), outputs(theirs, pixel_values), strict=True):
        np.testing.assert_array_equal(ours, reference)
    kept = {"id2label", "label2id", "num_labels", "out_features", "out_indices", "hidden_sizes", "layer_norm_eps"}
    for name in kept:
        assert getattr(back.config, name, None) == getattr(theirs.config, name, None), name
    if most > 30_000:
        saved, original = (load_file(tmp_path / name / "model.safetensors") for name in ("back", "theirs"))
        assert set(saved) == set(original)
        assert all(torch.equal(tensor, original[name]) for name, tensor in saved.items())


@pytest.mark.parametrize("kind", ["classifier", "base model", "backbone"])
def test_a_model_made_here_loads_in_transformers_to_its_numbers(
    tmp_path, small_model, small_processor, pixel_values, kind
):
    model = small_model
    if kind != "classifier":
        save(small_model, tmp_path / "first", small_processor)
        model, _ = load(tmp_path / "first", model_class=OURS[kind])
    save(model, tmp_path / "saved", small_processor, format="huggingface")
    theirs = load_in_transformers(tmp_path / "saved", kind)
    assert_close(outputs(model, pixel_values), outputs(theirs, pixel_values))
    if kind == "classifier":
        assert theirs.config.id2label == small_model.config.id2label


def test_transformers_auto_classes_take_what_is_saved(tmp_path, small_model, small_processor, pixel_values):
    save(small_model, tmp_path / "saved", small_processor, format="huggingface")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    assert_close(outputs(small_model, pixel_values), outputs(theirs, pixel_values))
    processor = TheirProcessor.from_pretrained(tmp_path / "saved")
    image = picture(90, 70)
    theirs_pixels = processor(image, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(np.array(small_processor(image)), theirs_pixels, atol=1e-6)
    assert ConvNextImageProcessor.from_dict(processor.to_dict()).to_dict() == small_processor.to_dict()
