"""What a forked process may still do with MLX.

The threads of MLX stay behind in the parent, so that a child which asks them for anything waits for ever. Whether MLX
has started any cannot be asked; memory that it has allocated is the sign that it may have. What computes in numpy works
in a child, too.
"""

from __future__ import annotations

import os
import sys

_was_used = False
_is_stranded = False


def _note_use() -> None:
    """In the parent, because in the child a lock of MLX's may be held by a thread that is no more."""
    global _was_used
    mx = sys.modules.get("mlx.core")
    _was_used = mx is not None and max(mx.get_peak_memory(), mx.get_active_memory()) > 0


def _note_fork() -> None:
    global _is_stranded
    _is_stranded = _is_stranded or _was_used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_note_use, after_in_child=_note_fork)


def check_not_forked() -> None:
    """Raise an OSError if MLX cannot compute here, because this process was forked from one that has used it."""
    if _is_stranded:
        raise OSError(
            "MLX was used before this process was forked, and cannot compute in it: start processes with "
            'multiprocessing.get_context("spawn"), or load the model only after the fork'
        )
