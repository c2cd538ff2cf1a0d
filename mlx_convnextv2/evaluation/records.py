"""What was found as files for programs: JSON with the figures, CSV with a line for each image."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from .. import __version__
from ..messages import csv_cell
from .results import Evaluation

_MISTAKES = 100
COLUMNS = ("image", "label", "prediction", "correct", "score", "label_score", "rank", "error")


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The figures under the names that docs/evaluating.md explains. What is no number is None."""
    precision, recall, f1 = evaluation.classes.macro()
    return {
        "mlx_convnextv2": __version__,
        "model": evaluation.model,
        "data": evaluation.data,
        "images": len(evaluation),
        "seconds": round(evaluation.seconds, 3),
        "top1": _number(evaluation.top1),
        "top1_interval": [*map(_number, evaluation.top1_interval)],
        "top5": _number(evaluation.top5),
        "loss": _number(evaluation.loss),
        "macro": {"precision": _number(precision), "recall": _number(recall), "f1": _number(f1)},
        "calibration": _calibration(evaluation),
        "classes": _classes(evaluation),
        "confusion_matrix": [vars(confusion) for confusion in evaluation.confusions],
        "mistakes": [_mistake(evaluation, index) for index in evaluation.mistakes(_MISTAKES)],
        "failed": [{"image": str(failure.image), "error": failure.error} for failure in evaluation.failures],
    }


def as_json(evaluation: Evaluation) -> bytes:
    return f"{json.dumps(to_json(evaluation), indent=1)}\n".encode()


def as_csv(evaluation: Evaluation) -> bytes:
    """A header and a line for each image; the ones that failed come last. Ranks begin at 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    labels = [csv_cell(label) for label in evaluation.labels]
    for i, image in enumerate(evaluation.images):
        scores = (float(evaluation.scores[i, 0]), float(evaluation.target_scores[i]))
        named = (labels[evaluation.targets[i]], labels[evaluation.predictions[i]])
        rank = int(evaluation.ranks[i])
        writer.writerow([csv_cell(image), *named, int(rank == 0), *(f"{score:.6g}" for score in scores), rank + 1, ""])
    for failure in evaluation.failures:
        writer.writerow([csv_cell(failure.image), *[""] * (len(COLUMNS) - 2), csv_cell(failure.error)])
    return text.getvalue().encode("utf-8", "backslashreplace")


def _calibration(evaluation: Evaluation) -> dict[str, Any]:
    found = evaluation.calibration
    edges = [*map(float, found.edges)]
    bins = [
        {"from": low, "to": high, "images": int(count), "confidence": _number(claimed), "accuracy": _number(kept)}
        for low, high, count, claimed, kept in zip(
            edges[:-1], edges[1:], found.counts, found.confidence, found.accuracy, strict=True
        )
    ]
    return {"expected_error": _number(found.expected_error), "bins": bins}


def _classes(evaluation: Evaluation) -> list[dict[str, Any]]:
    found = evaluation.classes
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
        for index, label in enumerate(evaluation.labels)
    ]


def _mistake(evaluation: Evaluation, index: int) -> dict[str, Any]:
    return {
        "image": str(evaluation.images[index]),
        "label": evaluation.labels[evaluation.targets[index]],
        "prediction": evaluation.labels[evaluation.predictions[index]],
        "score": float(evaluation.scores[index, 0]),
        "label_score": float(evaluation.target_scores[index]),
        "rank": int(evaluation.ranks[index]) + 1,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
