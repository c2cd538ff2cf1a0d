"""Small results worth keeping on this machine: JSON files in the user's cache folder, one for each key.

A key is a dict of everything that a result depends on. A result kept under another key is never returned. Disk errors
are never raised: an unreadable result counts as missing, and one that cannot be written is not kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLE = "MLX_CONVNEXTV2_CACHE"
_MOST_BYTES = 65_536  # per file: ours have a few hundred


def folder() -> Path | None:
    """The folder that MLX_CONVNEXTV2_CACHE names, or `mlx_convnextv2` in the system's folder for caches.

    The system's folder is ~/Library/Caches on macOS, and XDG_CACHE_HOME or ~/.cache elsewhere. The result is None if
    the user has no home.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(os.path.expanduser(chosen))
    if sys.platform == "darwin":
        parent = "~/Library/Caches"
    else:
        wanted = os.environ.get("XDG_CACHE_HOME", "")
        parent = wanted if os.path.isabs(wanted) else "~/.cache"  # the convention is to ignore a relative path
    path = Path(os.path.expanduser(parent))
    return path / "mlx_convnextv2" if path.is_absolute() else None


def read(key: dict[str, Any]) -> dict[str, Any] | None:
    """The value kept under the key, or None if it is missing, incomplete or of another key."""
    path = _path(key)
    try:
        if path is None or path.stat().st_size > _MOST_BYTES:
            return None
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("key") != _as_json(key):
        return None
    value = content.get("value")
    return value if isinstance(value, dict) else None


def write(key: dict[str, Any], value: dict[str, Any]) -> bool:
    """Keep a value under the key, whole or not at all. Returns whether it could be kept."""
    path = _path(key)
    if path is None:
        return False
    text = json.dumps({"key": key, "value": value}) + "\n"
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".partial")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        return False
    return True


@contextlib.contextmanager
def alone() -> Iterator[bool]:
    """Whether this process is the only one in this block until its end, and the folder can be written.

    The system releases the lock when a process ends, so a killed process blocks nobody.
    """
    lock = _open_lock()
    if lock is None:
        yield False
        return
    try:
        yield _take(lock)
    finally:
        os.close(lock)


def _open_lock() -> int | None:
    path = folder()
    try:
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
            if os.access(path, os.W_OK):
                return os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        pass
    return None


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _path(key: dict[str, Any]) -> Path | None:
    where = folder()
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return where / f"{name}.json" if where else None


def _as_json(value: Any) -> Any:
    """The value as it would come back from a file, where tuples are lists."""
    return json.loads(json.dumps(value))
