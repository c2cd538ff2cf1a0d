"""What a forked process may still do with MLX.

MLX's threads exist only in the parent, and a child that needs them waits for ever. MLX does not say whether it has
started any, but it may have if it has allocated memory. Computing in numpy works in a child too.
"""

from __future__ import annotations

import os
import sys

_was_used = False
_is_stranded = False


def _note_use() -> None:
    """Runs in the parent. In the child, a thread that no longer exists may hold one of MLX's locks."""
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
