"""What the C library does with memory that was given back."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Let glibc use buffers again whatever their size, for the whole process. Does nothing elsewhere.

    It would return large ones to the system, and fresh pages cost as much as the arithmetic on them.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def return_freed_memory() -> None:
    """Let glibc return to the system what it holds for later. Does nothing elsewhere."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
