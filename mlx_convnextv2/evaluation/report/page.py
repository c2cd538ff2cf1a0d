"""An evaluation as one HTML page: its style, script and pictures are within it, and nothing is fetched."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from ..._version import __version__
from ...pages.frame import page
from ...pages.html import name, paragraph, percent, section, text
from ..findings import Findings
from .calibration import calibration
from .classes import classes
from .confusion import confusion
from .pictures import mistakes
from .training import training

_HERE = Path(__file__).parent
_FAILED = 100  # files that are listed


def as_html(findings: Findings, pictures: int = 24) -> str:
    """The page. A browser is told to load nothing and to run no script but the page's own.

    Args:
        pictures: of mistakes, at most.
    """
    style, script = ((_HERE / file).read_text(encoding="utf-8") for file in ("style.css", "table.js"))
    parts = [
        _summary(findings),
        mistakes(findings, pictures),
        confusion(findings),
        classes(findings),
        calibration(findings),
        training(findings.folder),
        _failures(findings),
    ]
    title = f"{findings.top1:.1%} right: {name(findings.model)}"
    return page(title, f"{''.join(parts)}\n{_footer()}", style, script)


def _summary(findings: Findings) -> str:
    low, high = findings.top1_interval
    precision, recall, f1 = findings.classes.macro()
    present = int((findings.classes.support > 0).sum())
    digits = 1 if len(findings) < 2000 else 2
    tiles = [
        ("top-1", percent(findings.top1, digits), f"{percent(low)} to {percent(high)} with 95 % confidence"),
        ("top-5", percent(findings.top5, digits), "the right class is among the five best"),
        ("F1", percent(f1), f"mean over classes; precision {percent(precision)}, recall {percent(recall)}"),
        ("calibration error", percent(findings.calibration.expected_error), "between confidence and accuracy"),
        ("loss", f"{findings.loss:.3f}", "mean cross-entropy, in nats"),
        ("images", f"{len(findings):,}", f"in {present:,} of {len(findings.labels):,} classes"),
    ]
    if len(findings.labels) <= 5:
        del tiles[1]
    shown = "".join(f"<div><dt>{title}</dt><dd>{value}<small>{note}</small></dd></div>" for title, value, note in tiles)
    where = f"<p>on {text(findings.data)}</p>"
    return f'<header><h1>{name(findings.model)}</h1>{where}</header><dl class="tiles">{shown}</dl>'


def _failures(findings: Findings) -> str:
    failed = findings.failures
    if not failed:
        return ""
    more = f"<li>and {len(failed) - _FAILED:,} more</li>" if len(failed) > _FAILED else ""
    items = "".join(f"<li>{text(failure.error, 400)}</li>" for failure in failed[:_FAILED])
    words = f"{len(failed):,} {'image' if len(failed) == 1 else 'images'} could not be answered. No figure counts them."
    return section("Failures", paragraph(words), f"<ul>{items}{more}</ul>")


def _footer() -> str:
    words = (
        "Precision is the share of the answers with a class that are right, recall the share of its images that are "
        "recognised, F1 their harmonic mean; means count each class that has images once."
    )
    return f"<footer><p>{words}</p><p>mlx_convnextv2 {__version__}, {date.today().isoformat()}</p></footer>"
