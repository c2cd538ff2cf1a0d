"""Every class with its figures, in a table that a click sorts."""

from __future__ import annotations

import numpy as np

from ...pages.html import name, paragraph, percent, section
from ..findings import Findings

_MOST = 2000  # rows


def classes(findings: Findings) -> str:
    found = findings.classes
    present = np.flatnonzero(found.support + found.predicted)
    shown = present[np.argsort(found.f1[present], kind="stable")][:_MOST]
    words = ["Those with the lowest F1 come first; click a heading to sort."]
    if len(shown) < len(present):
        words.append(f"The other {len(present) - len(shown):,} classes are left out.")
    unseen = len(findings.labels) - int((found.support > 0).sum())
    if unseen:
        words.append(f"{unseen:,} of the model's {len(findings.labels):,} classes have no images here.")
    head = "".join(
        f'<th aria-sort="{"ascending" if title == "F1" else "none"}"><button type="button">{title}</button></th>'
        for title in ("class", "precision", "recall", "F1", "images", "answers")
    )
    rows = "".join(_row(findings, int(index)) for index in shown)
    search = '<input type="search" placeholder="find a class" aria-label="find a class">' if len(shown) > 20 else ""
    table = f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return section("Classes", paragraph(*words), search, f'<div class="scroll tall">{table}</div>')


def _row(findings: Findings, index: int) -> str:
    found = findings.classes
    shares = [
        _share(float(values[index]), of > 0)
        for values, of in (
            (found.precision, found.predicted[index]),
            (found.recall, found.support[index]),
            (found.f1, found.support[index] + found.predicted[index]),
        )
    ]
    counts = [f'<td class="number">{values[index]:,}</td>' for values in (found.support, found.predicted)]
    return f"<tr><td>{name(findings.labels[index])}</td>{''.join(shares)}{''.join(counts)}</tr>"


def _share(value: float, defined: bool) -> str:
    if not defined:
        return f'<td class="number" data-value="-1">{percent(float("nan"))}</td>'
    return f'<td class="number share" style="--share:{value:.3f}" data-value="{value:.6f}">{percent(value)}</td>'
