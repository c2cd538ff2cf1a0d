"""The description of an exported graph: model.json and README.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import Template
from typing import Any

import mlx.core as mx
import PIL
from mlx.utils import tree_flatten

from .._version import __version__
from ..files.names import GRAPH_FILE
from ..files.tensors import dtype_name, is_floating
from ..images.processor import ImageProcessor
from ..model.config import as_pair
from ..model.convnextv2 import ConvNextV2ForImageClassification
from ..model.labels import class_labels

DESCRIPTION_FILE, README_FILE = "model.json", "README.md"
FORMAT_VERSION = 1


def input_shape(model: ConvNextV2ForImageClassification, processor: ImageProcessor, name: str) -> tuple[int, int, int]:
    """Height, width and channels of the images that a classifier takes. Errors call it `name`.

    Raises:
        ValueError: the model has no classifier, or the processor makes another number of channels than it takes.
    """
    if not isinstance(model, ConvNextV2ForImageClassification) or model.config.num_labels == 0:
        raise ValueError(f"{name} has no classification head, so that an export could not name what an image shows")
    channels = len(processor.image_mean)
    if channels != model.config.num_channels:
        raise ValueError(f"{name} takes {model.config.num_channels} channels and its processor makes {channels}")
    side = processor.size["shortest_edge"]
    height, width = (side, side) if processor.do_resize else as_pair(model.config.image_size)
    return height, width, channels


def weights_dtype(model: ConvNextV2ForImageClassification) -> str:
    parameters = dict(tree_flatten(model.parameters())).values()
    return dtype_name(next(array.dtype for array in parameters if is_floating(array.dtype)))


def describe(
    model: ConvNextV2ForImageClassification,
    processor: ImageProcessor,
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
        "weights_dtype": weights_dtype(model),
        "quantization": model.config.extra.get("quantization"),
        "input": {
            "name": "pixels",
            "dtype": "uint8",
            "shape": ["batch", *shape],
            "colour": "RGB" if shape[2] == 3 else "grey",
            "layout": "NHWC",
        },
        "preprocessing": preprocessing(processor, shape),
        "outputs": outputs,
        "labels": class_labels(model.config),
    }


def preprocessing(processor: ImageProcessor, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What an app does before it runs the graph: how to resize, then how to crop the middle."""
    if not processor.do_resize:
        return {"resize": None, "crop": None}
    side = shape[0]
    # The version matters: from 13 on, Pillow sums rows and columns in another order, with a rounding in between.
    resize: dict[str, Any] = {"filter": f"Pillow's {processor.filter_name}", "pillow_version": PIL.__version__}
    squeezed = processor.resizes_to_square()
    resize |= {"width": squeezed, "height": squeezed} if squeezed else {"short_side": processor.short_side()}
    odd_margins = "down" if processor.crop_mode is None else "to even"  # how half a pixel is rounded
    return {"resize": resize, "crop": {"width": side, "height": side, "position": "middle", "halves": odd_margins}}


def _stream_index() -> int:
    """The number of the stream that the graph was traced on. The graph asks for that number wherever it is loaded."""
    return int(re.search(r"(\d+)\)$", str(mx.default_stream(mx.default_device())))[1])  # type: ignore[index]


_README = Template("""\
# $model, as a graph for MLX

`$graph` takes uint8 $colour pixels, $shapes, and returns $outputs.
Rescaling, normalisation and softmax are inside; the weights are $weights. `$description` has the labels, in the order
of the probabilities, and how to resize and crop.

- It was traced with MLX $mlx_version and has to be loaded with that version: the format changes between versions.
- It runs on $device, wherever it is loaded.$cpu_note
- Only these batch sizes were traced; another is an error.
- Check the file against `sha256` in `$description` before you load it.
- In C++ and C the library in `native` of mlx_convnextv2 does all of that, and the resizing, for RGB;
  `docs/embedding.md` there is about shipping it in an app. In Python:

```python
import json, mlx.core as mx

graph = mx.import_function("$graph")
labels = json.load(open("$description"))["labels"]
probabilities = graph(pixels)[0]  # pixels: uint8, $shape
print(labels[probabilities[0].argmax().item()])
```
""")


def readme(description: dict[str, Any]) -> str:
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
