"""The two files of a library's shard, and the checks before they are believed.

`1-of-1.sqlite` has a row for each picture, and says what computed the features. `1-of-1.0.features` is a matrix of
float16, row after row, that is only ever appended to. A picture is in the library once SQLite has its row,
which gives the row of its features. The number after the shard's name counts how often the matrix was rewritten.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ...messages import one_line, short
from ..shards import Shard

FORMAT = 1  # SQLite's user_version
PATIENCE = 60.0  # seconds to wait for another process's commit
_MOST_ABOUT = 100_000  # characters
_MOST_ROW = 1_000_000  # bytes of a row, and of a value in it
_MOST_FEATURES = 2**20
SCHEMA = {
    "about": "CREATE TABLE about (made TEXT, matrix INTEGER, rows INTEGER)",
    "pictures": (
        "CREATE TABLE pictures (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, hash BLOB, width INTEGER, "
        "height INTEGER, taken TEXT, norm REAL, row INTEGER) WITHOUT ROWID"
    ),
    "pictures_by_hash": "CREATE INDEX pictures_by_hash ON pictures (hash)",
    "pictures_by_row": "CREATE INDEX pictures_by_row ON pictures (row)",
}
OWN = re.compile(r"[0-9]{1,6}-of-[0-9]{1,6}\.")  # how the names of a library's files begin
_INDEX = re.compile(r"([0-9]{1,6})-of-([0-9]{1,6})\.sqlite")


@dataclass(frozen=True)
class Made:
    """How a library's features were computed. Features of other weights or another processor must not join them.

    model, revision, dtype: the model, as given to `load`. weights: the hash of all that the features depend on.
    processor: its fields. features: how many a picture has. package: this package's version.
    """

    model: str
    revision: str | None
    dtype: str | None
    weights: str
    processor: Mapping[str, Any]
    features: int
    package: str

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Made:
        values = json.loads(text)
        made = cls(**values)
        names = (made.model, made.weights, made.package)
        if not all(isinstance(value, str) for value in names) or not isinstance(made.processor, dict):
            raise ValueError("it has values of other types")
        if not all(value is None or isinstance(value, str) for value in (made.revision, made.dtype)):
            raise ValueError("its revision or dtype is no text")
        if type(made.features) is not int or not 1 <= made.features <= _MOST_FEATURES:
            raise ValueError(f"it cannot have {short(made.features)} features")
        return made

    def same(self, other: Made) -> bool:
        """Whether the features of both can be compared."""
        return (self.weights, self.processor, self.features) == (other.weights, other.processor, other.features)


@dataclass(frozen=True)
class State:
    """What a shard holds at a moment: how it was made, which matrix is current, and how many of its rows are in use."""

    made: Made
    matrix: int
    rows: int


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard in a library's folder."""

    folder: Path
    shard: Shard

    @property
    def _name(self) -> str:
        return f"{self.shard.index}-of-{self.shard.count}"

    @property
    def index(self) -> Path:
        return self.folder / f"{self._name}.sqlite"

    @property
    def lock(self) -> Path:
        return self.folder / f"{self._name}.lock"

    def matrix(self, number: int) -> Path:
        return self.folder / f"{self._name}.{number}.features"

    def matrices(self) -> list[Path]:
        """All matrices that are there, abandoned ones too."""
        return list(self.folder.glob(f"{self._name}.*.features"))

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """A connection to the index for reading. What another process has left half committed is rolled back.

        Raises:
            FileNotFoundError: there is no index yet.
            ValueError, OSError: it is damaged or cannot be read.
        """
        with explained(self.index), closing(connect(self.index, "rw")) as connection:
            connection.execute("PRAGMA query_only = ON")
            yield connection

    def state(self, connection: sqlite3.Connection) -> State | None:
        """What the shard holds now, or None if nothing was ever committed. Raises a ValueError if it is damaged."""
        found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL LIMIT 10").fetchall()
        if not found:
            return None
        ((format,),) = connection.execute("PRAGMA user_version")
        if format > FORMAT:
            raise ValueError(f"{self.index} was written by a newer version of mlx-convnextv2: update this one")
        if format != FORMAT or dict(found) != SCHEMA or len(found) > len(SCHEMA):
            raise ValueError(f"{self.index} is no index of a library: {REMEDY}")
        query = "SELECT substr(made, 1, ?), matrix, rows FROM about LIMIT 2"
        rows = list(connection.execute(query, (_MOST_ABOUT,)))
        try:
            ((made, matrix, count),) = rows
            if type(matrix) is not int or type(count) is not int or matrix < 0 or count < 0:
                raise ValueError("its counts are no whole numbers")
            return State(Made.from_json(made), matrix, count)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.index} is damaged ({one_line(error)}): {REMEDY}") from None

    def features(self, state: State) -> np.ndarray:
        """The matrix as float16 (rows, C), mapped into memory: only what is used is read.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is shorter than the index says, or not a regular file.
        """
        file, width = self.matrix(state.matrix), state.made.features
        check_regular(file)
        if file.stat().st_size < state.rows * width * 2:
            raise ValueError(f"{file} is shorter than its index says: {REMEDY}")
        if not state.rows:
            return np.empty((0, width), "<f2")
        return np.asarray(np.memmap(file, "<f2", "r", shape=(state.rows, width)))


REMEDY = "remove the library's folder, and make it again with embed"


def connect(index: Path, mode: str) -> sqlite3.Connection:
    """Open an index: "rw" if it is there, "rwc" to make it. No transaction begins by itself."""
    if mode == "rw" or index.is_symlink():
        check_regular(index)
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(index))}?mode={mode}",
        uri=True,
        timeout=PATIENCE,
        isolation_level=None,
        check_same_thread=False,
    )
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_ROW)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def check_regular(file: Path) -> None:
    """Raise a FileNotFoundError if there is no such file, and a ValueError if it is a link, a pipe or a folder."""
    try:
        mode = os.lstat(file).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is missing: {REMEDY}") from None
    if not stat.S_ISREG(mode):
        raise ValueError(f"{file} is not a regular file, so it is not opened: {REMEDY}")


@contextmanager
def explained(index: Path) -> Iterator[None]:
    """Turn SQLite's errors into a ValueError if the index is damaged, and into an OSError otherwise."""
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
        raise OSError(f"{index} cannot be used: {one_line(error)}") from None
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        raise ValueError(f"{index} is damaged ({one_line(error)}): {REMEDY}") from None


def find_shards(folder: Path) -> list[ShardFiles]:
    """The shards that a library's folder holds, in order.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
        ValueError: it holds shards of different divisions.
    """
    names = [found for name in os.listdir(folder) if (found := _INDEX.fullmatch(name))]
    shards = sorted((int(found[1]), int(found[2])) for found in names)
    counts = {count for _, count in shards}
    if len(counts) > 1:
        first, second = sorted(counts)[:2]
        raise ValueError(f"{folder} is divided into {first} and into {second} shards: remove those of one division")
    return [ShardFiles(folder, Shard(index, count)) for index, count in shards]


def another_model(folder: Path, before: Made, now: Made) -> str:
    """Why features computed in two ways cannot be compared."""
    what = "weights are others" if before.weights != now.weights else "images are prepared in another way"
    first, second = (f"{made.model} in {made.dtype}" if made.dtype else made.model for made in (before, now))
    changed = (first, before.revision) == (second, now.revision)
    remedy = "make a new library" if changed else "leave --model and --dtype out, or choose another library"
    return f"{folder} was made with {first}, and the {what} in {second}{' now' * changed}: {remedy}"
