"""Results on standard output: for people as a table, for programs in UTF-8."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..messages import cut, printable
from .formats import open_writer
from .outputs import Destination
from .records import Record, Writer

_BAR_WIDTH = 24


class Printed(Destination):
    """A `Destination` that prints each record at once.

    Args:
        format: "table", the default, "jsonl" or "csv".
        before: called before each record, for example to clear a progress bar on the same terminal.

    Raises:
        ValueError: the format is not printed.
    """

    def __init__(self, format: str | None = None, before: Callable[[], None] | None = None):
        if format == "parquet":
            raise ValueError("Parquet is not printed: name a file with --output")
        self._format, self._before = "jsonl" if format == "json" else format or "table", before

    @contextmanager
    def part(self) -> Iterator[Writer]:
        self._writer = Table() if self._format == "table" else open_writer(self._format, sys.stdout.buffer)
        yield self

    def write(self, record: Record) -> None:
        if self._before is not None:
            self._before()
        self._writer.write(record)
        sys.stdout.flush()

    def close(self) -> None:
        pass


class Table:
    """A block for each image: its name, then a line for each label with its score as a number and a bar."""

    def __init__(self) -> None:
        self._eighths = " ▏▎▍▌▋▊▉█" if _can_print("█") else " ......##"

    def write(self, record: Record) -> None:
        if record.predictions is not None:
            print(printable(record.image))
        for found in record.predictions or []:
            print(f"  {found['score']:6.1%}  {self._bar(found['score'])}  {cut(printable(found['label']))}")

    def close(self) -> None:
        pass

    def _bar(self, score: float) -> str:
        full, rest = divmod(round(score * _BAR_WIDTH * 8), 8)
        return (self._eighths[8] * full + self._eighths[rest].strip()).ljust(_BAR_WIDTH)


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
