"""What is new, changed and gone in folders, compared with a library."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from ...images.folders import walk_images
from .writer import Writer


@dataclass(frozen=True)
class Scan:
    """What an update has to do.

    todo: the paths to read, in order, each with whether the library has it with another size or time. unchanged: how
    many pictures have the size and time that the library has. gone: paths in the library whose file is gone. kept: how
    many more files are missing from a folder that is empty or cannot be read, because its disk may be missing.
    """

    todo: list[tuple[str, bool]]
    unchanged: int
    gone: list[bytes]
    kept: int


def absolute(path: str | os.PathLike[str]) -> str:
    """A path as the library has it: absolute, without `..`, with its links."""
    return os.path.abspath(os.path.expanduser(os.fspath(path)))


def check_sources(sources: Sequence[str | os.PathLike[str]], missing_too: bool = False) -> list[str]:
    """The absolute paths of folders and files. Raises a FileNotFoundError if one is missing, unless `missing_too`."""
    if not sources:
        raise ValueError("there is nothing to read: give a folder of pictures")
    for source in sources:
        # "" would be the current folder
        if not os.fspath(source) or not (missing_too or os.path.exists(absolute(source))):
            raise FileNotFoundError(f"no such folder or image: {os.fspath(source) or repr('')}")
    return [absolute(source) for source in sources]


def any_pictures(sources: Sequence[str]) -> bool:
    """Whether there is anything to read in these folders and files."""
    return any(next(_listed(source), None) is not None for source in sources)


def scan(writer: Writer, sources: Sequence[str], *, prune: bool) -> Scan:
    """Compare the pictures in folders, or picture files, with those in a shard. No picture is opened.

    Only paths below the `sources` can be gone. A missing file is gone if its folder can be read and is not empty. If
    the folder is missing too, the nearest one above it decides. With `prune`, every missing file is gone.
    """
    writer.execute("CREATE TEMP TABLE IF NOT EXISTS seen (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER)")
    writer.execute("DELETE FROM seen")
    takes = writer.files.shard.takes
    writer.execute_many("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", _found(sources, takes))
    todo = writer.execute(
        "SELECT seen.path, pictures.path NOT NULL FROM seen LEFT JOIN pictures ON seen.path = pictures.path "
        "WHERE pictures.path IS NULL OR pictures.size != seen.size OR pictures.modified != seen.modified "
        "ORDER BY seen.path"
    )
    ((seen,),) = writer.execute("SELECT count(*) FROM seen")
    missing: dict[bytes, None] = {}
    for source in map(os.fsencode, sources):
        inside = source.rstrip(b"/") + b"/"
        missing |= dict.fromkeys(
            path
            for (path,) in writer.execute(
                "SELECT path FROM pictures WHERE (path = ? OR path > ? AND path < ?) "
                "AND path NOT IN (SELECT path FROM seen)",
                (source, inside, inside[:-1] + b"0"),  # 0 comes after /
            )
        )
    is_gone = _is_gone()
    gone = [path for path in missing if prune or is_gone(os.path.dirname(path))]
    return Scan(
        todo=[(os.fsdecode(path), bool(before)) for path, before in todo],
        unchanged=seen - len(todo),
        gone=gone,
        kept=len(missing) - len(gone),
    )


def _found(sources: Iterable[str], takes: Callable[[str], bool]) -> Iterator[tuple[bytes, int, int]]:
    """The path, size and time of each picture. Where there is none, -1 stands, so that the picture is read."""
    for source in sources:
        for path in _listed(source):
            if not takes(path):
                continue
            try:
                status = os.stat(path)
            except OSError:
                yield os.fsencode(path), -1, -1
                continue
            regular = stat.S_ISREG(status.st_mode)
            yield os.fsencode(path), status.st_size if regular else -1, status.st_mtime_ns


def _listed(source: str) -> Iterator[str]:
    if os.path.isdir(source):
        return walk_images(source)
    return iter([source] if os.path.exists(source) else [])  # `check_sources` may let through what is gone


def _is_gone() -> Callable[[bytes], bool]:
    """Whether a file that is missing from a folder was removed. Each folder is looked at once."""

    @cache
    def is_gone(folder: bytes) -> bool:
        try:
            with os.scandir(folder) as entries:
                return next(entries, None) is not None
        except (FileNotFoundError, NotADirectoryError):
            return is_gone(os.path.dirname(folder))
        except OSError:  # it may not be read now
            return False

    return is_gone
