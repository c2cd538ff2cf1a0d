"""What makes a short process shorter."""

from __future__ import annotations

import atexit
import gc
import os
import sys


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
