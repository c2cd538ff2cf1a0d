"""numpy's BLAS, limited to one thread while our own threads call it."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np


class NumpyBlas:
    """The OpenBLAS that numpy has loaded, and control of its number of threads.

    Our threads call it at the same time, each for its part of an image. Its own threads would only get in the way.
    """

    def __init__(self, get_threads: Callable[[], int], set_threads: Callable[[int], None]):
        self._get_threads, self._set_threads = get_threads, set_threads
        self._lock = threading.Lock()
        self._users = 0
        self._threads_before = 1

    def forget_users(self) -> None:
        """Reset in a forked process: the parent's threads do not exist here, and one of them may hold the lock."""
        self._lock = threading.Lock()
        if self._users:
            self._users = 0
            self._set_threads(self._threads_before)

    @contextmanager
    def one_thread(self) -> Iterator[None]:
        """Limit OpenBLAS to one thread. The last of several concurrent users restores what the first found."""
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


def find_blas() -> NumpyBlas | None:
    """numpy's OpenBLAS, or None if numpy has another BLAS or this cannot be told.

    All threads share one `NumpyBlas`: two would overwrite each other's settings.
    """
    with _finding:
        return _find_blas()


_finding = threading.Lock()  # because `cache` lets concurrent threads each call the function


@cache
def _find_blas() -> NumpyBlas | None:
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
                    return NumpyBlas(*(getattr(library, name) for name in names))
    return None


def _after_fork() -> None:
    global _finding
    _finding = threading.Lock()
    if _find_blas.cache_info().currsize and (blas := _find_blas()):
        blas.forget_users()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def blas_name() -> str:
    """The name of numpy's BLAS, with advice if it may be slow."""
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    name = f"{built.get('name', 'an unknown BLAS')} {built.get('version', '')}".strip()
    if any(known in name.lower() for known in ("openblas", "mkl", "blis", "accelerate")):
        return name
    return f"{name}, which may be slow: numpy's own wheels bring OpenBLAS"
