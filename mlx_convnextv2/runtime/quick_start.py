"""Make a short process start and end faster."""

from __future__ import annotations

import atexit
import gc
import os
import sys


def is_own_process() -> bool:
    """Whether this process is a command of ours, and not a program that calls one."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of python -m
    name = spec.name if spec else os.path.basename(sys.argv[0])
    return name.split(".")[0] == __name__.split(".")[0]


def import_numpy() -> None:
    """Import numpy without OpenBLAS's own threads, for a process that computes in our threads.

    Each of OpenBLAS's would spin for 25 ms on a core before it sleeps. A user's OPENBLAS_NUM_THREADS is left alone.
    """
    variable = "OPENBLAS_NUM_THREADS"
    if "numpy" in sys.modules or variable in os.environ:
        return
    os.environ[variable] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[variable]  # it is not meant for MLX's BLAS and child processes


def end_quickly() -> None:
    """Skip the last search for cycles through all objects when this process ends."""
    atexit.register(gc.freeze)
