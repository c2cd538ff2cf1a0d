"""The pictures of a run, if matplotlib is installed: its curves, and which classes are confused."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any

from ..checkpoints.processor import ConvNextImageProcessor
from ..evaluation import evaluate
from ..images.class_folders import ClassFolders
from ..inference.classifier import ImageClassifier
from ..model.convnextv2 import ConvNextV2ForImageClassification
from .progress import Row

CURVES_FILE, CONFUSION_FILE = "results.png", "confusion_matrix.png"


def pictures_of(
    model: ConvNextV2ForImageClassification,
    processor: ConvNextImageProcessor,
    val: ClassFolders,
    rows: Sequence[Row],
    best: Row,
    name: str,
) -> dict[str, bytes]:
    """The pictures by file name. There are none without matplotlib, which the extra `benchmark` brings."""
    if importlib.util.find_spec("matplotlib") is None:
        return {}
    from ..evaluation import plots

    findings = evaluate(ImageClassifier(model, processor), val)
    findings.model = name
    return {CURVES_FILE: draw_curves(rows, best), CONFUSION_FILE: plots.drawn(findings, "png")}


def draw_curves(rows: Sequence[Row], best: Row) -> bytes:
    """A PNG of losses and accuracies over the epochs or the penalties, with a mark at the best."""
    from matplotlib.figure import Figure  # pyplot would change the program's backend

    by_penalty = rows[0].l2 is not None
    places: list[Any] = [row.l2 if by_penalty else row.epoch for row in rows]
    figure: Any = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    losses.plot(places, [_or_nan(row.train_loss) for row in rows], ".-", label="train")
    losses.plot(places, [row.val_loss for row in rows], ".-", label="val")
    losses.set_ylabel("cross-entropy")
    accuracies.plot(places, [row.val_top1 for row in rows], ".-", label="top-1")
    accuracies.plot(places, [row.val_top5 for row in rows], ".-", label="top-5")
    accuracies.set_ylabel("share of the validation images")
    for axes in (losses, accuracies):
        axes.axvline(places[list(rows).index(best)], color="grey", linewidth=0.8, linestyle=":", label="kept")
        axes.set_xlabel("l2 penalty on the head" if by_penalty else "epoch")
        if by_penalty:
            axes.set_xscale("log" if all(places) else "linear")
            axes.invert_xaxis()
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
