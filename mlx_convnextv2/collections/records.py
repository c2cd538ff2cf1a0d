"""The record of one image: what is written about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

COLUMNS = ("image", "rank", "label", "index", "score", "error")


@dataclass
class Record:
    """One image's predictions, best first, or the sentence that says why there are none.

    Attributes:
        image: its path or address. For a frame it ends in #t= and the time from the start of the video.
        time: that time in seconds, if it is a frame.
        kind: what kind of failure the error is, for a count.
        advice: what to do, if the only problem is a missing extra.
    """

    image: str
    predictions: list[dict[str, Any]] | None = None
    error: str | None = None
    time: float | None = None
    kind: str | None = None
    advice: str | None = None


class Writer(Protocol):
    """Writes records to a file in one format. `close` writes what is left; the file is the caller's to close."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


def rows(record: Record) -> Iterator[tuple[Any, ...]]:
    """The values of `COLUMNS` for each label of an image, or for its error. None stands where there is no value."""
    if record.error is not None:
        yield (record.image, None, None, None, None, record.error)
    for rank, found in enumerate(record.predictions or [], start=1):
        yield (record.image, rank, found["label"], found["index"], found["score"], None)


def check(record: Record) -> None:
    """Raise a TypeError if a record that was read cannot have been written by us."""
    for row in rows(record):
        for value, kind in zip(row[1:], (int, str, int, float, str), strict=True):
            if not isinstance(value, kind | None):
                raise TypeError
    if not isinstance(record.image, str) or (record.predictions is None) is (record.error is None):
        raise TypeError
