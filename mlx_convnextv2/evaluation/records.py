"""The results as files for programs: JSON with the figures, CSV with a line for each image."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from .._version import __version__
from ..messages import csv_cell
from .findings import Findings

_MISTAKES = 100
COLUMNS = ("image", "label", "prediction", "correct", "score", "label_score", "rank", "error")


def to_json(findings: Findings) -> dict[str, Any]:
    """The figures, under the names that docs/evaluating.md explains. NaN becomes None."""
    precision, recall, f1 = findings.classes.macro()
    return {
        "mlx_convnextv2": __version__,
        "model": findings.model,
        "data": findings.data,
        "images": len(findings),
        "seconds": round(findings.seconds, 3),
        "top1": _number(findings.top1),
        "top1_interval": [*map(_number, findings.top1_interval)],
        "top5": _number(findings.top5),
        "loss": _number(findings.loss),
        "macro": {"precision": _number(precision), "recall": _number(recall), "f1": _number(f1)},
        "calibration": _calibration(findings),
        "classes": _classes(findings),
        "confusion_matrix": [vars(confusion) for confusion in findings.confusions],
        "mistakes": [_mistake(findings, index) for index in findings.mistakes(_MISTAKES)],
        "failed": [{"image": str(failure.image), "error": failure.error} for failure in findings.failures],
    }


def as_json(findings: Findings) -> bytes:
    return f"{json.dumps(to_json(findings), indent=1)}\n".encode()


def as_csv(findings: Findings) -> bytes:
    """A header and a line for each image, failures last. Ranks begin at 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    labels = [csv_cell(label) for label in findings.labels]
    for i, image in enumerate(findings.images):
        scores = (float(findings.scores[i, 0]), float(findings.target_scores[i]))
        named = (labels[findings.targets[i]], labels[findings.predictions[i]])
        rank = int(findings.ranks[i])
        writer.writerow([csv_cell(image), *named, int(rank == 0), *(f"{score:.6g}" for score in scores), rank + 1, ""])
    for failure in findings.failures:
        writer.writerow([csv_cell(failure.image), *[""] * (len(COLUMNS) - 2), csv_cell(failure.error)])
    return text.getvalue().encode("utf-8", "backslashreplace")


def _calibration(findings: Findings) -> dict[str, Any]:
    found = findings.calibration
    edges = [*map(float, found.edges)]
    bins = [
        {"from": low, "to": high, "images": int(count), "confidence": _number(claimed), "accuracy": _number(kept)}
        for low, high, count, claimed, kept in zip(
            edges[:-1], edges[1:], found.counts, found.confidence, found.accuracy, strict=True
        )
    ]
    return {"expected_error": _number(found.expected_error), "bins": bins}


def _classes(findings: Findings) -> list[dict[str, Any]]:
    found = findings.classes
    return [
        {
            "index": index,
            "label": label,
            "precision": float(found.precision[index]),
            "recall": float(found.recall[index]),
            "f1": float(found.f1[index]),
            "support": int(found.support[index]),
            "predicted": int(found.predicted[index]),
        }
        for index, label in enumerate(findings.labels)
    ]


def _mistake(findings: Findings, index: int) -> dict[str, Any]:
    return {
        "image": str(findings.images[index]),
        "label": findings.labels[findings.targets[index]],
        "prediction": findings.labels[findings.predictions[index]],
        "score": float(findings.scores[index, 0]),
        "label_score": float(findings.target_scores[index]),
        "rank": int(findings.ranks[index]) + 1,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
