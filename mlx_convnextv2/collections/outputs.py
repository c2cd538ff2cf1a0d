"""Where results go: one file that is whole or absent, or a folder of parts, where a later run goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..files import output_files
from .formats import SUFFIXES, check_format, open_writer
from .records import Writer

PART_FORMATS = ("jsonl", "parquet")


class Destination:
    """Takes records, in one part or in many. Here, what one part needs that no earlier run has begun."""

    part_size: int | None = None
    """How many images a part has, or None if there is one part."""

    done: int = 0
    """How many images earlier runs have done."""
    failed: int = 0
    """How many of these failed."""

    def has(self, image: str) -> bool:
        """Whether an earlier run has done this image. Called once each time the image is named."""
        return False

    def part(self) -> AbstractContextManager[Writer]:
        """A writer for the next part. The part is kept if its context ends well, and dropped if an error ends it."""
        raise NotImplementedError

    def finish(self, images: int, failed: int) -> None:
        """Called when everything is done."""


class OneFile(Destination):
    """A file that appears when everything is done."""

    def __init__(self, file: Path, format: str):
        self._file, self._format = file, format
        output_files.check(file)

    @contextmanager
    def part(self) -> Iterator[Writer]:
        with output_files.whole(self._file) as opened, closing(open_writer(self._format, opened)) as writer:
            yield writer


@dataclass(frozen=True)
class Output:
    """A place for results: a file or a folder, and the format."""

    path: Path
    format: str
    is_folder: bool


def plan(output: str | os.PathLike[str], format: str | None = None) -> Output:
    """The place and the format that `output` and `format` mean together.

    A path means a folder if it ends in a slash, is a folder, or is new and has no suffix. Any other path is a file, and
    its suffix says the format unless `format` does. Parts are jsonl, the default, or parquet.

    Raises:
        ValueError: the path cannot be an output, or the format does not fit it.
    """
    text = os.fspath(output)
    path = Path(text).expanduser()
    if not text:
        raise ValueError("the output needs a name")
    format = "jsonl" if format == "json" else format
    if text.endswith("/") or path.is_dir() or (not path.suffix and not path.exists()):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{text} is a file: leave the slash out, or name a folder")
        if format not in (None, *PART_FORMATS):
            raise ValueError(
                f"{text} is a folder, whose parts are {' or '.join(PART_FORMATS)}: --merge makes one file in any format"
            )
        found = format or PART_FORMATS[0]
        check_format(found)
        return Output(path, found, True)
    if format == "table":
        raise ValueError(f"a table is for a terminal: choose jsonl, csv or parquet for {text}")
    known = format or SUFFIXES.get(path.suffix.lower())
    if known is None:
        raise ValueError(
            f"{text} does not say its format: end it in {', '.join(SUFFIXES)}, in / for a folder, or pass --format"
        )
    check_format(known)
    return Output(path, known, False)
