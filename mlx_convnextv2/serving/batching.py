"""One thread computes; pictures that wait for it are gathered into batches."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Job:
    """One picture's pixel values (H, W, C), and what to compute from them."""

    what: Hashable
    pixel_values: np.ndarray
    future: asyncio.Future[Any]

    @property
    def key(self) -> Hashable:
        """Jobs with the same key may share a batch."""
        return self.what, self.pixel_values.shape


Compute = Callable[[Hashable, np.ndarray], Sequence[Any]]
Watch = Callable[[int, float], None]


class Batcher:
    """Runs `compute(what, pixel_values (N, H, W, C))`, which returns N results, in a thread of its own.

    A job waits up to `max_wait` seconds for others, but only if others are on their way. A single client never waits.

    Args:
        compute: called only in that thread.
        max_batch, max_wait: as in `Limits`.
        watch: called in that thread with each batch's size and the seconds that it took.
    """

    def __init__(self, compute: Compute, max_batch: int, max_wait: float, watch: Watch = lambda *_: None):
        self._compute, self._watch = compute, watch
        self._max_batch, self._max_wait = max_batch, max_wait
        self._arrived: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._held: deque[Job] = deque()  # taken, but with another key than the current batch
        self._on_their_way = 0
        self._thread = threading.Thread(target=self._work, name="mlx_convnextv2 inference", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def expect(self, change: int) -> None:
        """Change the number of pictures being decoded. Only the event loop's thread may call this."""
        self._on_their_way += change

    async def run(self, what: Hashable, pixel_values: np.ndarray) -> Any:
        """The result for one picture's pixel values (H, W, C)."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._arrived.put(Job(what, pixel_values, future))
        return await future

    def close(self) -> None:
        """End the thread after the waiting jobs. Jobs added later would wait for ever."""
        self._arrived.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._held.popleft() if self._held else self._arrived.get()) is not None:
            batch = [job for job in self._gather(first) if not job.future.done()]  # without those given up
            if not batch:
                continue
            start = time.perf_counter()
            try:
                outcomes = list(self._compute(first.what, np.stack([job.pixel_values for job in batch])))
            except Exception as error:
                outcomes = [error] * len(batch)
            self._watch(len(batch), time.perf_counter() - start)
            _deliver(batch, outcomes)

    def _gather(self, first: Job) -> list[Job]:
        """The batch that begins with a job. It adds jobs that fit and are waiting or arrive soon."""
        batch = [first]
        others = [job for job in self._held if job.key == first.key][: self._max_batch - 1]
        batch += others
        self._held = deque(job for job in self._held if not any(job is other for other in others))
        deadline = time.monotonic() + self._max_wait
        while len(batch) < self._max_batch and len(self._held) < self._max_batch:
            try:
                remaining = deadline - time.monotonic()
                waits = self._on_their_way > 0 and remaining > 0
                job = self._arrived.get(timeout=remaining) if waits else self._arrived.get_nowait()
            except queue.Empty:
                break
            if job is None:  # the end mark: handle it after this batch
                self._arrived.put(None)
                break
            (batch if job.key == first.key else self._held).append(job)
        return batch


def _deliver(batch: list[Job], outcomes: list[Any]) -> None:
    """Wake all waiting tasks in their own thread with one call."""

    def wake() -> None:
        for job, outcome in zip(batch, outcomes, strict=True):
            if job.future.done():  # its client has gone
                continue
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)

    loop = batch[0].future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(wake)
