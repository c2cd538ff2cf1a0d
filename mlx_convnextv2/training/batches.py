"""The batches of an epoch: their order, read and augmented in threads ahead of the model."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np

from ..images.class_folders import ClassFolders
from ..runtime.prefetch import map_ahead
from ..runtime.threads import available_cpus
from .augment import Augmentation

# What a random generator is for; with the seed and a place it decides all numbers, so that a run can go on anywhere.
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
        batch_size: images of a batch; what does not fill one is left out of the epoch.
        seed: decides order and augmentation.
        share: the part of each batch that is read here, where several processes share them.
        workers: threads.
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
