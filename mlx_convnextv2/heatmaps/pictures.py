"""Pictures as they are given: files, folders of them, open files, arrays."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..images.decode import NAMELESS, name_of, read_stream
from ..images.folders import find_images

HEAT_MAP_SUFFIXES = (".heatmap.png", ".heatmap.npy")


def named_pictures(images: Iterable[Any]) -> Iterator[tuple[Any, Path]]:
    """Each picture and the name for its heat map, a path without a suffix. Folders are replaced by their pictures.

    A folder without pictures is yielded itself, and fails when it is read.
    """
    for image in images:
        is_folder = isinstance(image, str | os.PathLike) and os.path.isdir(image)
        found = find_images(image) if is_folder else []
        for path in found:
            if path.name.endswith(HEAT_MAP_SUFFIXES):  # written by an earlier run
                continue
            inside = path != Path(image)  # a folder that cannot be listed yields itself
            yield path, path.relative_to(image).with_suffix("") if inside else Path(path.name)
        if not found:
            name = name_of(image)
            yield image, Path("picture" if name == NAMELESS else Path(name).stem or "picture")


class Content(io.BytesIO):
    """An open file's content and name. It can be read more than once."""

    def __init__(self, file: Any):
        super().__init__(read_stream(file))
        self.name = name_of(file)


def keep(image: Any) -> Any:
    """The image, or the `Content` of an open file."""
    return Content(image) if hasattr(image, "read") and not isinstance(image, io.BytesIO) else image


def again(image: Any) -> Any:
    """The image, with a `Content` set back to its beginning."""
    if isinstance(image, io.BytesIO):
        image.seek(0)
    return image


def naming(error: ValueError | OSError, image: Any) -> ValueError | OSError:
    """The error with the picture's name added if the message lacks it."""
    if isinstance(error, IsADirectoryError):
        return ValueError(f"no images in the folder {os.fspath(image)}")
    name = name_of(image)
    if name in str(error) or getattr(error, "filename", None):
        return error
    message = str(error).removeprefix(f"{NAMELESS}: ").removeprefix(f"{NAMELESS} ")
    return (ValueError if isinstance(error, ValueError) else OSError)(f"{name}: {message}")
