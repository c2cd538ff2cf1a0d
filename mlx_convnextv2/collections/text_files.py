"""Results as text for programs: JSON lines, which are read back, and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..messages import csv_cell, json_text
from .records import COLUMNS, Record, rows

_LONGEST = 2**26  # bytes of a line: 20,000 labels of 3,000 letters each


class JsonLines:
    """One line of UTF-8 for each image: {"image", "predictions"} or {"image", "error"}, and "time" for a frame."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def write(self, record: Record) -> None:
        line: dict[str, Any] = {"image": record.image}
        if record.time is not None:
            line["time"] = record.time
        if record.error is not None:
            line["error"] = record.error
        else:
            line["predictions"] = record.predictions
        self._file.write(f"{json_text(line)}\n".encode())

    def close(self) -> None:
        pass


class Csv:
    """A header, then one line for each label of each image, or for the image's error. Nothing in it is a formula."""

    def __init__(self, file: BinaryIO):
        self._file, self._text = file, io.StringIO()
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def write(self, record: Record) -> None:
        self._writer.writerows(
            [csv_cell(value) if isinstance(value, str) else value for value in row] for row in rows(record)
        )
        self._flush()

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        self._file.write(self._text.getvalue().encode("utf-8", "backslashreplace"))
        self._text.seek(0)
        self._text.truncate()


def read_json_lines(file: Path) -> Iterator[Record]:
    """The records of a file that `JsonLines` has written. A damaged one raises errors of many kinds."""
    with file.open("rb") as lines:
        while line := lines.readline(_LONGEST):
            found = json.loads(line)
            yield Record(found["image"], found.get("predictions"), found.get("error"), found.get("time"))
