"""Lists of names in a file or on standard input."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from typing import BinaryIO

_LONGEST = 65_536  # bytes of a name: paths have at most 4,096, addresses less than this
_CHUNK = 65_536


def read_names(file: str, null: bool = False) -> Iterator[str]:
    """The names in a list, lazily: one on each line, or each ended by a NUL byte. Empty ones are left out.

    Args:
        file: the list's path, or - for standard input.
        null: NUL bytes end the names, as `find -print0` writes them, and newlines are part of a name.

    Raises:
        FileNotFoundError, OSError: the list cannot be read.
        ValueError: it is not a list of names.
    """
    if not file:
        raise ValueError("@ stands before the name of a list: @list.txt, or @- for standard input")
    if file == "-":
        yield from _split(sys.stdin.buffer, null, "standard input")
        return
    try:
        opened = open(file, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise FileNotFoundError(f"no such list: {file}") from None
    with opened:
        yield from _split(opened, null, file)


def _split(file: BinaryIO, null: bool, name: str) -> Iterator[str]:
    end = b"\0" if null else b"\n"
    read = getattr(file, "read1", file.read)  # takes what a pipe has now, without waiting for more
    chunk, rest = read(_CHUNK), b""
    if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{name} is in UTF-16: save it in UTF-8")
    chunk = chunk.removeprefix(codecs.BOM_UTF8)
    while chunk:
        *whole, rest = (rest + chunk).split(end)
        if len(rest) > _LONGEST or any(len(one) > _LONGEST for one in whole):
            raise ValueError(f"{name} is no list of names, because one has more than {_LONGEST:,} bytes")
        yield from filter(None, (_name(one, null, name) for one in whole))
        chunk = read(_CHUNK)
    if last := _name(rest, null, name):
        yield last


def _name(raw: bytes, null: bool, file: str) -> str:
    if b"\0" in raw:
        raise ValueError(f"the names in {file} are separated by NUL bytes: pass null (-0)")
    return os.fsdecode(raw if null else raw.removesuffix(b"\r"))
