"""The image files below a folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    *(".heic", ".heif", ".avif"),
}


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """All that `walk_images` finds."""
    return [*map(Path, walk_images(folder))]


def walk_images(folder: str | os.PathLike[str], suffixes: Collection[str] = SUFFIXES) -> Iterator[str]:
    """Files below a folder with one of these suffixes, without hidden files, sorted by path.

    Only the names in one folder and in those above it are held at a time. Links to folders are not followed. Broken
    links and unreadable folders are listed too, because nothing should be left out in silence: opening them says what
    is wrong.
    """
    levels = [iter(_entries(str(Path(folder)), suffixes))]
    while levels:
        for path, is_folder in levels[-1]:
            if is_folder:
                levels.append(iter(_entries(path, suffixes)))
                break
            yield path.removeprefix("./")
        else:
            levels.pop()


def _entries(folder: str, suffixes: Collection[str]) -> list[tuple[str, bool]]:
    """The files and folders to take, with whether each is a folder. A folder that cannot be read is its own entry."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_folder or _is_file(entry, suffixes):
                    found.append((entry.name, entry.path, is_folder))
    except OSError:
        return [(folder, False)]
    return [(path, is_folder) for _, path, is_folder in sorted(found)]


def _is_file(entry: os.DirEntry[str], suffixes: Collection[str]) -> bool:
    if os.path.splitext(entry.name)[1].lower() not in suffixes:
        return False
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()
