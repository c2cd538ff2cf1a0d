"""A folder of results that grows by whole parts, so that a killed run loses at most the part it was writing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..files import output_files
from ..files.json_files import read_json
from .formats import open_writer, read_records
from .manifest import agree
from .outputs import Destination
from .records import Record, Writer
from .shards import Shard

PART = re.compile(r"part-(\d+)of(\d+)-(\d{6,})\.(jsonl|parquet)")


class RunFolder(Destination):
    """One shard's share of a run. Each shard writes its own files, and none waits for another.

    `part-2of8-000003.jsonl` holds the fourth thousand images of the second of eight shards; `shard-2of8.json` says that
    this shard is done. A part is renamed into its place when it is whole and on the disk.

    Args:
        folder: made if it does not exist.
        run: what the results depend on, for the manifest.
        shard: this process's share.
        format: "jsonl" or "parquet".
        part_size: images in a part.

    Raises:
        FileExistsError: the folder holds something else.
        OSError: it cannot be written.
        ValueError: it holds results of another model or with other options, or another process works on this shard.
    """

    def __init__(self, folder: Path, run: dict[str, Any], shard: Shard, format: str, part_size: int):
        self.part_size = part_size
        self.folder = folder
        self._format = format
        self._name = f"{shard.index}of{shard.count}"
        folder.mkdir(parents=True, exist_ok=True)
        agree(folder, {**run, "format": format, "shards": shard.count})
        self._lock = _lock(folder / f".shard-{self._name}.lock", f"shard {shard} of {folder}")
        for pattern in (f".part-{self._name}-*.partial", f".shard-{self._name}.*.partial"):
            for left in folder.glob(pattern):  # of a killed run
                left.unlink(missing_ok=True)
        self._finished = folder / f"shard-{self._name}.json"
        self._finished.unlink(missing_ok=True)
        own = [(number, path) for owner, number, path in find_parts(folder) if owner == self._name]
        self._next = max((number for number, _ in own), default=-1) + 1
        self.failed = 0
        self._earlier = Names(map(self._count, (record for _, path in own for record in read_records(path))))
        self.done = len(self._earlier)

    def has(self, image: str) -> bool:
        return self.done > 0 and self._earlier.take(image)

    @contextmanager
    def part(self) -> Iterator[Writer]:
        path = self.folder / f"part-{self._name}-{self._next:06}.{self._format}"
        with output_files.whole(path) as file, closing(open_writer(self._format, file)) as writer:
            yield writer
        self._next += 1

    def finish(self, images: int, failed: int) -> None:
        content = {"images": self.done + images, "failed": self.failed + failed}
        with output_files.whole(self._finished) as file:
            file.write(f"{json.dumps(content)}\n".encode())
        self._lock.close()

    def _count(self, record: Record) -> str:
        self.failed += record.error is not None
        return record.image


class Names:
    """The names of images that are done, as sorted hashes of 16 bytes, and how often each may still be taken."""

    def __init__(self, names: Iterable[str]):
        hashes = bytearray()
        for name in names:
            hashes += _hash(name)
        self._total = len(hashes) // 16
        self._sorted, counts = np.unique(np.frombuffer(hashes, "S16"), return_counts=True)
        self._left = counts.astype(np.uint32)

    def __len__(self) -> int:
        return self._total

    def take(self, name: str) -> bool:
        """Whether the name is still there. If it is, it is taken once."""
        wanted = _hash(name).rstrip(b"\0")  # numpy drops zero bytes at the end
        place = int(np.searchsorted(self._sorted, wanted))
        found = place < len(self._sorted) and self._sorted[place] == wanted and self._left[place] > 0
        if found:
            self._left[place] -= 1
        return bool(found)


def find_parts(folder: Path) -> list[tuple[str, int, Path]]:
    """The part files: the shard such as "2of8", the number, and the path, in the order of shards and numbers."""
    found = [(match, folder / match[0]) for match in map(PART.fullmatch, os.listdir(folder)) if match]
    found.sort(key=lambda one: (int(one[0][2]), int(one[0][1]), int(one[0][3])))
    return [(f"{match[1]}of{match[2]}", int(match[3]), path) for match, path in found]


def count_finished(folder: Path, shard: Shard) -> int | None:
    """How many images a finished shard has, or None if it is not finished."""
    path = folder / f"shard-{shard.index}of{shard.count}.json"
    if not path.is_file():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("images"), int):
        raise ValueError(f"{path} is damaged: delete it and start the run again, which makes it anew")
    return int(found["images"])


def _hash(name: str) -> bytes:
    """The hash of a name as Parquet holds it: bytes that are not text are written as \\udcff."""
    return hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _lock(path: Path, what: str) -> BinaryIO:
    """Take a lock that the system releases when this process ends."""
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"another process works at {what}: give this one another --shard, or wait for it") from None
    except OSError:  # a network file system
        warnings.warn(f"{path.parent} has no locks: see that no two processes work at {what}", stacklevel=2)
    return file
