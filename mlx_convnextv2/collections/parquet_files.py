"""Results as Parquet, through pyarrow: one row for each label of each image, or for its error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .records import COLUMNS, Record, rows

_GROUP = 20_000  # rows that are held before they are written


def pyarrow() -> Any:
    """The module, or a ValueError that says how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError('Parquet needs the extra parquet: pip install "mlx-convnextv2[parquet]"') from None
    return pyarrow


def schema() -> Any:
    """image: string, rank: int32, label: string, index: int32, score: float64, error: string."""
    pa = pyarrow()
    types = (pa.string(), pa.int32(), pa.string(), pa.int32(), pa.float64(), pa.string())
    return pa.schema(list(zip(COLUMNS, types, strict=True)))


def to_table(records: Iterable[Record]) -> Any:
    """The rows of records as a `pyarrow.Table`."""
    return _table([row for record in records for row in rows(record)])


class Parquet:
    """Writes records to an open file."""

    def __init__(self, file: BinaryIO):
        self._writer = pyarrow().parquet.ParquetWriter(file, schema(), compression="zstd")
        self._rows: list[tuple[Any, ...]] = []

    def write(self, record: Record) -> None:
        self._rows += rows(record)
        if len(self._rows) >= _GROUP:
            self._flush()

    def close(self) -> None:
        try:
            self._flush()
            self._writer.close()
        finally:
            self._writer.is_open = False  # else it tries again when it is collected, and reports that it cannot

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(_table(self._rows))
            self._rows = []


def read_parquet(file: Path) -> Iterator[Record]:
    """The records of a file that `Parquet` has written. A damaged one raises errors of many kinds."""
    pa = pyarrow()
    record: Record | None = None
    try:
        with pa.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(columns=list(COLUMNS)):
                for image, rank, label, index, score, error in zip(*batch.to_pydict().values(), strict=True):
                    if rank is None or rank == 1:  # an image's first row
                        if record is not None:
                            yield record
                        record = Record(image, None if rank is None else [], error)
                    if rank is not None and record is not None and record.predictions is not None:
                        record.predictions.append({"label": label, "score": score, "index": index})
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the system's error, not the content's
            raise
        raise ValueError("it is damaged") from None
    if record is not None:
        yield record


def _table(found: list[tuple[Any, ...]]) -> Any:
    columns = [[_text(value) for value in column] for column in zip(*found, strict=True)] or [[]] * len(COLUMNS)
    return pyarrow().table(columns, schema=schema())


def _text(value: Any) -> Any:
    """Text that UTF-8 can hold: bytes of a name that are not text are written as \\udcff."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
