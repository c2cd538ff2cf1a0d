"""The results as text: the figures, the classes, and the mistakes worth a look."""

from __future__ import annotations

import math

import numpy as np

from ..messages import cut, printable
from .findings import Findings

_MOST_CLASSES = 30  # lines; if there are more classes, those with the lowest F1
_MOST_PAIRS = 5
_MOST_MISTAKES = 5
_MATRIX = 12  # classes whose confusion matrix fits a terminal
_NAME = 32  # characters of a label


def table(findings: Findings) -> str:
    """All tables, each a paragraph."""
    parts = [_figures(findings), _classes(findings), _matrix(findings), _pairs(findings), _mistakes(findings)]
    return "\n\n".join(part for part in parts if part)


def percent(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}%}"


def _figures(findings: Findings) -> str:
    low, high = findings.top1_interval
    classes = int((findings.classes.support > 0).sum())
    named = f"{classes} of {len(findings.labels)}" if classes < len(findings.labels) else f"{classes}"
    failed = f", {len(findings.failures)} failed" if findings.failures else ""
    precision, recall, f1 = findings.classes.macro()
    rate = len(findings) / findings.seconds if findings.seconds else math.nan
    lines = [
        ("model", findings.model),
        ("images", f"{len(findings):,} in {named} classes, from {findings.data}{failed}"),
        ("top-1", f"{percent(findings.top1, 2)} (95 % interval {percent(low, 2)} to {percent(high, 2)})"),
        ("top-5", percent(findings.top5, 2)),
        ("loss", f"{findings.loss:.4f}"),
        ("by class", f"precision {percent(precision)}, recall {percent(recall)}, F1 {percent(f1)}: means over classes"),
        ("calibration", f"error {percent(findings.calibration.expected_error)}, {confidence_words(findings)}"),
        ("speed", f"{rate:,.1f} images a second"),
    ]
    if len(findings.labels) <= 5:
        del lines[3]
    return "\n".join(f"{name:<12} {printable(text)}" for name, text in lines)


def confidence_words(findings: Findings) -> str:
    """Whether the model is overconfident or underconfident, in words."""
    claimed = float(np.mean(findings.scores[:, 0]))
    return f"mean confidence {percent(claimed)} where {percent(findings.top1)} are right"


def _classes(findings: Findings) -> str:
    found = findings.classes
    present = np.flatnonzero(found.support + found.predicted)
    shown = present
    title = ""
    if len(present) > _MOST_CLASSES:
        shown = present[np.argsort(found.f1[present], kind="stable")][:_MOST_CLASSES]
        title = f"The {_MOST_CLASSES} classes with the lowest F1, of {len(present)}:\n"
    names = [name(findings, int(index)) for index in shown]
    width = max([len("class"), *map(len, names)])
    header = f"{'class':<{width}}  {'precision':>9}  {'recall':>7}  {'F1':>7}  {'images':>7}"
    rows = [
        f"{label:<{width}}  {percent(found.precision[i]):>9}  {percent(found.recall[i]):>7}  {percent(found.f1[i]):>7}"
        f"  {found.support[i]:>7,}"
        for label, i in zip(names, shown, strict=True)
    ]
    return title + "\n".join([header, *rows])


def _matrix(findings: Findings) -> str:
    """The confusion matrix, if it fits. Columns are numbered like rows."""
    if not 1 < len(findings.labels) <= _MATRIX:
        return ""
    matrix = findings.confusion_matrix
    names = [f"{index} {name(findings, index)}" for index in range(len(matrix))]
    width = max(map(len, names))
    cell = max(3, *(len(str(count)) for count in matrix.flat))
    rows = [
        f"{label:<{width}}  " + " ".join(f"{count or '.':>{cell}}" for count in row)
        for label, row in zip(names, matrix, strict=True)
    ]
    head = f"{'':<{width}}  " + " ".join(f"{index:>{cell}}" for index in range(len(matrix)))
    return "\n".join(["Confusion matrix: a row is the right class, a column the answer", head, *rows])


def _pairs(findings: Findings) -> str:
    pairs = findings.most_confused(_MOST_PAIRS)
    lines = [f"  {p.images:>5,}  {name(findings, p.label)} -> {name(findings, p.prediction)}" for p in pairs]
    return "\n".join(["Most often confused", *lines]) if lines else ""


def _mistakes(findings: Findings) -> str:
    lines = []
    for i in findings.mistakes(_MOST_MISTAKES):
        answer, right = (name(findings, int(classes[i])) for classes in (findings.predictions, findings.targets))
        score = percent(float(findings.scores[i, 0]))
        lines.append(f"  {score:>6}  {answer}, but it is {right}: {printable(findings.images[i])}")
    return "\n".join(["Most confident mistakes", *lines]) if lines else ""


def name(findings: Findings, index: int) -> str:
    """A class's label on one line, cut to the column's width."""
    return cut(printable(findings.labels[index]), _NAME)
