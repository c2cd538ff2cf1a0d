"""The batches of an epoch, in random order. Threads read and augment them ahead of the model."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np

from ..images.class_folders import ClassFolders
from ..runtime.prefetch import map_ahead
from ..runtime.threads import available_cpus
from .augment import Augmentation

# The purpose of a random generator. Purpose, seed and place decide all numbers, so a run can resume anywhere.
_ORDER, _IMAGE, _STEP = range(3)
Share = slice  # of a batch


def order(seed: int, epoch: int, images: int) -> np.ndarray:
    """The order of the images in an epoch, (images,)."""
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(images)


def step_random(seed: int, step: int) -> np.random.Generator:
    """The random numbers of a step: its drop path and how its batch is mixed."""
    return np.random.default_rng([seed, _STEP, step])


class Batches:
    """Batches of training images, each the same whenever it is asked for.

    Args:
        folders: the images.
        augmentation: makes pixel values of them.
        batch_size: images of a batch. Images that do not fill a batch are left out of the epoch.
        seed: decides order and augmentation.
        share: this process's part of each batch, if several processes share batches.
        workers: the number of threads.
    """

    def __init__(
        self,
        folders: ClassFolders,
        augmentation: Augmentation,
        batch_size: int,
        seed: int,
        share: Share = slice(None),
        workers: int | None = None,
    ):
        self._files, self._labels = folders.files, np.array(folders.labels, np.int32)
        self._augmentation = augmentation
        self._batch_size, self._seed, self._share = batch_size, seed, share
        self._workers = workers or available_cpus()

    def epoch(self, epoch: int, start: int = 0) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """pixel_values (N, H, W, C) float32 and labels (N,) int32 of each batch from number `start` on."""
        indices = order(self._seed, epoch, len(self._files))
        count = len(indices) // self._batch_size
        rows = indices[: count * self._batch_size].reshape(count, self._batch_size)[start:, self._share]

        def prepare(index: int) -> np.ndarray:
            random = np.random.default_rng([self._seed, _IMAGE, epoch, index])
            return self._augmentation(Path(self._files[index]), random)

        ahead = 2 * rows.shape[1] + self._workers
        with closing(map_ahead(prepare, rows.reshape(-1).tolist(), self._workers, ahead)) as prepared:
            for row in rows:
                yield np.stack([next(prepared) for _ in row]), self._labels[row]
