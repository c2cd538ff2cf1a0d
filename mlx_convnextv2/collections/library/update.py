"""Bring a shard up to date with folders of pictures: read what changed, compute what is new, forget what is gone."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ...images.decode import check_exists, explained, open_header
from ...images.facts import facts
from ...inference.embedder import ImageEmbedder
from ...inference.pipeline import Result, read_into
from ...messages import sentence
from .scan import scan
from .writer import Entry, Writer

_SECONDS = 1.0  # between two commits; a killed run computes this much again
_CHUNK_BYTES = 2**20


@dataclass
class Picture(Result):
    """A file on its way into a library.

    before: whether the library has the path, with another size or time. entry: what is known of the file. known:
    whether the library has the features of a picture with the same content.
    """

    before: bool = False
    entry: Entry | None = None
    known: bool = False


# Called after each picture that was read, with the number of pictures done and the number to be read.
Watch = Callable[[Picture, int, int], None]


class Failure(NamedTuple):
    """A picture that could not be read, and why: a sentence, because an error holds on to the pixels of its picture."""

    path: str
    error: str


@dataclass
class Update:
    """What an update did, in pictures.

    added: computed, of new files. changed: computed, of files whose content had changed. recognised: files whose
    content the library had, because they were moved, renamed, copied or touched, so that nothing was computed. removed:
    files that are gone. unchanged: not read again. kept: files that are missing from folders that are empty or cannot
    be read. failures: those that could not be read, and are not in the library.
    """

    added: int = 0
    changed: int = 0
    recognised: int = 0
    removed: int = 0
    unchanged: int = 0
    kept: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def total(self) -> int:
        """The pictures of the folders that the library has now."""
        return self.added + self.changed + self.recognised + self.unchanged

    def __str__(self) -> str:
        counts = {
            **{"added": self.added, "changed": self.changed, "recognised by their content": self.recognised},
            **{"removed": self.removed, "unchanged": self.unchanged, "failed": len(self.failures)},
        }
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "no pictures"


def update(
    writer: Writer, embedder: ImageEmbedder, sources: Sequence[str], *, prune: bool = False, watch: Watch | None = None
) -> Update:
    """Bring a shard up to date. What is done is committed about once a second, and when an exception ends it.

    Args:
        writer: of the shard.
        embedder: its model.
        sources: absolute paths of folders and of single files.
        prune: also forget the missing files of folders that are empty or cannot be read.
        watch: called after each picture that was read.

    Raises:
        OSError: the library cannot be written.
    """
    found = scan(writer, sources, prune=prune)
    result = Update(unchanged=found.unchanged, kept=found.kept)

    def prepare(picture: Picture) -> tuple[Picture, np.ndarray | None]:
        return read_into(picture, lambda: _read(picture, writer, embedder))

    todo = (Picture(path, before=before) for path, before in found.todo)
    committed = time.monotonic()
    try:
        with closing(embedder.stream(todo, prepare)) as pictures:
            for done, (picture, features) in enumerate(pictures, start=1):
                _keep(writer, picture, features, result)
                if watch is not None:
                    watch(picture, done, len(found.todo))
                if time.monotonic() - committed > _SECONDS:
                    writer.commit()
                    committed = time.monotonic()
        for path in found.gone:  # last, so that a moved file's features are still there
            writer.remove(path)
            result.removed += 1
    finally:
        writer.commit()
    writer.compact()
    return result


def _keep(writer: Writer, picture: Picture, features: np.ndarray | None, result: Update) -> None:
    """Put a picture that was read into the library. One that failed is removed: its features would be outdated."""
    entry = picture.entry
    if picture.error is None and entry is not None and picture.known:
        writer.add(entry)
        result.recognised += 1
    elif picture.error is None and entry is not None and features is not None:
        norm = float(np.linalg.norm(features.astype(np.float64)))
        writer.add(replace(entry, norm=norm), features / norm)
        result.changed += picture.before
        result.added += not picture.before
    else:
        if not isinstance(picture.error, PermissionError):  # its content may be unchanged
            writer.remove(os.fsencode(picture.image))
        error = picture.error or ValueError(f"{picture.image} has no features")
        result.failures.append(Failure(picture.image, sentence(error)))


def _read(picture: Picture, writer: Writer, embedder: ImageEmbedder) -> np.ndarray | None:
    """Fill in the picture's entry. Return its pixel values, or None if the library has features of this content."""
    path = picture.image
    with explained(path):
        check_exists(path, path)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is not a regular file")
        file = open(path, "rb")  # noqa: SIM115 - closed below
    with file:
        with explained(path):
            status = os.fstat(file.fileno())
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        hash = digest.digest()
        place = {"path": os.fsencode(path), "size": status.st_size, "modified": status.st_mtime_ns}
        if same := writer.find(hash):
            picture.entry, picture.known = replace(same, **place), True  # type: ignore[arg-type]
            return None
        file.seek(0)
        with explained(path):
            image = open_header(file)
        image.filename = path  # type: ignore[attr-defined] # its name in errors
        pixels = embedder.preprocess(image)
        after = os.fstat(file.fileno())
        if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
            raise ValueError("it was being changed while it was read: run embed again")
        picture.entry = Entry(**place, hash=hash, **vars(facts(image)), norm=0.0, row=-1)  # type: ignore[arg-type]
    return pixels
