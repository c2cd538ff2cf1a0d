"""A model as one file that MLX runs without this package: images in, probabilities out.

The graph rescales and normalises uint8 pixels, runs the model and applies softmax. The app resizes and crops the image
first; model.json says how.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..files.atomic_folder import Kind, new_folder
from ..files.json_files import write_json
from ..files.names import GRAPH_FILE
from ..images.processor import ImageProcessor
from ..inference.fuse import chosen_operations, fuse
from ..model.convnextv2 import ConvNextV2ForImageClassification
from ..ops.tolerances import TRACED
from .description import DESCRIPTION_FILE, README_FILE, describe, input_shape, readme, weights_dtype

GRAPH = Kind("an exported model", ((GRAPH_FILE,), (DESCRIPTION_FILE,)))
MAX_BATCH = 4096  # the C++ library takes no larger one


def export_model(
    model: ConvNextV2ForImageClassification,
    processor: ImageProcessor,
    path: str | os.PathLike[str],
    *,
    batches: Sequence[int] = (1,),
    features: bool = False,
    name: str = "the model",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a folder with the graph, its description and a README. The folder appears whole or not at all.

    The graph is traced for MLX's device here, and runs on that kind of device wherever it is loaded. It is compared
    with the Python model before the folder appears.

    Args:
        model: a model with a classification head.
        processor: its image processor. The graph includes what the processor does to pixels.
        path: the folder, which must not exist.
        batches: the numbers of images that the graph takes at once. All share one set of weights.
        features: also return the pooled embedding.
        name: the model's name, for the description.
        overwrite: replace an existing exported model.

    Returns:
        The description, as in model.json.

    Raises:
        FileExistsError: the folder exists.
        OSError: the folder cannot be written, for example for lack of space.
        ValueError: the model has no head, a batch is not a number from 1 to 4096, the path is not UTF-8, or the graph
            differs from the model.
    """
    height, width, channels = input_shape(model, processor, name)
    if not batches or not all(isinstance(batch, int) and 1 <= batch <= MAX_BATCH for batch in batches):
        raise ValueError(f"batches must be whole numbers of at least 1 and at most {MAX_BATCH}, not {list(batches)!r}")
    if any("\ud800" <= character <= "\udfff" for character in str(Path(path).absolute())):
        raise ValueError(f"{path} is not in UTF-8, in which MLX names its files: choose another folder")
    batches = sorted(set(batches))
    # The exporter writes a weight's memory as it lies, even if transposed, and an unevaluated weight as its graph.
    model.update(tree_map(mx.contiguous, model.parameters()))
    mx.eval(model.parameters())
    on_gpu = mx.default_device().type == mx.gpu
    embed = fuse(model, "auto" if on_gpu else "plain", pooled=True)
    run = classify_pixels(model, embed, processor, features)
    if on_gpu:  # the trace cannot run trials, and takes the choices made here
        for batch in batches:
            mx.eval(run(mx.zeros((batch, height, width, channels), mx.uint8)))
    with new_folder(path, overwrite, GRAPH) as folder:
        with mx.exporter(str(folder / GRAPH_FILE), run) as exporter:
            for batch in batches:
                exporter(mx.zeros((batch, height, width, channels), mx.uint8))
        _check(folder / GRAPH_FILE, run, (batches[0], height, width, channels), weights_dtype(model))
        description = describe(model, processor, (height, width, channels), batches, features, name)
        description["operations"] = chosen_operations(embed)
        description["sha256"] = _sha256(folder / GRAPH_FILE)
        description["bytes"] = (folder / GRAPH_FILE).stat().st_size
        write_json(folder / DESCRIPTION_FILE, description)
        (folder / README_FILE).write_text(readme(description), encoding="utf-8")
    return description


def take_first_stream() -> None:
    """Make this thread's stream the process's first, number 0. A graph traced here asks for that number."""
    mx.default_stream(mx.default_device())


def classify_pixels(
    model: ConvNextV2ForImageClassification,
    embed: Callable[[mx.array], mx.array],
    processor: ImageProcessor,
    features: bool = False,
) -> Callable[[mx.array], tuple[mx.array, ...]]:
    """A function that can be traced: uint8 pixels (N, H, W, C) -> probabilities (N, num_labels) in float32.

    `embed` is the fused model without its classifier. With `features` the function also returns the pooled embedding
    (N, hidden_size) in float32.
    """
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean = np.array(processor.image_mean, np.float32) if processor.do_normalize else np.zeros(1, np.float32)
    std = np.array(processor.image_std, np.float32) if processor.do_normalize else np.ones(1, np.float32)
    offset, scale = mx.array(mean), mx.array(std)

    def run(pixels: mx.array) -> tuple[mx.array, ...]:
        pooled = embed((pixels.astype(mx.float32) * factor - offset) / scale)  # (N, H, W, C) -> (N, hidden_size)
        probabilities = mx.softmax(model.classifier(pooled).astype(mx.float32), axis=-1)  # -> (N, num_labels)
        return (probabilities, pooled.astype(mx.float32)) if features else (probabilities,)

    return run


def _check(file: Path, run: Callable[[mx.array], Any], shape: tuple[int, ...], dtype: str) -> None:
    """Raise a ValueError if the graph in the file does not answer like the function it was traced from."""
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
        if not difference <= TRACED[dtype]:  # NaN too
            raise ValueError(f"the traced graph differs from the model by {difference:.1e}: report this")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            digest.update(block)
    return digest.hexdigest()
