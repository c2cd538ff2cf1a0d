"""What the Swift package takes from the Python package: `python swift/generate.py` writes it anew.

Sources: the Metal kernels' text, as Python launches it, and ImageNet's labels. Fixtures for the Swift tests: small
checkpoints in every form that `convert` writes, images, and what Python makes of them. A test compares all of it with
what this program would write.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
from PIL import Image

from mlx_convnextv2 import (
    ConvNextImageProcessor,
    ConvNextV2Backbone,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    load,
    save,
)
from mlx_convnextv2.heatmaps import explain
from mlx_convnextv2.inference.folds import scale_weight
from mlx_convnextv2.model.labels import imagenet_1k
from mlx_convnextv2.model.quantization import quantize
from mlx_convnextv2.ops import gpu

SWIFT = Path(__file__).resolve().parent
WRITTEN = "// Written by swift/generate.py: do not edit.\n\n"
SIDE = 64  # of the small checkpoints' images: two positions a side after the last stage

# Each kernel that a block launches on Metal, by its name in Swift, and how Python launches it.
KERNELS: dict[str, Callable[[], Any]] = {
    "depthwiseLayerNormResidual": lambda: gpu.depthwise_layer_norm_residual(
        mx.zeros((1, 8, 8, 16)), mx.zeros((7, 7, 16)), mx.zeros(16), mx.zeros(16), mx.zeros(16), 1e-6, mx.zeros(16)
    ),
    "geluSumOfSquares": lambda: gpu.gelu_sum_of_squares(mx.zeros((1, 64, 64))),
    "sumOfSquaresOfGelu": lambda: gpu.sum_of_squares_of_gelu(mx.zeros((1, 64, 64))),
    "grnScale": lambda: gpu.grn_scale(mx.zeros((1, 2, 64)), mx.zeros(64)),
    "geluScaled": lambda: gpu.gelu_scaled(mx.zeros((1, 64, 64)), mx.zeros((1, 64))),
}

# Block shapes of the eight sizes at several resolutions and batches, and odd ones: (N, H, W, C).
SHAPES = [
    (batch, side, side, channels)
    for first in (40, 48, 64, 80, 96, 128, 192, 352)
    for batch in (1, 8)
    for stage, side in enumerate((56, 28, 14, 7))
    for channels in [first * 2**stage]
] + [(1, 96, 96, 96), (1, 128, 128, 352), (3, 5, 9, 7), (2, 1, 1, 4096), (1, 33, 17, 250), (32, 7, 7, 768)]


def sources() -> dict[Path, str]:
    """The generated Swift files by path."""
    labels = "".join(f"    {json.dumps(label)},\n" for label in imagenet_1k())
    texts = [record(launch)[0] for launch in KERNELS.values()]
    headers = list(dict.fromkeys(text["header"] for text in texts))
    kernels = "".join(f"private let header{i} = {_raw(header)}\n\n" for i, header in enumerate(headers))
    for name, text in zip(KERNELS, texts, strict=True):
        kernels += (
            f"extension KernelSource {{\n"
            f"    package static let {name} = KernelSource(\n"
            f"        name: {json.dumps(text['name'])},\n"
            f"        inputs: {json.dumps(text['input_names'])},\n"
            f"        outputs: {json.dumps(text['output_names'])},\n"
            f"        header: header{headers.index(text['header'])},\n"
            f"        source: {_raw(text['source'])})\n}}\n\n"
        )
    ignored = "// swift-format-ignore-file\n"
    core = SWIFT / "Sources" / "ConvNeXtV2Core"
    return {
        core / "ImageNet1k.swift": f"{WRITTEN}{ignored}\n/// Class i of ILSVRC 2012 is label i.\n"
        f"let imageNet1k = [\n{labels}]\n",
        core / "KernelSources.swift": f"{WRITTEN}{ignored}\n{kernels.rstrip()}\n",
    }


def record(launch: Callable[[], Any]) -> list[dict[str, Any]]:
    """The kernels that a function launches: what each is built from, and how it is called."""
    recorded: list[dict[str, Any]] = []

    def build(**text: Any) -> Callable[..., Any]:
        def call(**how: Any) -> list[mx.array]:
            recorded.append({**text, **how})
            return [
                mx.zeros(shape, dtype) for shape, dtype in zip(how["output_shapes"], how["output_dtypes"], strict=True)
            ]

        return call

    no_cuda = mock.patch.object(mx.cuda, "is_available", return_value=False)
    with mock.patch.object(mx.fast, "metal_kernel", build), no_cuda, uncached():
        launch()
    return recorded


@contextmanager
def uncached() -> Iterator[None]:
    gpu._build.cache_clear()
    try:
        yield
    finally:
        gpu._build.cache_clear()


def launches() -> list[dict[str, Any]]:
    """How Python divides the kernels' work for each of `SHAPES`."""
    result = []
    for batch, height, width, channels in SHAPES:
        x, c = mx.zeros((batch, height, width, channels)), mx.zeros(channels)
        hidden = mx.zeros((batch, height * width, 4 * channels))
        calls: dict[str, Callable[[], Any]] = {
            "depthwise": lambda x=x, c=c: gpu.depthwise_layer_norm_residual(
                x, mx.zeros((7, 7, c.size)), c, c, c, 1e-6, c
            ),
            "strips": lambda hidden=hidden: gpu.sum_of_squares_of_gelu(hidden),
            "scale": lambda hidden=hidden: gpu.grn_scale(mx.zeros((len(hidden), 2, hidden.shape[2])), mx.zeros(1)),
        }
        entry: dict[str, Any] = {"shape": [batch, height, width, channels]}
        for name, call in calls.items():
            launched = record(call)[0]
            template = {key: value for key, value in launched["template"] if key != "T"}
            entry[name] = {"grid": launched["grid"], "threads": launched["threadgroup"][0], "template": template}
        entry["scalesWeight"] = scale_weight(batch, height * width, channels)
        result.append(entry)
    return result


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Coloured ramps and noise, RGB, in whole numbers that no machine rounds in its own way."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([(9 * x + 3 * y) % 400, (5 * x + 11 * y) % 370, (13 * x - 7 * y) % 430], axis=-1)
    return Image.fromarray(np.clip(np.abs(ramps - 200) + rng.randint(-30, 60, ramps.shape), 0, 255).astype(np.uint8))


IMAGES = {"wide": (41, 23, 1), "high": (19, 50, 2), "small": (17, 17, 3)}

# As preprocessor_config.json has them.
PROCESSORS: list[dict[str, Any]] = [
    *({"size": {"shortest_edge": 12}, "resample": resample} for resample in range(6)),
    {"size": {"shortest_edge": 12}, "crop_pct": 0.9, "crop_mode": "center", "resample": 3},
    {"size": {"shortest_edge": 11}, "crop_pct": 0.8, "crop_mode": "squash", "resample": 2},
    {"size": {"shortest_edge": 11}, "crop_pct": 0.8, "crop_mode": "center", "resample": 0},
    {"size": {"shortest_edge": 21}, "crop_pct": 1.0, "resample": 1},
    {"size": 12, "image_mean": [0.5], "image_std": [0.25]},
    {"size": {"shortest_edge": 12}, "do_normalize": False},
    {"size": {"shortest_edge": 12}, "do_rescale": None, "image_mean": [127.5, 120, 110], "image_std": [50, 60, 70]},
    {"do_resize": False, "image_mean": 0.4, "image_std": 0.2},
]


def processing() -> list[dict[str, Any]]:
    """Pixel values of each image by each of `PROCESSORS`, float32 in base64."""
    result = []
    for values in PROCESSORS:
        processor = ConvNextImageProcessor.from_dict(values)
        for name, size in IMAGES.items():
            pixels = processor.preprocess(picture(*size))
            result.append({"processor": values, "image": name, "shape": pixels.shape, "values": _base64(pixels)})
    return result


def alpha() -> dict[str, str]:
    """Pixels of every alpha and what Pillow makes of them over white: RGBA and RGB in base64."""
    rgba = np.random.RandomState(4).randint(0, 256, (16, 64, 4)).astype(np.uint8)
    rgba[..., 3].flat[:256] = np.arange(256)
    white = Image.new("RGBA", (64, 16), "white")
    rgb = np.asarray(Image.alpha_composite(white, Image.fromarray(rgba)).convert("RGB"))
    return {name: base64.b64encode(pixels.tobytes()).decode("ascii") for name, pixels in (("rgba", rgba), ("rgb", rgb))}


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"model_type": "convnextv2", "num_labels": 5, "depths": [1, 2], "hidden_sizes": [8, 16], "num_stages": 2},
    {"id2label": {"1": "dog", "0": "cat", "2": "bird"}},
    {"id2label": {"0": "cat", "1": "dog"}, "num_labels": 2},
    {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "num_labels": 4},
    {"label2id": {"b": 1, "a": 0}},
    {"id2label": ["a", "b"], "label2id": None},
    {"id2label": {"0": 1, "1": 2}},
    {"num_labels": 0},
    {"num_labels": 1000},
    {"out_features": ["stage2", "stage4"]},
    {"out_indices": [0, -1]},
    {"out_features": ["stage4"], "out_indices": [4]},
    {"patch_size": [4, 2], "hidden_act": "gelu_new", "layer_norm_eps": 1e-6, "unknown": {"a": [1]}},
    # and what is refused
    {"model_type": "convnext"},
    {"id2label": {"0": "cat", "2": "dog"}},
    {"id2label": {"0": "cat", "1": "dog"}, "num_labels": 3},
    {"id2label": "cat"},
    {"depths": [1, 2], "hidden_sizes": [8, 16]},
    {"depths": [1, 2, 3, 4], "hidden_sizes": [8, 16, 32, 0]},
    {"depths": [500, 500, 1, 1]},
    {"hidden_act": "tanh"},
    {"out_features": ["stage5"]},
    {"out_features": ["stage4", "stage2"]},
    {"out_features": ["stage2"], "out_indices": [4]},
    {"out_indices": [5]},
    {"patch_size": 0},
    {"patch_size": "4"},
    {"num_channels": True},
    {"num_labels": 1000000},
    {"layer_norm_eps": 2},
]


def configurations() -> list[dict[str, Any]]:
    """What Python reads from each config.json, or that it refuses it."""
    result = []
    for values in CONFIGURATIONS:
        entry: dict[str, Any] = {"config": values}
        try:
            config = ConvNextV2Config.from_dict({"num_stages": 4, **values})
        except ValueError:
            entry["refused"] = True
        else:
            entry |= {
                "labels": list(config.id2label.values()),
                "outFeatures": config.out_features,
                "hiddenSizes": config.hidden_sizes,
                "depths": config.depths,
                "minImageSize": config.min_image_shape,
                "hiddenAct": config.hidden_act,
                "layerNormEps": config.layer_norm_eps,
            }
        result.append(entry)
    return result


def small_model(seed: int, **overrides: Any) -> ConvNextV2ForImageClassification:
    """A model of four stages with random weights that leave no parameter at zero or one."""
    values = {"depths": [1, 1, 2, 1], "hidden_sizes": [4, 8, 12, 16], "id2label": ["ant", "bee", "cat", "dog", "emu"]}
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**{**values, **overrides}))
    _randomise(model, seed)
    return model


def _randomise(model: Any, seed: int) -> None:
    from mlx.utils import tree_flatten

    rng = np.random.RandomState(seed)
    weights = []
    for name, array in sorted(dict(tree_flatten(model.parameters())).items()):
        fan_in = np.prod(array.shape[1:]) if array.ndim > 1 and ".grn." not in name else 1
        values = rng.randint(-(2**20), 2**20, array.shape) * 1.7 / 2**20 / np.sqrt(fan_in)
        if name.endswith("norm.weight") or ".downsampling_layer.0.weight" in name:
            values = 1 + 0.2 * values
        elif array.ndim == 1 or ".grn." in name:
            values = 0.3 * values
        weights.append((name, mx.array(values.astype(np.float32))))
    model.load_weights(weights)


def checkpoints() -> dict[str, Callable[[Path], None]]:
    """How each small checkpoint is written into its folder."""
    processor = ConvNextImageProcessor(size=SIDE, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])

    def write(folder: Path, model: Any, **options: Any) -> None:
        save(model, folder, processor, **options)
        (folder / "README.md").unlink()

    def plain(dtype: str) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            model = small_model(1)
            model.set_dtype(getattr(mx, dtype))
            write(folder, model)

        return make

    def quantized(mode: str, bits: int, group_size: int) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            # of the stages' widths the mode's groups divide some, so that layers of both kinds are there
            model = small_model(2, depths=[1, 1, 1, 1], hidden_sizes=[4, 8, 16, 32])
            quantize(model, bits, group_size, mode)
            write(folder, model)

        return make

    def backbone(folder: Path) -> None:
        model = ConvNextV2Backbone(small_model(1).config)
        model.config.update({"out_features": ["stem", "stage2", "stage4"]})
        model = ConvNextV2Backbone(model.config)
        _randomise(model, 3)
        write(folder, model)

    return {
        "float32": plain("float32"),
        "float16": plain("float16"),
        "bfloat16": plain("bfloat16"),
        "sharded": lambda folder: write(folder, small_model(1), max_shard_bytes=15_000),
        "huggingface": lambda folder: write(folder, small_model(1), format="huggingface"),
        "affine-4": quantized("affine", 4, 64),
        "affine-8": quantized("affine", 8, 32),
        "mxfp4": quantized("mxfp4", 4, 32),
        "mxfp8": quantized("mxfp8", 8, 32),
        "nvfp4": quantized("nvfp4", 4, 16),
        "backbone": backbone,
    }


def outputs(folder: Path) -> dict[str, Any]:
    """What MLX's plain path makes of the images with a checkpoint."""
    model, processor = load(folder)
    result: dict[str, Any] = {}
    for name, size in IMAGES.items():
        pixel_values = processor(picture(*size))
        found = model(pixel_values, output_hidden_states=True)
        arrays = {f"hidden{i}": array for i, array in enumerate(found.hidden_states)}
        if isinstance(model, ConvNextV2Backbone):
            arrays |= {f"feature{i}": array for i, array in enumerate(found.feature_maps)}
        else:
            arrays["logits"] = found.logits
            arrays["pooled"] = model.convnextv2(pixel_values).pooler_output
            arrays["heat"] = explain(model, pixel_values, 2)[0]
        result[name] = {
            key: {"shape": array.shape, "values": _base64(np.array(array.astype(mx.float32)))}
            for key, array in arrays.items()
            if array.size < 700 or key.startswith("feature")
        }
    return result


def fixtures(folder: Path) -> None:
    """Write all fixtures, as MLX computes on a CPU."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        _fixtures(folder)
    finally:
        mx.set_default_device(device)


def _fixtures(folder: Path) -> None:
    for name, size in IMAGES.items():
        picture(*size).save(folder / f"{name}.ppm")
    for name, make in checkpoints().items():
        make(folder / name)
    expected = {name: outputs(folder / name) for name in checkpoints()}
    for name, content in (
        ("outputs", expected),
        ("processing", processing()),
        ("alpha", alpha()),
        ("configurations", configurations()),
        ("launches", launches()),
    ):
        (folder / f"{name}.json").write_text(_json(content), encoding="utf-8")


def _json(content: Any) -> str:
    """One line for each entry, so that a change shows."""
    entries = content.items() if isinstance(content, dict) else ((None, entry) for entry in content)
    lines = [(f"{json.dumps(key)}: " if key is not None else "") + json.dumps(value) for key, value in entries]
    opening, closing = "{}" if isinstance(content, dict) else "[]"
    return f"{opening}\n" + ",\n".join(lines) + f"\n{closing}\n"


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode("ascii")


def _raw(text: str) -> str:
    """A Swift literal of several lines in which no backslash means anything."""
    assert '"""#' not in text
    return f'#"""\n{text.rstrip()}\n"""#'


def main() -> int:
    import shutil

    for path, text in sources().items():
        path.write_text(text, encoding="utf-8")
    folder = SWIFT / "Tests" / "Fixtures"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fixtures(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
