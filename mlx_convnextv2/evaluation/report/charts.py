"""Line charts as SVG, in the colours of the page, so that they are right in the light and in the dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...pages.html import text

_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 40


@dataclass(frozen=True)
class Line:
    """A curve of a chart: its points (x, y) in order, and what a pointer on each of them reads.

    `style` is a class of style.css: one, two, or guide for a dotted line without points.
    """

    label: str
    points: Sequence[tuple[float, float]]
    notes: Sequence[str] = ()
    style: str = "one"


@dataclass(frozen=True)
class Bars:
    """Grey bars behind the curves: of each its left and right end, its height, and what a pointer on it reads."""

    label: str
    bars: Sequence[tuple[float, float, float]]
    notes: Sequence[str]


@dataclass(frozen=True)
class Axis:
    """The span of an axis, the values that are marked, and how they are written."""

    title: str
    low: float
    high: float
    ticks: Sequence[float]
    form: str = "g"

    @classmethod
    def around(cls, title: str, values: Sequence[float], form: str = "g") -> Axis:
        """An axis for these values, marked at round numbers."""
        low, high = min(values), max(values)
        if low == high:
            low, high = low - 0.5, high + 0.5
        step = _round_step((high - low) / 5)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = [step * number for number in range(first, last + 1)]
        return cls(title, ticks[0], ticks[-1], ticks, form)


SHARE = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line], bars: Bars | None = None) -> str:
    """A figure with a legend. Screen readers read the title; the figures are in the tables of the page."""

    def across(value: float) -> float:
        return _LEFT + (value - x.low) / (x.high - x.low) * (_WIDTH - _LEFT - _RIGHT)

    def down(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - y.low) / (y.high - y.low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_grid(x, y, across, down)]
    if bars is not None:
        for (left, right, height), note in zip(bars.bars, bars.notes, strict=True):
            top = down(height)
            shape = f'x="{across(left):.1f}" y="{top:.1f}" width="{across(right) - across(left) - 1:.1f}"'
            parts.append(f'<rect class="bar" {shape} height="{down(y.low) - top:.1f}">{_note(note)}</rect>')
    for line in lines:
        places = [(across(a), down(b)) for a, b in line.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline class="line {line.style}" points="{path}"/>')
        parts += [
            f'<circle class="dot {line.style}" cx="{a:.1f}" cy="{b:.1f}" r="3">{_note(note)}</circle>'
            for (a, b), note in zip(places, line.notes, strict=False)
        ]
    shown = [(line.label, f"line {line.style}") for line in lines] + ([(bars.label, "bar")] if bars is not None else [])
    legend = "".join(
        f'<span><svg class="key" viewBox="0 0 22 10">{_key(style)}</svg>{text(label)}</span>' for label, style in shown
    )
    drawing = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(title)}">{"".join(parts)}</svg>'
    caption = f"<figcaption>{text(title)}</figcaption>"
    return f'<figure class="chart">{caption}{drawing}<div class="legend">{legend}</div></figure>'


def _grid(x: Axis, y: Axis, across: Callable[[float], float], down: Callable[[float], float]) -> str:
    """The marks of both axes with their values, and the titles."""
    parts = []
    for value in y.ticks:
        place = down(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{place + 4:.1f}">{format(value, y.form)}</text>')
    for value in x.ticks:
        place = across(value)
        parts.append(f'<text class="tick" x="{place:.1f}" y="{_HEIGHT - _BOTTOM + 16}">{format(value, x.form)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{_HEIGHT - 5}">{text(x.title)}</text>')
    return "".join(parts)


def _key(style: str) -> str:
    if style == "bar":
        return '<rect class="bar" x="4" y="0" width="14" height="10"/>'
    return f'<line class="{style}" x1="0" x2="22" y1="5" y2="5"/>'


def _note(note: str) -> str:
    return f"<title>{text(note)}</title>"


def _round_step(size: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10 ** math.floor(math.log10(size))
    return power * next(step for step in (1, 2, 5, 10) if step * power >= size * (1 - 1e-9))
