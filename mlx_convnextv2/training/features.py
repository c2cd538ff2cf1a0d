"""Frozen features: the body's output for each image, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..checkpoints.processor import ConvNextImageProcessor
from ..inference.fuse import fuse
from ..model.convnextv2 import ConvNextV2ForImageClassification
from ..runtime.prefetch import map_ahead
from ..runtime.threads import available_cpus
from .progress import Progress
from .world import World

BATCH_SIZE = 8  # as in `classify`: fits a CPU's caches
Errors = dict[int, Exception]


def compute_features(
    model: ConvNextV2ForImageClassification,
    processor: ConvNextImageProcessor,
    files: Sequence[Path],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    name: str = "features",
) -> tuple[np.ndarray, Errors]:
    """The pooled features (N, hidden_size) float32 of images, and by index the errors of images that cannot be read.

    Threads prepare the images as in `classify` while the model runs in the form that `fuse` gives it. The row of an
    image that cannot be read is zero.
    """
    progress = progress or Progress()
    workers = workers or available_cpus()
    embed = fuse(model, pooled=True)
    features = np.zeros((len(files), model.config.hidden_sizes[-1]), np.float32)
    errors: Errors = {}
    minimum = model.config.min_image_shape

    def prepare(file: Path) -> np.ndarray | Exception:
        try:
            pixels = processor.preprocess(file)
        except (ValueError, OSError) as error:
            return error
        if pixels.shape[0] < minimum[0] or pixels.shape[1] < minimum[1]:
            return ValueError(f"{file} is too small: the model needs {minimum[0]} x {minimum[1]} pixels")
        return pixels

    progress.begin(name, len(files))
    waiting: list[tuple[int, np.ndarray]] = []

    def flush() -> None:
        if not waiting:
            return
        pixel_values = [pixels for _, pixels in waiting]
        pixel_values += [pixel_values[-1]] * (BATCH_SIZE - len(waiting))  # one shape needs only one graph
        rows = np.array(embed(mx.array(np.stack(pixel_values))).astype(mx.float32))
        for (index, _), row in zip(waiting, rows, strict=False):
            features[index] = row
        progress.advance(len(waiting))
        waiting.clear()

    prepared = map_ahead(prepare, files, workers, BATCH_SIZE + workers)
    with closing(prepared):
        for index, pixels in enumerate(prepared):
            if isinstance(pixels, Exception):
                errors[index] = pixels
                continue
            if waiting and waiting[-1][1].shape != pixels.shape:
                flush()
            waiting.append((index, pixels))
            if len(waiting) == BATCH_SIZE:
                flush()
    flush()
    progress.end()
    if not np.isfinite(features).all():
        raise ValueError("the features are not finite: the model's weights are damaged, or too large for its dtype")
    return features, errors


def shared_features(
    model: ConvNextV2ForImageClassification,
    processor: ConvNextImageProcessor,
    files: Sequence[Path],
    world: World,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    name: str = "features",
) -> tuple[np.ndarray, Errors]:
    """`compute_features` shared among processes: each computes a part of the images, and all get all features.

    The reason for an error is known only in the process that met it.
    """
    own = slice(world.rank, None, world.size)
    rows, errors = compute_features(model, processor, files[own], workers=workers, progress=progress, name=name)
    if world.size == 1:
        return rows, errors
    whole = np.zeros((len(files), rows.shape[1] + 1), np.float32)  # the last column marks images that could not be read
    whole[own, :-1] = rows
    for index in errors:
        whole[world.rank + index * world.size, -1] = 1
    whole = world.sum(whole)
    known = {world.rank + index * world.size: error for index, error in errors.items()}
    broken = np.flatnonzero(whole[:, -1]).tolist()
    return whole[:, :-1], {i: known.get(i) or OSError(f"{files[i]} cannot be read") for i in broken}
