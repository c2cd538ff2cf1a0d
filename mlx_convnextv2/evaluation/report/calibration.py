"""Whether confidence can be believed: the reliability curve."""

from __future__ import annotations

import numpy as np

from ...pages.html import paragraph, percent, section
from ..findings import Findings
from .charts import SHARE, Axis, Bars, Line, chart

_CLOSE = 0.02  # of a difference that is not worth a word


def calibration(findings: Findings) -> str:
    found = findings.calibration
    total = max(int(found.counts.sum()), 1)
    bins = [i for i in range(len(found.counts)) if found.counts[i]]
    spans = [f"confidence {percent(found.edges[i], 0)} to {percent(found.edges[i + 1], 0)}" for i in bins]
    curve = Line(
        "how often these are right",
        [(float(found.confidence[i]), float(found.accuracy[i])) for i in bins],
        [f"{span}: {percent(float(found.accuracy[i]))} right" for i, span in zip(bins, spans, strict=True)],
    )
    counts = Bars(
        "share of the answers",
        [(float(found.edges[i]), float(found.edges[i + 1]), found.counts[i] / total) for i in bins],
        [f"{span}: {found.counts[i]:,} of {total:,} answers" for i, span in zip(bins, spans, strict=True)],
    )
    drawing = chart(
        "Confidence of the answers, and how often they are right",
        Axis("confidence", 0, 1, SHARE, ".0%"),
        Axis("", 0, 1, SHARE, ".0%"),
        [Line("as often as claimed", [(0, 0), (1, 1)], style="guide"), curve],
        counts,
    )
    return section("Calibration", paragraph(*_words(findings)), drawing)


def _words(findings: Findings) -> list[str]:
    claimed = float(np.mean(findings.scores[:, 0])) if len(findings) else float("nan")
    gap = claimed - findings.top1
    verdict = "On the whole it claims as much as it keeps."
    if gap > _CLOSE:
        verdict = "It is more confident than it is right: take its percentages with a grain of salt."
    elif gap < -_CLOSE:
        verdict = "It is right more often than it claims."
    error = findings.calibration.expected_error
    return [
        f"On average it is {percent(claimed)} confident, and {percent(findings.top1)} of its answers are right.",
        verdict,
        f"The expected calibration error, the mean distance of the curve from the dotted line, is {percent(error)}.",
    ]
