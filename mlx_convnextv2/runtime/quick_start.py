"""What makes a short process shorter."""

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
    """Import numpy without OpenBLAS's own threads, for a process whose arithmetic runs in threads of ours.

    Each would spin for 25 ms on a core before it sleeps. A user's OPENBLAS_NUM_THREADS is left alone.
    """
    variable = "OPENBLAS_NUM_THREADS"
    if "numpy" in sys.modules or variable in os.environ:
        return
    os.environ[variable] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[variable]  # MLX's BLAS, and our children, are not meant


def end_quickly() -> None:
    """Spare the end of this process the walk through all objects in search of cycles."""
    atexit.register(gc.freeze)
