"""The results as a picture: calibration, accuracy by class, and which classes are confused."""

from __future__ import annotations

import importlib.util
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..messages import cut, printable

if TYPE_CHECKING:
    from .findings import Findings

SUFFIXES = (".png", ".svg", ".pdf")
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#999999"  # Okabe and Ito's colour-blind palette
_NAMED = 30  # classes whose names fit beside the matrix
_COUNTED = 15  # classes whose counts fit into it
_ROWS = 125  # of the matrix, where there are more classes
_NAME = 20  # characters of a label
# Fonts of macOS, Windows and Linux with letters that matplotlib's own font lacks.
_MORE_FONTS = (
    *("Arial Unicode MS", "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo", "Microsoft YaHei", "Malgun Gothic"),
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei"),
)


def check(file: Path) -> None:
    """Raise a ValueError if matplotlib is missing, or if a `file` of this kind cannot be drawn."""
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the plot's file must end in {', '.join(SUFFIXES)}, not {file.name!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('--plot needs matplotlib: pip install "mlx-convnextv2[benchmark]"')


def drawn(findings: Findings, kind: str) -> bytes:
    """Three panels as the bytes of a file. `kind` is "png", "svg" or "pdf"."""
    import matplotlib
    from matplotlib.figure import Figure  # pyplot would change the program's backend
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    style: Any = {
        "font.family": ["DejaVu Sans", *(name for name in _MORE_FONTS if name in installed)],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "axes.titlesize": 11,
        "text.parse_math": False,  # a label may have dollars in it
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # it becomes a box; the page shows it
        side = 6.0 + 0.12 * min(len(findings.labels), _NAMED)
        figure: Any = Figure(figsize=(4.4 + side, side), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[4.4, side])
        calibration, classes = left.subplots(2, 1)
        _calibration(calibration, findings)
        _classes(classes, findings)
        _confusion(right, findings)
        model = cut(printable(findings.model), 60)
        figure.suptitle(f"{model}: top-1 {findings.top1:.2%} of {len(findings):,} images")
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150, format=kind)
    return buffer.getvalue()


def _calibration(axis: Any, findings: Findings) -> None:
    """Accuracy and number of the answers at each confidence."""
    found = findings.calibration
    filled = found.counts > 0
    width = 1 / len(found.counts)
    share = found.counts / max(found.counts.sum(), 1)
    axis.bar(found.edges[:-1] + width / 2, share, width, color=_GREY, alpha=0.35, label="share of the answers")
    axis.plot([0, 1], [0, 1], ":", color="0.4", label="as often as claimed")
    axis.plot(found.confidence[filled], found.accuracy[filled], "o-", color=_BLUE, markersize=4, label="accuracy")
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", title=f"Calibration, error {found.expected_error:.1%}")
    axis.legend(frameon=False, fontsize=8, loc="upper left")


def _classes(axis: Any, findings: Findings) -> None:
    """The classes' F1, lowest first."""
    found = findings.classes
    present = np.flatnonzero(found.support)
    order = present[np.argsort(found.f1[present], kind="stable")]
    axis.bar(range(len(order)), found.f1[order], 0.8 if len(order) <= 60 else 1.0, color=_ORANGE)
    axis.set(ylim=(0, 1.02), title=f"F1 by class, mean {found.macro()[2]:.1%}")
    if len(order) <= _NAMED:
        axis.set_xticks(range(len(order)), [_name(findings, i) for i in order], rotation=90, fontsize=8)
    else:
        axis.set_xlabel(f"{len(order)} classes in the order of their F1")


def _confusion(figure: Any, findings: Findings) -> None:
    """The confusion matrix. A row is a class, shaded by the share of its images with each answer.

    With many classes it shows only mistakes.
    """
    axis = figure.subplots()
    count = len(findings.labels)
    axis.set(title="Confusion matrix", xlabel="answer", ylabel="right class")
    if count <= _NAMED:
        matrix = findings.confusion_matrix
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        names = [_name(findings, i) for i in range(count)]
        axis.set_xticks(range(count), names, rotation=90, fontsize=8)
        axis.set_yticks(range(count), names, fontsize=8)
        for (row, column), images in np.ndenumerate(matrix):
            if images and count <= _COUNTED:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axis.text(column, row, f"{images:,}", ha="center", va="center", fontsize=8, color=colour)
    else:
        shares, group = findings.mistake_shares(_ROWS)
        whole = len(shares) * group
        image = axis.imshow(shares, cmap="Oranges", vmin=0, interpolation="nearest", extent=(0, whole, whole, 0))
        joined = f", {group} classes a row" if group > 1 else ""
        axis.set_title(f"Mistakes{joined}")
    figure.colorbar(image, ax=axis, shrink=0.6, label="share of the images of the row")
    axis.spines[:].set_visible(False)


def _name(findings: Findings, index: int) -> str:
    return cut(printable(findings.labels[index]), _NAME)
