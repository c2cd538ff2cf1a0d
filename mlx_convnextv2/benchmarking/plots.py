"""The results of a benchmark as a picture."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files import output_files
from .findings import ColdStart, Findings, Measurement, Point, Spread
from .peers import OURS, PEERS
from .tables import digits

SUFFIXES = (".png", ".svg", ".pdf")
# Ours stands out; the peers keep their colours from one picture to the next (Okabe and Ito's colour-blind palette).
_HUES = ("#D55E00", "#000000", "#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#999999")
_COLOURS = dict(zip([OURS, *PEERS], _HUES, strict=True))
_AXES = {"batch": "batch size", "pixels": "pixels of the image", "size": "million parameters of the model"}


def check(file: Path) -> None:
    """Raise a ValueError if matplotlib is missing, or if a `file` of this kind cannot be drawn."""
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the plot's file must end in {', '.join(SUFFIXES)}, not {file.name!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('--plot needs matplotlib: pip install "mlx_convnextv2[benchmark]"')


def draw(report: Findings[Any], file: Path) -> None:
    """Draw the results of "compare", "cold-start" or "scale". The file is written whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure  # pyplot would change the program's backend

    style: Any = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10, "axes.titlesize": 11}
    with matplotlib.rc_context(style):
        figure = Figure(layout="constrained")
        _DRAWINGS[report.mode](figure, report)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=150, format=file.suffix[1:].lower())
    output_files.write(file, buffer.getvalue())


def _compare(figure: Any, report: Findings[Measurement]) -> None:
    """A panel for each batch size and dtype. Bars show the time for an image, shortest first."""
    panels = list(dict.fromkeys((r.dtype, r.batch) for r in report.results))
    rows = [[r for r in report.results if (r.dtype, r.batch) == panel] for panel in panels]
    axes = _panels(figure, len(panels), max(map(len, rows)))
    for axis, (dtype, batch), points in zip(axes, panels, rows, strict=True):
        scale = 1000 / batch
        notes = [f"  {digits(scale * r.seconds.median)} ms{_times(r)}" for r in points]
        spreads = [Spread(*(scale * s for s in (r.seconds.median, r.seconds.min, r.seconds.max))) for r in points]
        _bars(axis, points, spreads, notes)
        axis.set(title=f"{dtype}, batch {batch}", xlabel="ms for an image")
    height, width = report.image_size or (0, 0)
    figure.suptitle(f"{report.model}, {height} x {width}, {report.system} {report.machine}")


def _cold_start(figure: Any, report: Findings[ColdStart]) -> None:
    results = report.results
    time, memory = _panels(figure, 2, len(results))
    _bars(time, results, [r.seconds for r in results], [f"  {r.seconds.median:.2f} s{_times(r)}" for r in results])
    time.set(title="whole process", xlabel="seconds")
    peaks = [r.peak_bytes / 1e6 for r in results]
    _bars(memory, results, [Spread(p, p, p) for p in peaks], [f"  {p:.0f} MB" for p in peaks])
    memory.set(title="peak memory", xlabel="MB")
    figure.suptitle(f"One image with {report.model}, {report.system} {report.machine}")


def _scale(figure: Any, report: Findings[Point]) -> None:
    """A panel for each growing amount, with logarithmic axes. The dotted line is linear growth."""
    results = report.results
    panels = [axis for axis in _AXES if any(r.axis == axis for r in results)]
    figure.set_size_inches(4.2 * len(panels), 4.6)
    exponents = {(g.contender, g.axis): g.exponent for g in report.growth}
    for axis, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for contender in dict.fromkeys(r.contender for r in results):
            points = [r for r in results if (r.axis, r.contender) == (name, contender)]
            amounts = [p.amount for p in points]
            ms = [1000 * p.seconds.median for p in points]
            label = contender
            if (contender, name) in exponents:
                label += f", exponent {exponents[contender, name]:.2f}"
            axis.plot(amounts, ms, "o-", color=_COLOURS[contender], label=label, markersize=4)
            if contender == OURS and ms:
                axis.plot(
                    amounts, [ms[0] * a / amounts[0] for a in amounts], ":", color="0.5", label="linear", zorder=0
                )
        axis.set(xscale="log", yscale="log", xlabel=_AXES[name], ylabel="ms for a pass")
        ticks = sorted({p.amount for p in results if p.axis == name})
        axis.set_xticks(ticks, [_tick(name, tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_yticks([digit * 10**power for power in range(-2, 6) for digit in (1, 2, 5)])
        times = [1000 * r.seconds.median for r in results if r.axis == name]
        axis.set_ylim(min(times) / 1.3, max(times) * 1.6)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    figure.suptitle(f"How time grows: {report.model}, {report.system} {report.machine}")


_DRAWINGS: dict[str, Callable[[Any, Findings[Any]], None]] = {
    "compare": _compare,
    "cold-start": _cold_start,
    "scale": _scale,
}


def _panels(figure: Any, count: int, bars: int) -> list[Any]:
    """Up to two panels a row, high enough for their bars."""
    columns = min(2, count)
    lines = -(-count // columns)
    figure.set_size_inches(5.2 * columns + 1, lines * (1.3 + 0.42 * bars) + 0.4)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    return axes[:count]


def _bars(axis: Any, results: Sequence[Measurement | ColdStart], values: list[Spread], notes: list[str]) -> None:
    names = [r.contender for r in results]
    medians = [v.median for v in values]
    spread = [[v.median - v.min for v in values], [v.max - v.median for v in values]]
    axis.barh(names, medians, xerr=spread, color=[_COLOURS[n] for n in names], height=0.6, error_kw={"ecolor": "0.3"})
    for i, (value, note) in enumerate(zip(values, notes, strict=True)):
        axis.text(value.max, i, note, va="center", fontsize=8.5)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.5 * max(v.max for v in values))
    axis.tick_params(left=False)


def _times(result: Measurement | ColdStart) -> str:
    return "" if result.contender == OURS else f" (ours takes {result.ratio.median:.3g}x)"


def _tick(axis: str, amount: int) -> str:
    if axis == "pixels":
        return f"{round(amount**0.5)}²"
    return f"{amount / 1e6:.3g}" if axis == "size" else str(amount)
