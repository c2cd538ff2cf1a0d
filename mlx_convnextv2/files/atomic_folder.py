"""Folders that are written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .names import INDEX_FILE, WEIGHTS_FILE

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_PARTIAL = ".partial"
_REPLACED = ".replaced.partial"


@dataclass(frozen=True)
class Kind:
    """The kind of folder that a writer makes and may replace: it holds one file of each of these groups."""

    name: str
    files: tuple[tuple[str, ...], ...]

    def fits(self, folder: Path) -> bool:
        return all(any((folder / name).is_file() for name in names) for names in self.files)


CHECKPOINT = Kind("a checkpoint folder", (("config.json",), (WEIGHTS_FILE, INDEX_FILE)))


@contextmanager
def new_folder(target: str | os.PathLike[str], overwrite: bool = False, kind: Kind = CHECKPOINT) -> Iterator[Path]:
    """A temporary folder beside `target`, to be filled. It becomes `target` at the end, or is removed on an exception.

    Anything that a killed process has left beside `target` is removed too. If two processes write to one target at the
    same time, the first to finish wins, and the other gets a FileExistsError.

    Args:
        target: must not exist, or must be an empty folder, unless `overwrite`.
        overwrite: replace `target` if it is of the same kind; anything else is left alone.
        kind: the kind of folder that is written.

    Raises:
        FileExistsError: `target` exists.
        OSError: it cannot be written.
    """
    path = Path(target).absolute()
    made = [parent for parent in path.parents if not parent.exists()]
    with _naming(target):
        path.parent.mkdir(parents=True, exist_ok=True)
    ours = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}({re.escape(_PARTIAL)}|{re.escape(_REPLACED)})")
    for folder in path.parent.iterdir():
        if ours.fullmatch(folder.name):
            _clear_if_abandoned(folder, path)
    check_target(path, overwrite, kind)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}"
    lock = None
    try:
        with _naming(target):
            lock = _make_locked(temporary)
        yield temporary
        _put_in_place(temporary, path, overwrite, kind)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise OSError(f"{target} cannot be written, for lack of space ({error.strerror})") from None
        if isinstance(error, RuntimeError) and str(error).startswith("[write]"):  # MLX's error, which does not say why
            raise OSError(f"{target} cannot be written, most likely for lack of space ({error})") from None
        raise
    finally:
        if lock is not None:
            os.close(lock)


@contextmanager
def _naming(target: str | os.PathLike[str]) -> Iterator[None]:
    """Let the system's error name the requested folder instead of a temporary one."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, f"it cannot be written ({error.strerror})", os.fspath(target)) from None


def _make_locked(folder: Path) -> int:
    """Make a folder and take its lock, which the system releases if this process dies."""
    while True:
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # otherwise another process removed it as abandoned before it was locked
            return lock
        os.close(lock)


def _put_in_place(temporary: Path, path: Path, overwrite: bool, kind: Kind) -> None:
    check_target(path, overwrite, kind)
    replaced = temporary.with_suffix(_REPLACED)
    if overwrite and path.exists():
        path.rename(replaced)
    try:
        temporary.rename(path)
    except OSError as error:
        if replaced.exists():
            shutil.rmtree(replaced) if path.exists() else replaced.rename(path)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(f"{path} has just been written by another process: it is left as it is") from None
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _clear_if_abandoned(folder: Path, path: Path) -> None:
    """Remove a temporary folder whose process is gone (a live one holds its lock).

    If it holds the checkpoint that was being replaced, and nothing has taken its place, put it back.
    """
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    else:
        if folder.name.endswith(_REPLACED) and not path.exists():
            with suppress(OSError):  # another process may have put something there
                folder.rename(path)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def check_writable(target: str | os.PathLike[str]) -> None:
    """Raise early, before long work, the OSError that `new_folder` would raise if nothing can be written."""
    path = Path(target).absolute()
    nearest = next(parent for parent in path.parents if parent.exists())
    with _naming(target):
        tried = nearest / f".{path.name}.{secrets.token_hex(4)}{_PARTIAL}"
        tried.mkdir()
        with suppress(FileNotFoundError):  # another process removed it as abandoned
            tried.rmdir()


def check_target(target: str | os.PathLike[str], overwrite: bool = False, kind: Kind = CHECKPOINT) -> None:
    """Raise a FileExistsError if `new_folder` would not write to `target`, or a ValueError if the name is empty."""
    if not os.fspath(target):
        raise ValueError("the folder to write needs a name")
    path = Path(target)
    nearest = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not nearest.is_dir():
        raise NotADirectoryError(f"{target} cannot be written: {nearest} is not a folder")
    if path.resolve() == Path.cwd():
        raise FileExistsError("the current folder cannot be replaced: choose another one")
    # a folder cannot be renamed onto a link or a mount point
    replaceable = path.is_dir() and not path.is_symlink() and not os.path.ismount(path)
    if not os.path.lexists(path) or (replaceable and not any(path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists already: choose another folder or pass overwrite (--overwrite)")
    if not kind.fits(path) or not replaceable:
        raise FileExistsError(f"{target} is not {kind.name}, so it is not replaced: choose another folder")
