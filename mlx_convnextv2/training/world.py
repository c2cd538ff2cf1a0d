"""The processes that train together, started by `mlx.launch`: sums between them, and a watchdog for hanging ones."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import numpy as np

from .optimizer import Arrays
from .progress import Progress, Row

_GAVE_UP = 75  # this exit status makes mlx.launch end the other processes
_BUCKET = 2**23  # numbers summed at a time


class World:
    """One process among several, or alone. All processes must call every method but `share`, in the same order."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @classmethod
    def join(cls) -> World:
        """The processes that `mlx.launch` started, or this process alone."""
        group = mx.distributed.init()
        return cls(group.rank(), group.size())

    def share(self, batch: int) -> slice:
        """This process's part of a batch."""
        part = batch // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The float32 sum of all processes' arrays, which have the same shape."""
        if self.size == 1:
            return values
        total = mx.distributed.all_sum(mx.array(values.astype(np.float32)))
        return np.array(total)

    def mean(self, arrays: Arrays) -> Arrays:
        """The mean of all processes' arrays, equal to the last bit in each process: float32, in a few large sums."""
        if self.size == 1:
            return arrays
        return {name: total / self.size for name, total in _sums(arrays).items()}

    def from_first(self, arrays: Arrays) -> Arrays:
        """The first process's arrays, bit for bit. The other processes' arrays only give the shapes."""
        if self.size == 1:
            return arrays
        summed = _sums(arrays if self.rank == 0 else {name: mx.zeros_like(array) for name, array in arrays.items()})
        mx.eval(summed)
        return summed

    def agree(self, value: str) -> bool:
        """Whether all processes have this value."""
        digest = np.frombuffer(hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest(), np.uint8)
        values = np.zeros((self.size, len(digest)), np.float32)
        values[self.rank] = digest
        return bool((self.sum(values) == digest).all())


def _sums(arrays: Arrays) -> Arrays:
    """The sums of all processes' arrays."""
    result: Arrays = {}
    names: list[str] = []
    for name in arrays:
        names.append(name)
        if sum(arrays[held].size for held in names) >= _BUCKET or name == list(arrays)[-1]:
            sizes = np.cumsum([arrays[held].size for held in names])[:-1].tolist()
            joined = mx.concatenate([arrays[held].reshape(-1) for held in names])
            parts = mx.split(mx.distributed.all_sum(joined), sizes)
            result.update({held: part.reshape(arrays[held].shape) for held, part in zip(names, parts, strict=True)})
            names = []
    return result


class Watchdog:
    """Ends this process if nothing has happened for too long, because another process hangs or is gone.

    MLX's ring can wait for ever without an exception (its users report sums in which all processes wait).

    Args:
        seconds: the longest time between two steps.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._last = time.monotonic()
        self._over = threading.Event()

    def step(self) -> None:
        """Something has happened."""
        self._last = time.monotonic()

    def rest(self) -> None:
        """Stop watching: the rest does not wait for other processes."""
        self._over.set()

    @contextmanager
    def watch(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, name="mlx_convnextv2 watchdog", daemon=True)
        self.step()
        thread.start()
        try:
            yield
        finally:
            self.rest()

    def _run(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last > self._seconds:
                message = (
                    f"train: error: nothing happened for {self._seconds:g} seconds: a process hangs or is gone. Start "
                    "all of them again with --resume"
                )
                print(message, file=sys.stderr, flush=True)
                os._exit(_GAVE_UP)


class Watched(Progress):
    """Passes progress on, and tells a watchdog that something has happened."""

    def __init__(self, progress: Progress, watchdog: Watchdog | None = None, rows: bool = True):
        self._progress, self._watchdog, self._rows = progress, watchdog, rows

    @classmethod
    def without_rows(cls, progress: Progress) -> Watched:
        """For a phase whose rows are not epochs of the run."""
        return cls(progress, rows=False)

    def begin(self, name: str, total: int) -> None:
        self._step()
        self._progress.begin(name, total)

    def advance(self, images: int, loss: float | None = None, lr: float | None = None) -> None:
        self._step()
        self._progress.advance(images, loss, lr)

    def end(self) -> None:
        self._step()
        self._progress.end()

    def row(self, row: Row) -> None:
        self._step()
        if self._rows:
            self._progress.row(row)
        else:
            self._progress.end()  # an outer watchdog is told that something has happened

    def begin_at(self, steps: int) -> None:
        self._step()
        self._progress.begin_at(steps)

    def close(self) -> None:
        self._progress.close()

    def _step(self) -> None:
        if self._watchdog is not None:
            self._watchdog.step()
