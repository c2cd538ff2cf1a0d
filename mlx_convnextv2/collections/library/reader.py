"""A shard at one moment, read beside a process that may be changing it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ...messages import one_line
from .files import REMEDY, ShardFiles, State
from .writer import Entry

_AT_ONCE = 500  # values of a statement; SQLite takes 999
_TRIES = 10
_MOST_PATH = 2**16  # bytes; systems take 4096


class RenumberedError(Exception):
    """The matrix was rewritten after the view was made, and its rows have new numbers: make a new view."""


@dataclass(frozen=True)
class View:
    """The committed rows of a shard's matrix. They never change, even if their pictures are removed."""

    files: ShardFiles
    state: State
    features: np.ndarray

    @classmethod
    def of(cls, files: ShardFiles) -> View | None:
        """The shard now, or None if nothing was ever committed.

        Raises:
            FileNotFoundError, ValueError, OSError: a file is missing, damaged or cannot be read.
        """
        for attempt in range(_TRIES):
            with files.open() as connection:
                state = files.state(connection)
            if state is None:
                return None
            try:
                return cls(files, state, files.features(state))
            except FileNotFoundError:  # written anew between the two steps?
                if attempt == _TRIES - 1:
                    raise
        return None

    def entries(self, rows: Sequence[int]) -> list[Entry]:
        """The pictures whose features are in these rows.

        Raises:
            RenumberedError: the rows have other numbers now.
            ValueError: the index is damaged.
        """
        found = []
        with self._same_matrix() as connection:
            for first in range(0, len(rows), _AT_ONCE):
                some = [int(row) for row in rows[first : first + _AT_ONCE]]
                marks = ",".join("?" * len(some))
                found += connection.execute(f"SELECT * FROM pictures WHERE row IN ({marks})", some).fetchall()
        return [self._checked(Entry(*values)) for values in found]

    def live(self) -> np.ndarray:
        """The row and the norm of each picture, as an array with these fields.

        Raises: as `entries`.
        """
        with self._same_matrix() as connection:
            found = connection.execute("SELECT row, norm FROM pictures WHERE row < ?", (self.state.rows,))
            try:
                pairs = np.fromiter(found, [("row", np.int64), ("norm", np.float32)])
            except (TypeError, ValueError) as error:
                raise self._damaged(one_line(error)) from None
        if len(pairs) and pairs["row"].min() < 0:
            raise self._damaged("a row below zero")
        return pairs

    @contextmanager
    def _same_matrix(self) -> Iterator[sqlite3.Connection]:
        """A connection in one transaction, in which the rows still have these numbers."""
        with self.files.open() as connection:
            connection.execute("BEGIN")
            state = self.files.state(connection)
            if state is None or state.matrix != self.state.matrix:
                raise RenumberedError
            yield connection

    def count(self) -> int:
        with self.files.open() as connection:
            ((count,),) = connection.execute("SELECT count(*) FROM pictures")
        return int(count)

    def _checked(self, entry: Entry) -> Entry:
        numbers = (entry.size, entry.modified, entry.width, entry.height)
        if not (
            isinstance(entry.path, bytes)
            and len(entry.path) < _MOST_PATH
            and all(type(number) is int for number in numbers)
            and isinstance(entry.norm, float)
            and isinstance(entry.taken, str | None)
            and type(entry.row) is int
            and 0 <= entry.row < self.state.rows
        ):
            raise self._damaged("a picture has values of other types")
        return entry

    def _damaged(self, why: str) -> ValueError:
        return ValueError(f"{self.files.index} is damaged ({why}): {REMEDY}")
