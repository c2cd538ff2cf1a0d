"""Threads, their scratch arrays, and a BLAS that leaves the threads to us."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

MAX_WORKERS = 8  # more of them wait for Python's lock rather than work
_KEPT_ELEMENTS = 2**24  # 64 MiB: larger scratch arrays are given back after use

_local = threading.local()


def scratch(name: str, *shape: int) -> np.ndarray:
    """An uninitialised float32 array, whose memory the next call with this name in this thread uses again.

    Fresh memory costs page faults, which take as long as the arithmetic.
    """
    size = math.prod(shape)
    if size > _KEPT_ELEMENTS:
        return np.empty(shape, np.float32)
    arrays: dict[str, np.ndarray] = _local.__dict__
    if name not in arrays or arrays[name].size < size:
        arrays[name] = np.empty(size, np.float32)
    return arrays[name][:size].reshape(shape)


@cache
def _pool() -> ThreadPoolExecutor:
    """The threads of this process; a forked one makes its own."""
    return ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="mlx_convnextv2")


def for_each(function: Callable[[Any], None], items: Iterable[Any], workers: int) -> None:
    """Call function(item) for every item, in `workers` threads of which the caller's is one. Raises what one raises.

    When it returns or raises, no thread is at work any more: the items may use the caller's scratch arrays.
    """
    waiting = deque(items)

    def work() -> None:
        with np.errstate(all="ignore"):  # what overflows here overflows in silence in MLX too
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
        # A helper that has not begun is not needed any more.
        running = [helper for helper in helpers if not helper.cancel()]
        wait(running)
    for helper in running:
        helper.result()


class Blas:
    """The OpenBLAS that numpy has loaded, whose number of threads can be set.

    Our threads call it at once, each for its part of an image. Threads of its own would only get in the way.
    """

    def __init__(self, get_threads: Callable[[], int], set_threads: Callable[[int], None]):
        self._get_threads, self._set_threads = get_threads, set_threads
        self._lock = threading.Lock()
        self._users = 0
        self._threads_before = 1

    def forget_users(self) -> None:
        """In a forked process: those of the parent are not here, and whoever held the lock will not give it back."""
        self._lock = threading.Lock()
        if self._users:
            self._users = 0
            self._set_threads(self._threads_before)

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """Hold the number of threads at one; the last of several users at once puts back what the first found."""
        with self._lock:
            if self._users == 0:
                self._threads_before = self._get_threads()
                self._set_threads(1)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._set_threads(self._threads_before)


def find_blas() -> Blas | None:
    """numpy's OpenBLAS, or None where numpy was built with another BLAS or it cannot be told.

    There is one `Blas` for all threads: two would each put back what the other has set.
    """
    with _finding:
        return _find_blas()


_finding = threading.Lock()  # because `cache` lets threads that come together each call the function


@cache
def _find_blas() -> Blas | None:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "openblas" in line}
    except OSError:
        return None
    numpy_first = sorted(paths, key=lambda path: "numpy" not in path)
    for path in numpy_first:
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for prefix in ("scipy_openblas", "openblas"):
            for suffix in ("64_", "_64", ""):
                names = [f"{prefix}_{verb}_num_threads{suffix}" for verb in ("get", "set")]
                if all(hasattr(library, name) for name in names):
                    return Blas(*(getattr(library, name) for name in names))
    return None


def _after_fork() -> None:
    global _finding
    _finding = threading.Lock()
    _pool.cache_clear()
    if _find_blas.cache_info().currsize and (blas := _find_blas()):
        blas.forget_users()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def blas_name() -> str:
    """The BLAS that numpy was built with, and what to do where it is a slow one."""
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    name = f"{built.get('name', 'an unknown BLAS')} {built.get('version', '')}".strip()
    if any(known in name.lower() for known in ("openblas", "mkl", "blis", "accelerate")):
        return name
    return f"{name}, which may be slow: numpy's own wheels bring OpenBLAS"
