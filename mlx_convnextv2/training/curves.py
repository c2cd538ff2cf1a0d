"""results.png: the loss and the accuracy of each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .progress import Row


def draw_curves(path: Path, rows: Sequence[Row], best: Row) -> None:
    """Draw losses and accuracies over the epochs, or over the penalties, with a mark at the best.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('plots need matplotlib: pip install "mlx-convnextv2[benchmark]"') from None
    by_penalty = rows[0].l2 is not None
    places = [row.l2 if by_penalty else row.epoch for row in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, accuracies = figure.subplots(1, 2)
    losses.plot(places, [_or_nan(row.train_loss) for row in rows], ".-", label="train")
    losses.plot(places, [row.val_loss for row in rows], ".-", label="val")
    losses.set_ylabel("cross-entropy")
    accuracies.plot(places, [row.val_top1 for row in rows], ".-", label="top-1")
    accuracies.plot(places, [row.val_top5 for row in rows], ".-", label="top-5")
    accuracies.set_ylabel("share of the validation images")
    for axes in (losses, accuracies):
        axes.axvline(places[rows.index(best)], color="grey", linewidth=0.8, linestyle=":", label="kept")
        axes.set_xlabel("l2 penalty on the head" if by_penalty else "epoch")
        if by_penalty:
            axes.set_xscale("log")
            axes.invert_xaxis()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
