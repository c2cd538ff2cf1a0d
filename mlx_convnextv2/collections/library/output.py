"""What a search found, as lines for people and for programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ...images.decode import name_of
from ...messages import json_text, printable
from .library import Found, Library, check_top_k
from .page import as_html

Groups = Sequence[Sequence[Found]]


def search_library(
    path: str | os.PathLike[str],
    image: Any = None,
    *,
    label: int | str | None = None,
    duplicates: float | None = None,
    top_k: int | None = None,
    model: str | os.PathLike[str] | None = None,
    format: str = "table",
) -> str:
    """Search in a library, and write down what was found.

    Args:
        path: the library's folder.
        image: find the pictures most like this one, a path, a file object, a PIL image or a uint8 array; or
        label: find those that the classifier gives this label; or
        duplicates: find groups of pictures that are linked by cosines of at least this.
        top_k: pictures, or groups, at most. None means 20 for an image, and otherwise all.
        model: as for `Library`.
        format: "table", a line with score and path for each picture; "jsonl", an object for each; "html", a page.

    Raises:
        FileNotFoundError, OSError, ValueError: as `Library` and its methods; also if not exactly one of the three is
            asked for, or if there is no such format.
    """
    if format not in _WRITERS:
        raise ValueError(f"the format is one of {', '.join(_WRITERS)}, not {format}")
    if sum(asked is not None for asked in (image, label, duplicates)) != 1:
        raise ValueError("a search is for an image, for a label, or for duplicates: give one of them")
    if top_k is not None:
        check_top_k(top_k)
    library = Library(path, model)
    groups: Groups
    if duplicates is not None:
        groups = library.duplicates(duplicates)[:top_k]
        groups = [[{"group": number, **picture} for picture in group] for number, group in enumerate(groups, start=1)]
        title = f"Near-duplicates: cosine at least {duplicates:g}"
    elif label is not None:
        groups = [library.labelled(label, top_k)]
        title = f"Named {groups[0][0]['label'] if groups[0] else label}"
    else:
        groups = [library.search(image, 20 if top_k is None else top_k)]
        title = f"Most like {os.path.basename(name_of(image))}"
        if hasattr(image, "seek") and hasattr(image, "read"):
            image.seek(0)  # the page reads it again
    return _WRITERS[format](groups, title, image)


def _html(groups: Groups, title: str, query: Any) -> str:
    return as_html(groups, title=title, query=query)


def _table(groups: Groups, *_: Any) -> str:
    """A line for each picture, and an empty one between groups."""
    return "\n".join(
        "".join(f"{picture['score']:7.4f}  {printable(picture['path'])}\n" for picture in group) for group in groups
    )


def _json_lines(groups: Groups, *_: Any) -> str:
    return "".join(f"{json_text(picture)}\n" for group in groups for picture in group)


_WRITERS: dict[str, Callable[..., str]] = {"table": _table, "jsonl": _json_lines, "html": _html}
