"""How the model was trained: the curves of results.csv, where the model's folder has one."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from ...pages.html import section
from .charts import Axis, Line, chart

RESULTS_FILE = "results.csv"
_MAX_BYTES = 10_000_000
_MAX_POINTS = 500  # of a curve
_COLUMNS = ("epoch", "l2", "train_loss", "val_loss", "val_top1", "val_top5")

Row = dict[str, float]


def training(folder: Path | None) -> str:
    """Loss and accuracy from epoch to epoch, or against the strength of the penalty; nothing where there are none."""
    rows = read_results(folder / RESULTS_FILE) if folder is not None else []
    by_penalty = bool(rows) and all("l2" in row for row in rows)
    x = "l2" if by_penalty else "epoch"
    rows = [row for row in rows if x in row and (row[x] > 0 or not by_penalty)]
    if len(rows) < 2:
        return ""
    if by_penalty:  # on a logarithmic axis
        rows = sorted(({**row, x: math.log10(row[x])} for row in rows), key=lambda row: row[x])
        axis = Axis.around("penalty on the head's weights (l2), as a power of ten", [row[x] for row in rows])
    else:
        axis = Axis.around("epoch", [row[x] for row in rows])
    rows = rows[:: -(-len(rows) // _MAX_POINTS)]
    losses = [("training", "train_loss", "one"), ("validation", "val_loss", "two")]
    accuracies = [("top-1", "val_top1", "one"), ("top-5", "val_top5", "two")]
    drawings = [_curves("Loss", axis, x, rows, losses, "g"), _curves("Accuracy", axis, x, rows, accuracies, ".0%")]
    return section("Training", f'<div class="side">{"".join(drawings)}</div>') if any(drawings) else ""


def read_results(file: Path) -> list[Row]:
    """The numbers of each line, under the names of the columns that are known; what is no number is left out."""
    try:
        if file.stat().st_size > _MAX_BYTES:
            return []
        with file.open(encoding="utf-8", errors="replace", newline="") as lines:
            return [_numbers(line) for line in csv.DictReader(lines)]
    except (OSError, csv.Error):
        return []


def _numbers(line: dict[str, str | None]) -> Row:
    row = {}
    for column in _COLUMNS:
        try:
            value = float(line.get(column) or "")
        except ValueError:
            continue
        if math.isfinite(value):
            row[column] = value
    return row


def _curves(
    title: str, axis: Axis, x: str, rows: Sequence[Row], columns: Sequence[tuple[str, str, str]], form: str
) -> str:
    lines = []
    for label, column, style in columns:
        points = [(row[x], row[column]) for row in rows if column in row]
        notes = [f"{label} at {a:g}: {format(b, '.2%' if form == '.0%' else '.4g')}" for a, b in points]
        if points:
            lines.append(Line(label, points, notes, style))
    if not lines:
        return ""
    values = [y for line in lines for _, y in line.points]
    return chart(title, axis, Axis.around("", values, form), lines)
