"""Changes of a shard: committed together or not at all, beside any number of readers."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import FORMAT, REMEDY, SCHEMA, Made, ShardFiles, State, another_model, connect, explained

_SPARED = 1024  # so few unused rows are not worth rewriting the matrix
_BLOCK = 4096  # rows that are copied at a time


@dataclass(frozen=True)
class Entry:
    """A picture in a library.

    path: the file's absolute path, as the system encodes it. size: its bytes. modified: nanoseconds. hash: the SHA-256
    of its content. width, height, taken: as in `Facts`. norm: the length of its features before they were normalised.
    row: its features' row in the matrix. Files with the same content share one.
    """

    path: bytes
    size: int
    modified: int
    hash: bytes
    width: int
    height: int
    taken: str | None
    norm: float
    row: int


class Writer:
    """The one process that may change a shard. Changes wait until `commit`.

    Raises:
        OSError: another process has the shard, or it cannot be written.
        ValueError: it is damaged, or its features were computed in another way.
    """

    def __init__(self, files: ShardFiles, made: Made):
        self.files = files
        self._pending: dict[bytes, Entry | None] = {}
        self._features: list[np.ndarray] = []
        self._reading = threading.Lock()
        with ExitStack() as opened:
            opened.callback(os.close, _take_lock(files))
            with explained(files.index):
                self._connection = opened.enter_context(closing(connect(files.index, "rwc")))
                self.state = files.state(self._connection) or self._begin(made)
            if not made.same(self.state.made):
                raise ValueError(another_model(files.folder, self.state.made, made))
            matrix = files.matrix(self.state.matrix)
            if self.state.rows or os.path.lexists(matrix):
                files.features(self.state)
            for file in files.matrices():
                if file != matrix:  # left by a killed writer
                    file.unlink()
            self._matrix = _open_matrix(matrix)
            self._opened = opened.pop_all()

    def _begin(self, made: Made) -> State:
        with _transaction(self._connection):
            for statement in SCHEMA.values():
                self._connection.execute(statement)
            self._connection.execute("INSERT INTO about VALUES (?, 0, 0)", (made.as_json(),))
            self._connection.execute(f"PRAGMA user_version = {FORMAT}")
        return State(made, 0, 0)

    def execute(self, statement: str, values: Any = ()) -> list[Any]:
        """The rows that a statement selects. Any thread may call it."""
        with explained(self.files.index), self._reading:
            return self._connection.execute(statement, values).fetchall()

    def execute_many(self, statement: str, values: Any) -> None:
        with explained(self.files.index), self._reading, _transaction(self._connection):
            self._connection.executemany(statement, values)

    def find(self, hash: bytes) -> Entry | None:
        """A committed picture with this content. Any thread may call it."""
        found = self.execute("SELECT * FROM pictures WHERE hash = ? LIMIT 1", (hash,))
        return Entry(*found[0]) if found else None

    def add(self, entry: Entry, features: np.ndarray | None = None) -> None:
        """Add a picture, or replace the one that has its path.

        Args:
            entry: its row is that of another picture with the same content; with `features`, the row is ignored.
            features: (C,) of length one.
        """
        if features is not None:
            row = self.state.rows + len(self._features)
            self._features.append(features.astype("<f2"))
            entry = Entry(**{**vars(entry), "row": row})
        self._pending[entry.path] = entry

    def remove(self, path: bytes) -> None:
        self._pending[path] = None

    def commit(self) -> None:
        """Write all changes since the last commit to the disk, or none.

        The matrix comes first: rows that the index does not name yet belong to no picture, and are overwritten after a
        crash.
        """
        if not self._pending:
            return
        rows = self.state.rows
        if self._features:
            with _naming(self.files.matrix(self.state.matrix)):
                _write_at(self._matrix, np.stack(self._features).tobytes(), rows * self.state.made.features * 2)
                os.fsync(self._matrix)
            rows += len(self._features)
        with explained(self.files.index), self._reading, _transaction(self._connection):
            kept = [tuple(vars(entry).values()) for entry in self._pending.values() if entry is not None]
            self._connection.executemany("INSERT OR REPLACE INTO pictures VALUES (?,?,?,?,?,?,?,?,?)", kept)
            gone = [(path,) for path, entry in self._pending.items() if entry is None]
            self._connection.executemany("DELETE FROM pictures WHERE path = ?", gone)
            self._connection.execute("UPDATE about SET rows = ?", (rows,))
        self.state = State(self.state.made, self.state.matrix, rows)
        self._pending, self._features = {}, []

    def compact(self) -> None:
        """Rewrite the matrix if most of its rows belong to no picture any more. Readers keep the old one."""
        ((count,),) = self.execute("SELECT count(DISTINCT row) FROM pictures")
        if self.state.rows - count <= max(count, _SPARED):
            return
        live = np.array(self.execute("SELECT DISTINCT row FROM pictures ORDER BY row"), np.int64).reshape(-1)
        after = State(self.state.made, self.state.matrix + 1, len(live))
        before = self.files.features(self.state)
        if len(live) and not 0 <= live[0] <= live[-1] < len(before):
            raise ValueError(f"{self.files.index} is damaged (it names rows that are not there): {REMEDY}")
        with _naming(self.files.matrix(after.matrix)):
            matrix = _open_matrix(self.files.matrix(after.matrix))
            for first in range(0, len(live), _BLOCK):
                data = before[live[first : first + _BLOCK]].tobytes()
                _write_at(matrix, data, first * after.made.features * 2)
            os.fsync(matrix)
        with explained(self.files.index), self._reading, _transaction(self._connection):
            self._connection.execute("CREATE TEMP TABLE moved (before INTEGER PRIMARY KEY, after INTEGER)")
            moved = zip(live.tolist(), range(len(live)), strict=True)
            self._connection.executemany("INSERT INTO moved VALUES (?, ?)", moved)
            self._connection.execute("UPDATE pictures SET row = (SELECT after FROM moved WHERE before = row)")
            self._connection.execute("DROP TABLE moved")
            self._connection.execute("UPDATE about SET matrix = ?, rows = ?", (after.matrix, after.rows))
        os.close(self._matrix)
        with suppress(OSError):  # the next writer removes it
            self.files.matrix(self.state.matrix).unlink()
        self._matrix, self.state = matrix, after

    def close(self) -> None:
        """Let others write. What is not committed is lost."""
        with self._reading:  # a thread may be looking something up
            os.close(self._matrix)
            self._opened.close()


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run all statements within it, or none of them. Other processes may read until the end."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # a full disk has rolled it back already
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Let the system's error say which file cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"it cannot be written ({error.strerror})", str(file)) from None


def _open_matrix(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _write_at(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _take_lock(files: ShardFiles) -> int:
    """A lock that the system releases if this process dies."""
    lock = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise OSError(
            f"another process is writing shard {files.shard} of {files.folder}: wait, or give each its own --shard"
        ) from None
    return lock
