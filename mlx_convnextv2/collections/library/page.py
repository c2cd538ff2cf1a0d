"""What a search found, as one HTML page of thumbnails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from datetime import date
from typing import Any

from ..._version import __version__
from ...pages.frame import page
from ...pages.html import paragraph, text
from ...pages.pictures import thumbnail
from ...runtime.prefetch import map_ahead
from ...runtime.threads import available_cpus

_SHOWN = 500  # pictures, of about 20 kB each
_STYLE = """
.query { max-width: 160px; margin: 16px 0; }
h2 { margin-top: 32px; }
"""


def as_html(groups: Sequence[Sequence[dict[str, Any]]], *, title: str, query: Any = None) -> str:
    """The page. Each picture has its score, its size, its date and its path.

    Args:
        groups: groups of near-duplicates, or one group of all that was found. The first 500 pictures are shown.
        title: what was asked for.
        query: the picture that was searched with, to show it first, as `open_image` takes it.
    """
    count = sum(map(len, groups))
    shown = _first(groups)
    paths = [picture["path"] for group in shown for picture in group]
    with closing(map_ahead(thumbnail, paths, available_cpus(), 2 * available_cpus())) as thumbnails:
        sections = [
            _heading(len(group), len(groups) > 1)
            + f'<div class="gallery">{"".join(_card(picture, next(thumbnails)) for picture in group)}</div>'
            for group in shown
        ]
    asked = "" if query is None else f'<div class="gallery query">{thumbnail(query)}</div>'
    several = f" in {len(groups):,} groups" if len(groups) > 1 else ""
    words = f"{count:,} {'picture' if count == 1 else 'pictures'}{several}."
    if count > len(paths):
        words += f" The first {len(paths):,} are shown."
    footer = f"<footer><p>mlx_convnextv2 {__version__}, {date.today().isoformat()}</p></footer>"
    body = f"<header><h1>{text(title)}</h1></header>{asked}{paragraph(words)}{''.join(sections)}{footer}"
    return page(text(title), body, _STYLE)


def _first(groups: Sequence[Sequence[dict[str, Any]]]) -> list[Sequence[dict[str, Any]]]:
    left, first = _SHOWN, []
    for group in groups:
        if left > 0:
            first.append(group[:left])
            left -= len(group)
    return first


def _heading(count: int, several: bool) -> str:
    return f"<h2>{count:,} pictures</h2>" if several else ""


def _card(picture: dict[str, Any], image: str) -> str:
    path = picture["path"]
    facts = [f"<b>{picture['score']:.4f}</b>", f"{picture['width']} \N{MULTIPLICATION SIGN} {picture['height']}"]
    if picture["taken"]:
        facts.append(text(picture["taken"].replace("T", " "), 30))
    where = f'<span class="file" title="{text(path, 1000)}">{text(os.path.basename(path), 60)}</span>'
    return f"<figure>{image}<figcaption>{'<br>'.join([*facts, where])}</figcaption></figure>"
