"""The most confident mistakes, as pictures within the page."""

from __future__ import annotations

from ...pages.html import name, paragraph, percent, section, text
from ...pages.pictures import thumbnail
from ..findings import Findings


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
    return f"<figure>{thumbnail(file)}<figcaption>{caption}<br>{where}</figcaption></figure>"
