"""What a user names - files, folders, patterns, lists, addresses, videos - as a lazy list of pictures."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..images.decode import is_pipe, read_stream
from ..images.folders import SUFFIXES, walk_images
from .name_lists import read_names
from .patterns import matches
from .shards import Shard
from .videos import VIDEO_SUFFIXES, frames

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_PATTERN = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Input:
    """One picture.

    Attributes:
        name: its name in the results.
        image: what `ImageClassifier` takes.
        time: seconds from the start of its video, if it is a frame.
    """

    name: str
    image: Any
    time: float | None = None


@dataclass(frozen=True)
class Source:
    """A picture, or a video, that is not opened yet.

    Attributes:
        name: its path or address.
        key: decides which shard takes it. It is the path within the folder that was named, which is the same on
            machines that mount the folder in different places; or the whole name, if the picture itself was named.
        open: reads a stream or a video, whose pictures are not known before.
    """

    name: str
    key: str
    open: Callable[[], Iterator[Input]] | None = None
    image: Any = None

    def inputs(self) -> Iterator[Input]:
        if self.open is None:
            yield Input(self.name, self.name if self.image is None else self.image)
        else:
            yield from self.open()


class Stream(io.BytesIO):
    """The content of a pipe. The main thread reads it, because no other thread can be interrupted while it waits.

    `name` is its name in errors, and `argument` is the user's name for it.
    """

    def __init__(self, file: BinaryIO, name: str, argument: str):
        super().__init__(read_stream(file))
        self.name = name
        self.argument = argument


class Failed:
    """Stands in for a picture that cannot be had: reading it raises the error."""

    def __init__(self, name: str, error: Exception):
        self.name, self._error = name, error

    def read(self, size: int = -1) -> bytes:
        raise self._error


def find_inputs(arguments: Iterable[str], **options: Any) -> Iterator[Input]:
    """The pictures that the arguments name, one after the other. The options are those of `find_sources`."""
    for source in find_sources(arguments, **options):
        yield from source.inputs()


def find_sources(
    arguments: Iterable[str],
    *,
    shard: Shard | None = None,
    allow_urls: bool = False,
    fps: float | None = None,
    null: bool = False,
    max_pixels: int | None = None,
    notice: Callable[[str], None] | None = None,
) -> Iterator[Source]:
    """What the arguments name, in order. It is listed lazily, except for what a pattern matches.

    Args:
        arguments: paths of images and videos; folders, for the images below them; patterns such as "photos/**/*.jpg";
            @FILE, for a file with a path, an address or a folder on each line, or @- for such lines on standard input;
            http addresses; - for an image on standard input.
        shard: leave out what belongs to other shards.
        allow_urls: fetch addresses. Otherwise each is a failed picture.
        fps: frames a second to take of a video (default 1). If it is given, videos in folders are taken too.
        null: the names in lists end with NUL bytes instead of newlines.
        max_pixels: a video with larger frames is a failed picture.
        notice: called with a sentence when the run waits for a named pipe.

    Raises:
        FileNotFoundError, OSError, ValueError: a list cannot be read.
    """
    suffixes = SUFFIXES if fps is None else SUFFIXES | VIDEO_SUFFIXES

    def of_name(name: str, key: str) -> Source:
        if _ADDRESS.match(name):
            return Source(name, key, image=_of_address(name) if allow_urls else _refused(name))
        if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES:
            return Source(name, key, lambda: _of_video(name, fps or 1.0, max_pixels))
        return Source(name, key)

    def of_folder(folder: str) -> Iterator[Source]:
        empty, base = True, str(Path(folder))
        for name in walk_images(folder, suffixes):
            empty = False
            yield of_name(name, name.removeprefix(base).lstrip("/"))
        if empty:
            yield Source(folder, folder)

    def of_argument(argument: str) -> Iterator[Source]:
        if argument.startswith("@") and not os.path.lexists(argument):
            for name in read_names(argument[1:], null):
                is_file = os.path.splitext(name)[1].lower() in suffixes  # by its name, without asking the disk
                yield from [of_name(name, name)] if is_file or not os.path.isdir(name) else of_folder(name)
        elif argument == "-":
            yield Source("-", "-", lambda: iter([Input("-", Stream(sys.stdin.buffer, "<stdin>", "-"))]))
        elif is_pipe(argument) and os.access(argument, os.R_OK):
            yield Source(argument, argument, lambda: iter([_of_pipe(argument, notice)]))
        elif os.path.isdir(argument):
            yield from of_folder(argument)
        elif _PATTERN.search(argument) and not os.path.lexists(argument) and not _ADDRESS.match(argument):
            yield from of_pattern(argument)
        else:
            yield of_name(argument, argument)

    def of_pattern(pattern: str) -> Iterator[Source]:
        parts = Path(pattern).parts
        fixed = next(i for i, part in enumerate(parts) if _PATTERN.search(part))
        base = str(Path(*parts[:fixed])) if fixed else "."
        found = False
        for name in sorted({*matches(pattern)}):
            if not os.path.isdir(name):
                found = True
                yield of_name(name, os.path.relpath(name, base))
            elif "**" not in pattern or not os.access(name, os.R_OK | os.X_OK):  # ** already lists what a folder holds
                found = True
                yield from of_folder(name)
        if not found:
            yield Source(pattern, pattern, image=Failed(pattern, FileNotFoundError(f"no image matches {pattern}")))

    for argument in arguments:
        for source in of_argument(argument):
            if shard is None or shard.takes(source.key):
                yield source


def _of_pipe(path: str, notice: Callable[[str], None] | None) -> Input:
    if notice is not None:
        notice(f"Waiting for the named pipe {path} ...")
    with open(path, "rb") as pipe:
        return Input(path, Stream(pipe, path, path))


def _of_video(path: str, fps: float, max_pixels: int | None) -> Iterator[Input]:
    try:
        for frame in frames(path, fps, max_pixels):
            name = f"{path}#t={frame.timecode}"
            frame.image.filename = name  # type: ignore[attr-defined] # its name in errors
            yield Input(name, frame.image, frame.seconds)
    except (ValueError, OSError) as error:
        yield Input(path, Failed(path, error))


def _of_address(name: str) -> Any:
    from .addresses import Address  # imports http and ssl, which takes long

    return Address(name)


def _refused(address: str) -> Failed:
    return Failed(address, ValueError("it is an address: pass allow_urls (--allow-urls) to fetch it"))
