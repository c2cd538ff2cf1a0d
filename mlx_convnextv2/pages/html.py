"""Text that becomes part of a page: never markup, never longer than its place, never what a browser would obey."""

from __future__ import annotations

import html
import math

from ..messages import cut, printable

_NAME = 60  # characters of a label or a file's name


def text(value: object, most: int = 200) -> str:
    """Any text for an element or a quoted attribute."""
    return html.escape(cut(printable(value), most))


def name(value: object) -> str:
    """A label or a file's name, cut in its middle where it is long."""
    return text(value, _NAME)


def percent(value: float, digits: int = 1) -> str:
    """A share as text; an en dash where there is none."""
    return "\N{EN DASH}" if math.isnan(value) else f"{value:.{digits}%}"


def paragraph(*sentences: str) -> str:
    """A paragraph of sentences that are HTML already."""
    return f"<p>{' '.join(sentences)}</p>"


def section(title: str, *parts: str) -> str:
    """A section with a heading that links can point at."""
    anchor = title.lower().replace(" ", "-")
    return f'<section id="{anchor}"><h2>{html.escape(title)}</h2>{"".join(parts)}</section>'
