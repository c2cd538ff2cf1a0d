"""The most confident mistakes, as pictures within the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from ...images.decode import open_image
from ..findings import Findings
from .html import name, paragraph, percent, section, text

_SIDE = 320  # pixels of a picture, at most
_QUALITY = 80
_SHOWN = 160  # pixels on the page, to which small pictures grow


def mistakes(findings: Findings, most: int) -> str:
    """Up to `most` wrong answers, the most confident first. Each picture takes about 20 kB of the page."""
    wrong = findings.mistakes()
    if not wrong:
        return section("Mistakes", paragraph("Every answer was right."))
    shown = wrong[:most]
    words = f"{len(wrong):,} of {len(findings):,} answers are wrong."
    if shown:
        words += " These are the most confident:" if len(shown) < len(wrong) else " The most confident come first:"
    cards = "".join(_card(findings, index) for index in shown)
    return section("Mistakes", paragraph(words), f'<div class="gallery">{cards}</div>')


def _card(findings: Findings, index: int) -> str:
    answer, right = (name(findings.labels[c[index]]) for c in (findings.predictions, findings.targets))
    file = findings.images[index]
    scores = percent(float(findings.scores[index, 0]), 0), percent(float(findings.target_scores[index]), 0)
    caption = f"answered <b>{answer}</b> {scores[0]}<br>it is <b>{right}</b> {scores[1]}"
    where = f'<span class="file" title="{text(file, 1000)}">{text(file.name, 40)}</span>'
    return f"<figure>{_picture(file)}<figcaption>{caption}<br>{where}</figcaption></figure>"


def _picture(file: Path) -> str:
    try:
        image = open_image(file)
    except (OSError, ValueError):  # it was there a moment ago
        return '<div class="gone">the file cannot be read any more</div>'
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    if max(image.size) <= _SHOWN:
        image.save(buffer, "PNG")
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=_QUALITY)
        kind = "jpeg"
    address = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="" loading="lazy" src="data:image/{kind};base64,{address}">'
