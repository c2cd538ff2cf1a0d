"""Threads for arithmetic in numpy, and their scratch arrays."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

MAX_WORKERS = 8  # more of them wait for Python's lock rather than work
_KEPT_ELEMENTS = 2**24  # 64 MiB: larger scratch arrays are given back after use


class _Arrays(dict[str, np.ndarray]):
    """The scratch arrays of a thread."""


_local = threading.local()
_of_threads: WeakValueDictionary[int, _Arrays] = WeakValueDictionary()


def scratch(name: str, *shape: int) -> np.ndarray:
    """An uninitialised float32 array. The next call with this name in this thread uses its memory again.

    Fresh memory costs page faults, which take as long as the arithmetic.
    """
    size = math.prod(shape)
    if size > _KEPT_ELEMENTS:
        return np.empty(shape, np.float32)
    arrays: _Arrays | None = getattr(_local, "arrays", None)
    if arrays is None:
        arrays = _local.arrays = _of_threads[threading.get_ident()] = _Arrays()
    array = arrays.get(name)
    if array is None or array.size < size:
        array = arrays[name] = np.empty(size, np.float32)
    return array[:size].reshape(shape)


def release_scratch() -> None:
    """Give the memory of all threads' scratch arrays back, but for those in use now."""
    for arrays in list(_of_threads.values()):
        arrays.clear()


@cache
def _pool() -> ThreadPoolExecutor:
    """The threads of this process. A forked process makes its own."""
    return ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="mlx_convnextv2")


def for_each(function: Callable[[Any], None], items: Iterable[Any], workers: int) -> None:
    """Call function(item) for every item in `workers` threads, including the caller's. Raises what a call raises.

    When it returns or raises, no thread is still at work, so items may use the caller's scratch arrays.
    """
    waiting = deque(items)

    def work() -> None:
        with np.errstate(all="ignore"):  # MLX overflows in silence too
            while waiting:
                try:
                    item = waiting.popleft()
                except IndexError:  # another thread was faster
                    return
                function(item)

    helpers = [_pool().submit(work) for _ in range(min(workers, len(waiting)) - 1)]
    try:
        work()
    finally:
        waiting.clear()
        # A helper that has not begun is no longer needed.
        running = [helper for helper in helpers if not helper.cancel()]
        wait(running)
    for helper in running:
        helper.result()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # Linux's, of a container: microseconds of a core in each period, or max


def available_cpus() -> int:
    """The cores that this process may use: those it is bound to, and no more than its container's share pays for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, _QUOTA.read_text().split())
    except (OSError, ValueError):  # there is none
        return cores
    return max(1, min(cores, math.ceil(quota / period)))
