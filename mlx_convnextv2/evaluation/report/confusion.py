"""Which classes are taken for which: a table that can be read, or a picture where there are too many for one."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from ...pages.html import name, paragraph, percent, section, text
from ..findings import Findings

_TABLE = 25  # classes that a table has room for
_BESIDE = 10  # classes with which it leaves room for another one
_ROWS = 125  # of the picture, at most
_NAMED = 25  # of them
_SIDE, _MARGIN, _MARGIN_TOP = 560, 150, 8  # of the picture, and for the names
_PAIRS = 20
_RIGHT, _WRONG = (0, 114, 178), (213, 94, 0)  # blue and orange


def confusion(findings: Findings) -> str:
    count = len(findings.labels)
    drawn = _table(findings) if count <= _TABLE else _picture(findings)
    arranged = "side" if count <= _BESIDE or count > _TABLE else "stack"
    return section("Confusion", f'<div class="{arranged}">{drawn}{_pairs(findings)}</div>')


def _table(findings: Findings) -> str:
    matrix = findings.confusion_matrix
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    labels = [text(label, 32) for label in findings.labels]
    head = "".join(f'<th scope="col"><span>{label}</span></th>' for label in labels)
    rows = []
    for row, label in enumerate(labels):
        cells = "".join(
            _cell(int(matrix[row, column]), float(shares[row, column]), label, labels[column], row == column)
            for column in range(len(labels))
        )
        rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    words = paragraph("A row is the right class, a column the answer. Each row is shaded by its shares.")
    corner = '<td class="corner"></td>'
    table = f'<table class="matrix"><thead><tr>{corner}{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="wide">{words}<div class="scroll">{table}</div></div>'


def _cell(images: int, share: float, label: str, answer: str, right: bool) -> str:
    if not images:
        return "<td></td>"
    ink = ' class="light"' if share > 0.55 else ""
    colour = ",".join(map(str, _RIGHT if right else _WRONG))
    note = f"{images:,} images of {label} answered with {answer}, {percent(share)} of the class"
    return f'<td{ink} style="background:rgba({colour},{max(share, 0.08):.2f})" title="{note}">{images:,}</td>'


def _picture(findings: Findings) -> str:
    """A square for each pair of classes, or of neighbours among very many, with the places of some classes beside."""
    shares, group = findings.mistake_shares(_ROWS)
    pixels = np.zeros((*shares.shape, 4), np.uint8)
    pixels[..., :3] = _WRONG
    pixels[..., 3] = np.rint(255 * np.sqrt(shares / max(shares.max(), 1e-9)))  # or rare pairs could not be seen
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    address = base64.b64encode(buffer.getvalue()).decode("ascii")
    side = len(shares)
    rows = range(0, side, max(1, -(-side // _NAMED)))
    names = "".join(
        f'<text x="{_MARGIN - 6}" y="{_MARGIN_TOP + (row + 0.5) / side * _SIDE + 4:.1f}">'
        f"{text(findings.labels[row * group], 22)}</text>"
        for row in rows
    )
    place = f'x="{_MARGIN}" y="{_MARGIN_TOP}" width="{_SIDE}" height="{_SIDE}"'
    picture = f'<image {place} href="data:image/png;base64,{address}"/><rect {place}/>{names}'
    box = f"0 0 {_MARGIN + _SIDE + 1} {_MARGIN_TOP + _SIDE + 1}"
    joined = f" Each row and column is {group} classes that follow one another." if group > 1 else ""
    words = paragraph(
        "Mistakes alone: a row is the right class, a column the answer, both in the order of the model's classes, "
        f"from the top and from the left.{joined} Stronger squares are larger shares."
    )
    drawing = f'<svg class="matrix" viewBox="{box}" role="img" aria-label="confusion matrix">{picture}</svg>'
    return f'<div class="wide">{words}{drawing}</div>'


def _pairs(findings: Findings) -> str:
    pairs = findings.most_confused(_PAIRS)
    if not pairs:
        return paragraph("No two classes were confused.")
    support = findings.classes.support
    rows = ""
    for pair in pairs:
        names = (f"<td>{name(findings.labels[index])}</td>" for index in (pair.label, pair.prediction))
        share = percent(pair.images / support[pair.label])
        counts = (f'<td class="number">{value}</td>' for value in (f"{pair.images:,}", share))
        rows += f"<tr>{''.join([*names, *counts])}</tr>"
    head = "<tr><th>it is</th><th>answered</th><th>images</th><th>of the class</th></tr>"
    return f"<div><h3>Most often confused</h3><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>"
