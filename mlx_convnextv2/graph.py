"""A model as one file that MLX runs without this package: images in, probabilities out.

The way of the data through the graph: uint8 pixels -> rescaled and normalised -> the model -> softmax. What comes
before, resizing and cropping, is described in model.json for the app to do.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import Any

import mlx.core as mx
import numpy as np
import PIL
from mlx.utils import tree_flatten, tree_map

from . import __version__
from .config import as_pair
from .folders import Kind, new_folder
from .image_processor import ConvNextImageProcessor
from .inference import fuse
from .labels import class_labels
from .model import ConvNextV2ForImageClassification
from .tensor_files import dtype_name, is_floating, write_json

GRAPH_FILE, DESCRIPTION_FILE, README_FILE = "model.mlxfn", "model.json", "README.md"
GRAPH = Kind("an exported model", ((GRAPH_FILE,), (DESCRIPTION_FILE,)))
FORMAT_VERSION = 1
MAX_BATCH = 4096  # the C++ library takes no larger one
_PILLOW_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# The traced graph beside the Python model, as a part of the largest probability: the same operations in another order.
_TOLERANCES = {"float32": 1e-5, "float16": 2.0**-8, "bfloat16": 2.0**-5}


def export_model(
    model: ConvNextV2ForImageClassification,
    processor: ConvNextImageProcessor,
    path: str | os.PathLike[str],
    *,
    batches: Sequence[int] = (1,),
    features: bool = False,
    name: str = "the model",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a folder with the graph, its description and a README, which appears whole or not at all.

    The graph is traced for the device that MLX has here, and runs there wherever it is loaded. It is compared with the
    Python model before the folder appears.

    Args:
        model: with a classification head.
        processor: its image processor; what it does to pixels becomes part of the graph.
        path: the folder, which must not exist.
        batches: the numbers of images that the graph takes at once; all share one set of weights.
        features: return the pooled embedding beside the probabilities.
        name: of the model, for the description.
        overwrite: replace an exported model that is there.

    Returns:
        The description, as in model.json.

    Raises:
        FileExistsError: the folder exists.
        OSError: it cannot be written, for lack of space say.
        ValueError: the model has no head, a batch is not a number of 1 to 4096, the path is not in UTF-8, or the graph
            differs from the model.
    """
    if not isinstance(model, ConvNextV2ForImageClassification) or model.config.num_labels == 0:
        raise ValueError(f"{name} has no classification head, so that a graph of it could not name what an image shows")
    if not batches or not all(isinstance(batch, int) and 1 <= batch <= MAX_BATCH for batch in batches):
        raise ValueError(f"batches must be whole numbers of at least 1 and at most {MAX_BATCH}, not {list(batches)!r}")
    if any("\ud800" <= character <= "\udfff" for character in str(Path(path).absolute())):
        raise ValueError(f"{path} is not in UTF-8, in which MLX names its files: choose another folder")
    batches = sorted(set(batches))
    height, width = _input_shape(model, processor)
    channels = len(processor.image_mean)
    if channels != model.config.num_channels:
        raise ValueError(f"{name} takes {model.config.num_channels} channels and its processor makes {channels}")
    # The exporter writes each weight's memory as it lies, transposed or not, and of an unevaluated one what makes it.
    model.update(tree_map(mx.contiguous, model.parameters()))
    mx.eval(model.parameters())
    run = classify_pixels(model, processor, features)
    with new_folder(path, overwrite, GRAPH) as folder:
        with mx.exporter(str(folder / GRAPH_FILE), run) as exporter:
            for batch in batches:
                exporter(mx.zeros((batch, height, width, channels), mx.uint8))
        _check(folder / GRAPH_FILE, run, (batches[0], height, width, channels), _dtype(model))
        description = _describe(model, processor, (height, width, channels), batches, features, name)
        description["sha256"] = _sha256(folder / GRAPH_FILE)
        description["bytes"] = (folder / GRAPH_FILE).stat().st_size
        write_json(folder / DESCRIPTION_FILE, description)
        (folder / README_FILE).write_text(_readme(description), encoding="utf-8")
    return description


def classify_pixels(
    model: ConvNextV2ForImageClassification, processor: ConvNextImageProcessor, features: bool = False
) -> Callable[[mx.array], tuple[mx.array, ...]]:
    """A function that can be traced: uint8 pixels (N, H, W, C) -> probabilities (N, num_labels) in float32.

    With `features` also the pooled embedding (N, hidden_size) in float32.
    """
    on_gpu = mx.default_device().type == mx.gpu
    embed = fuse(model, "auto" if on_gpu else "plain", pooled=True)
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean = np.array(processor.image_mean, np.float32) if processor.do_normalize else np.zeros(1, np.float32)
    std = np.array(processor.image_std, np.float32) if processor.do_normalize else np.ones(1, np.float32)
    offset, scale = mx.array(mean), mx.array(std)

    def run(pixels: mx.array) -> tuple[mx.array, ...]:
        pooled = embed((pixels.astype(mx.float32) * factor - offset) / scale)  # (N, H, W, C) -> (N, hidden_size)
        probabilities = mx.softmax(model.classifier(pooled).astype(mx.float32), axis=-1)  # -> (N, num_labels)
        return (probabilities, pooled.astype(mx.float32)) if features else (probabilities,)

    return run


def _input_shape(model: ConvNextV2ForImageClassification, processor: ConvNextImageProcessor) -> tuple[int, int]:
    if processor.do_resize:
        return processor.size["shortest_edge"], processor.size["shortest_edge"]
    return as_pair(model.config.image_size)


def _dtype(model: ConvNextV2ForImageClassification) -> str:
    parameters = dict(tree_flatten(model.parameters())).values()
    return dtype_name(next(array.dtype for array in parameters if is_floating(array.dtype)))


def _check(file: Path, run: Callable[[mx.array], Any], shape: tuple[int, ...], dtype: str) -> None:
    """Raise a ValueError if the graph in the file does not answer as the function that it was traced from."""
    pixels = mx.random.randint(0, 256, shape, key=mx.random.key(0)).astype(mx.uint8)
    graph: Any = mx.import_function(str(file))
    for traced, expected in zip(graph(pixels), run(pixels), strict=True):
        try:
            difference = float(np.array(mx.abs(traced - expected).max() / mx.abs(expected).max()))
        except RuntimeError as error:
            if "Stream" not in str(error):
                raise
            raise ValueError(
                f"MLX runs no graph in this thread ({error}): export in the one that used MLX first"
            ) from None
        if not np.isfinite(np.array(expected)).all():
            raise ValueError("the model's outputs are not finite: its weights are damaged, or too large for its dtype")
        if not difference <= _TOLERANCES[dtype]:  # NaN too
            raise ValueError(f"the traced graph differs from the model by {difference:.1e}: report this")


def _describe(
    model: ConvNextV2ForImageClassification,
    processor: ConvNextImageProcessor,
    shape: tuple[int, int, int],
    batches: Sequence[int],
    features: bool,
    name: str,
) -> dict[str, Any]:
    outputs: list[dict[str, Any]] = [
        {"name": "probabilities", "dtype": "float32", "shape": ["batch", model.config.num_labels]}
    ]
    if features:
        hidden_size = model.config.hidden_sizes[-1]
        outputs.append({"name": "embedding", "dtype": "float32", "shape": ["batch", hidden_size]})
    device = mx.default_device().type.name
    return {
        "format": "mlx_convnextv2 graph",
        "format_version": FORMAT_VERSION,
        "model": name,
        "package_version": __version__,
        "mlx_version": mx.__version__,  # type: ignore[attr-defined]
        "device": "metal" if mx.metal.is_available() and device == "gpu" else "cuda" if device == "gpu" else "cpu",
        "stream": _stream_index(),
        "graph": GRAPH_FILE,
        "batches": list(batches),
        "weights_dtype": _dtype(model),
        "quantization": model.config.extra.get("quantization"),
        "input": {
            "name": "pixels",
            "dtype": "uint8",
            "shape": ["batch", *shape],
            "colour": "RGB" if shape[2] == 3 else "grey",
            "layout": "NHWC",
        },
        "preprocessing": _preprocessing(processor, shape),
        "outputs": outputs,
        "labels": class_labels(model.config),
    }


def _preprocessing(processor: ConvNextImageProcessor, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What an app does before the graph: how to resize, then the middle to cut out."""
    if not processor.do_resize:
        return {"resize": None, "crop": None}
    side = shape[0]
    filter_name = _PILLOW_FILTERS[processor.resample] if processor.resample < len(_PILLOW_FILTERS) else "unknown"
    # The version, because from 13 on Pillow sums rows and columns in another order, with a rounding between.
    resize: dict[str, Any] = {"filter": f"Pillow's {filter_name}", "pillow_version": PIL.__version__}
    squeezed = processor.resizes_to_square()
    resize |= {"width": squeezed, "height": squeezed} if squeezed else {"short_side": processor.short_side()}
    odd_margins = "down" if processor.crop_mode is None else "to even"  # which whole number the half of one becomes
    return {"resize": resize, "crop": {"width": side, "height": side, "position": "middle", "halves": odd_margins}}


def _stream_index() -> int:
    """The number of the stream that the graph was traced on, which it asks for by that number wherever it is loaded."""
    return int(re.search(r"(\d+)\)$", str(mx.default_stream(mx.default_device())))[1])  # type: ignore[index]


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()


_README = Template("""\
# $model, as a graph for MLX

`$graph` takes uint8 $colour pixels, $shapes, and returns $outputs.
Rescaling, normalisation and softmax are inside; the weights are $weights. `$description` has the labels, in the order
of the probabilities, and how to resize and crop.

- It was traced with MLX $mlx_version and has to be loaded with that version: the format changes between versions.
- It runs on $device, wherever it is loaded.$cpu_note
- Only these batch sizes were traced; another is an error.
- Check the file against `sha256` in `$description` before you load it.
- In C++, C and Swift the library in `native` of mlx_convnextv2 does all of that, and the resizing, for RGB;
  `docs/embedding.md` there is about shipping it in an app. In Python:

```python
import json, mlx.core as mx

graph = mx.import_function("$graph")
labels = json.load(open("$description"))["labels"]
probabilities = graph(pixels)[0]  # pixels: uint8, $shape
print(labels[probabilities[0].argmax().item()])
```
""")


def _readme(description: dict[str, Any]) -> str:
    height, width, channels = description["input"]["shape"][1:]
    shapes = [f"({batch}, {height}, {width}, {channels})" for batch in description["batches"]]
    on_cpu = description["device"] == "cpu"
    quantized = description["quantization"]
    return _README.substitute(
        model=description["model"],
        graph=GRAPH_FILE,
        colour=description["input"]["colour"],
        description=DESCRIPTION_FILE,
        shapes=" or ".join(shapes),
        shape=shapes[0],
        outputs=" and ".join(f"{o['name']} (batch, {o['shape'][1]})" for o in description["outputs"]),
        weights=f"quantized ({quantized['mode']}, {quantized['bits']} bits)"
        if quantized
        else description["weights_dtype"],
        mlx_version=description["mlx_version"],
        device={"cpu": "the CPU", "metal": "Apple's GPU through Metal", "cuda": "an NVIDIA GPU"}[description["device"]],
        cpu_note=" Export it on a Mac for a graph that runs on the GPU." if on_cpu else "",
    )
