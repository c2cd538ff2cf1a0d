"""Frozen features: the body's output for each image, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from ..checkpoints.processor import ConvNextImageProcessor
from ..inference.fuse import fuse
from ..inference.pipeline import Pipeline, Result, run_results
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
    features = np.zeros((len(files), model.config.hidden_sizes[-1]), np.float32)
    errors: Errors = {}
    pipeline = Pipeline(model, processor, batch_size=BATCH_SIZE)
    progress.begin(name, len(files))
    prepared = map_ahead(pipeline.prepare, map(Result, files), workers, BATCH_SIZE + workers)
    # Full batches, because one shape needs only one graph.
    with closing(run_results(fuse(model, pooled=True), prepared, BATCH_SIZE, BATCH_SIZE)) as answers:
        for index, (result, row) in enumerate(answers):
            if row is None:
                errors[index] = result.error or ValueError(f"{result.image} has no features")
                continue
            features[index] = row
            progress.advance(1)
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
