"""The file formats of results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .records import Record, Writer, check
from .text_files import Csv, JsonLines, read_json_lines

SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def open_writer(format: str, file: BinaryIO) -> Writer:
    """A writer for "jsonl", "csv" or "parquet".

    Raises:
        ValueError: there is no such format, or the extra `parquet` is missing.
    """
    if format == "parquet":
        from .parquet_files import Parquet

        return Parquet(file)
    return _text_writer(format)(file)


def check_format(format: str) -> None:
    """Raise the errors of `open_writer` before anything is computed."""
    if format == "parquet":
        from .parquet_files import pyarrow

        pyarrow()
    else:
        _text_writer(format)


def _text_writer(format: str) -> type[JsonLines] | type[Csv]:
    writers: dict[str, type[JsonLines] | type[Csv]] = {"jsonl": JsonLines, "csv": Csv}
    if format not in writers:
        raise ValueError(f"the format is one of {', '.join([*writers, 'parquet'])}, not {format}")
    return writers[format]


def read_records(file: Path) -> Iterator[Record]:
    """The records of a whole file in JSON lines or, by its suffix, in Parquet.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or the extra `parquet` is missing.
    """
    read = read_json_lines
    if file.suffix == ".parquet":
        from .parquet_files import pyarrow, read_parquet as read

        pyarrow()  # a missing extra is not damage
    try:
        for record in read(file):
            check(record)
            yield record
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        raise ValueError(f"{file} is damaged: delete it and start the run again, which makes it anew") from None
