"""The directory of a zip file, checked before anything relies on it."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from ..messages import short

_MAX_DIRECTORY_BYTES = 20_000_000  # of 200,000 entries; PyTorch writes one for each tensor
# The end of a zip file. From 4 GB on, the ZIP64 end record and a pointer to it precede the usual end record.
_END64, _POINTER, _END = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL"), struct.Struct("<4s4H2LH")
_ENDS = _END64.size + _POINTER.size + _END.size


def is_zip(file: Path) -> bool:
    """Whether a file begins like a zip file, which is also PyTorch's test."""
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\3\4"


def read_stored_entries(file: Path) -> dict[str, int]:
    """The entries of a zip file in the plain form that PyTorch writes, and the size of each in bytes.

    Raises:
        ValueError: entries are compressed, or the file is truncated, corrupt or ambiguous.
    """
    try:
        _check_end(file)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        if len({entry.filename.lower() for entry in entries}) < len(entries):
            raise ValueError("an entry is there twice")
    except (ValueError, zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(f"{file} is truncated or corrupt ({error}): download it again") from None
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(
                f"{file} is a zip file with {short(entry.filename)} compressed, which PyTorch cannot read in place: "
                "save it again with torch.save"
            )
    return {entry.filename: entry.file_size for entry in entries}


def _check_end(file: Path) -> None:
    """Raise a ValueError unless the file ends in a directory of moderate size and its end records, and nothing else."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(max(0, size - _ENDS))
        ends = opened.read().rjust(_ENDS, b"\0")
    signature, *_, directory_size, directory, _ = _END.unpack(ends[-_END.size :])
    place = size - _END.size
    if signature != b"PK\5\6":
        raise ValueError("no zip directory at its end")
    signature, _, second_place, _ = _POINTER.unpack(ends[_END64.size : -_END.size])
    if signature == b"PK\6\7":
        signature, *_, directory_size, directory = _END64.unpack(ends[: _END64.size])
        place = size - _ENDS
        if signature != b"PK\6\6" or second_place != place:
            raise ValueError("a damaged zip directory")
    if directory + directory_size != place or directory_size > _MAX_DIRECTORY_BYTES:
        raise ValueError("a damaged zip directory, or one of too many entries")
