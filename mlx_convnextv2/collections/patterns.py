"""Patterns such as "photos/**/*.jpg", as a shell reads them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator


def matches(pattern: str) -> Iterator[str]:
    """What a pattern matches. `**` stands for any number of folders, and skips hidden ones and links.

    `glob` would follow the links: two that lead to their own folder would keep it busy for years.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    first = parts.index("**")
    rest = "/".join(parts[first + 1 :])
    unreadable: list[str] = []
    for top in glob.iglob("/".join(parts[:first]).rstrip("/") + "/") if first else ["."]:
        for folder, folders, files in os.walk(top, onerror=lambda error: unreadable.append(error.filename)):
            folders[:] = [name for name in folders if not name.startswith(".")]
            start = os.path.join(folder, "") if first else os.path.join(folder, "")[2:]
            if rest:
                yield from matches(glob.escape(start) + rest)
            else:
                yield from (start + name for name in files if not name.startswith("."))
    yield from unreadable  # the caller reports them
