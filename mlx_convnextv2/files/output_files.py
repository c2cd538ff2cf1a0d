"""The files that a command writes: checked before the work begins, and written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def check(file: Path) -> None:
    """Raise an OSError now if `file` cannot be written, instead of after minutes of work."""
    if file.exists():
        with file.open("ab"):
            pass
    if _is_replaced(file):
        with _partial(file) as partial:
            partial.touch()


def write(file: Path, data: bytes) -> None:
    """Write `file` whole. If this fails, the old file stays.

    Raises:
        OSError: it cannot be written, for example for lack of space.
    """
    if not _is_replaced(file):
        file.write_bytes(data)
        return
    with _partial(file) as partial:
        partial.write_bytes(data)
        partial.replace(file.resolve())


@contextmanager
def whole(file: Path) -> Iterator[BinaryIO]:
    """A binary file to write to. It becomes `file` at the end, when it is on the disk, or vanishes on an exception.

    Raises:
        OSError: it cannot be written, for example for lack of space.
    """
    if not _is_replaced(file):
        with _naming(file, None), file.open("wb") as opened:
            yield opened
        return
    with _partial(file) as partial:
        with partial.open("wb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file.resolve())
    with suppress(OSError):  # some file systems cannot
        folder = os.open(file.resolve().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _is_replaced(file: Path) -> bool:
    return file.is_file() or not file.exists()  # neither a pipe nor a device


@contextmanager
def _partial(file: Path) -> Iterator[Path]:
    """A name beside `file` for unfinished data. The system's errors name `file` instead."""
    beside = file.resolve()
    partial = beside.with_name(f".{beside.name}.{os.urandom(4).hex()}.partial")
    try:
        with _naming(file, partial):
            yield partial
    finally:
        with suppress(OSError):  # for example if the folder is a file
            partial.unlink()


@contextmanager
def _naming(file: Path, partial: Path | None) -> Iterator[None]:
    """Let the system's errors about a file without a name, or about `partial`, name `file`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(partial)):  # of something else
            raise
        why = "for lack of space " if error.errno in _NO_SPACE else ""
        raise OSError(error.errno, f"it cannot be written {why}({error.strerror})", str(file)) from None


@contextmanager
def temporary_files() -> Iterator[None]:
    """If our temporary files fill the disk, let the error say what helps."""
    try:
        yield
    except OSError as error:
        causes = (error, error.__context__)  # `save` raises its own error from the system's
        if not any(isinstance(cause, OSError) and cause.errno in _NO_SPACE for cause in causes):
            raise
        import tempfile

        place = tempfile.gettempdir()
        raise OSError(
            f"{place} cannot take the temporary files, for lack of space: set TMPDIR to a folder with more"
        ) from None
