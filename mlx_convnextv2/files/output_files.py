"""The files that a command writes beside what it prints: refused before the work begins, and written whole."""

from __future__ import annotations

import errno
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def check(file: Path) -> None:
    """Raises OSError where `file` could not be written, rather than after minutes of work."""
    if file.exists():
        with file.open("ab"):
            pass
    if _is_replaced(file):
        with _partial(file) as partial:
            partial.touch()


def write(file: Path, data: bytes) -> None:
    """Write `file` whole; what was there stays where that fails.

    Raises:
        OSError: it cannot be written, for lack of space say.
    """
    if not _is_replaced(file):
        file.write_bytes(data)
        return
    with _partial(file) as partial:
        partial.write_bytes(data)
        partial.replace(file.resolve())


def _is_replaced(file: Path) -> bool:
    return file.is_file() or not file.exists()  # neither a pipe nor a device


@contextmanager
def _partial(file: Path) -> Iterator[Path]:
    """A name beside `file` for what is not whole yet; the system's errors speak of `file`."""
    beside = file.resolve()
    partial = beside.with_name(f".{beside.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
    except OSError as error:
        why = "for lack of space " if error.errno in _NO_SPACE else ""
        raise OSError(error.errno, f"it cannot be written {why}({error.strerror})", str(file)) from None
    finally:
        with suppress(OSError):  # as where the folder is a file
            partial.unlink()


@contextmanager
def temporary_files() -> Iterator[None]:
    """Let the error of a disk that fills with our temporary files say what helps."""
    try:
        yield
    except OSError as error:
        causes = (error, error.__context__)  # `save` says it in a sentence of its own
        if not any(isinstance(cause, OSError) and cause.errno in _NO_SPACE for cause in causes):
            raise
        place = tempfile.gettempdir()
        raise OSError(
            f"{place} cannot take the temporary files, for lack of space: set TMPDIR to a folder with more"
        ) from None
