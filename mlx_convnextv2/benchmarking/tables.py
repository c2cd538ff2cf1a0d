"""The results of a benchmark as text: lines and tables that fit into 80 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from ..ops import tolerances
from .findings import (
    ColdStart,
    Contender,
    Findings,
    Growth,
    KernelCheck,
    Measurement,
    News,
    OperationTiming,
    Point,
    Spread,
    TunedOperation,
)
from .peers import OURS

_WIDTH = 80


def report(findings: Findings[Any]) -> str:
    """All results."""
    results = (list(group) for _, group in groupby(findings.results, _together))
    pieces: list[Any] = [findings.contenders, *results, findings.growth, findings.left_out, findings.failures]
    return "\n".join(news(findings, piece) for piece in pieces if piece)


def news(findings: Findings[Any], news: News) -> str:
    """The new results of a report, all of one kind."""
    return _FORMATS.get(type(news[0]), _lines)(findings, news)


def _together(result: Any) -> tuple[object, ...]:
    """The key that the results of one table share."""
    if type(result) is Measurement:
        return result.dtype, result.batch
    if isinstance(result, TunedOperation):
        return result.dtype, result.batch
    return (result.dtype, result.shape[0]) if isinstance(result, OperationTiming) else ()


def _lines(findings: Findings[Any], sentences: Sequence[str]) -> str:
    return "\n".join(sentences)


def _contenders(findings: Findings[Any], contenders: Sequence[Contender]) -> str:
    lines = []
    for one in contenders:
        packages = ", ".join(f"{package} {version}" for package, version in one.versions.items())
        line = f"{one.contender} in {one.dtype}: {one.device}; loaded in {one.load_s:.2f} s ({packages})"
        lines += textwrap.wrap(line, _WIDTH, subsequent_indent="  ")
    return "\n".join(lines)


def _measurements(findings: Findings[Any], results: Sequence[Measurement]) -> str:
    on_gpu = any(one.gpu_peak_bytes for one in results)
    rows = [("contender", "ms (least..most)", "images/s", "MB+GPU" if on_gpu else "MB", "ours/theirs", "differ")]
    for one in results:
        memory = f"{one.peak_bytes / 1e6:.0f}" + (f"+{one.gpu_peak_bytes / 1e6:.0f}" if one.gpu_peak_bytes else "")
        ours = one.contender == OURS
        answers = ("", "") if ours else (_ratio(one.ratio), f"{one.difference:.0e}")
        rows.append((one.contender, _spread(one.seconds, 1000), digits(one.images_per_s), memory, *answers))
    return f"{results[0].dtype}, batch {results[0].batch}:\n{_table(rows)}"


def _points(findings: Findings[Any], points: Sequence[Point]) -> str:
    """One table, or the part of it with these points. A point on several axes is one row."""
    header = ("contender", "size", "batch", "pixels", "ms (least..most)")
    seen = {(one.contender, one.size, one.batch, one.side): one for one in points}
    rows = [(*map(str, key[:3]), f"{key[3]}x{key[3]}", _spread(one.seconds, 1000)) for key, one in seen.items()]
    begins = len(findings.results) == len(points)
    return _table([header, *rows] if begins else rows, least=(16, 5, 5, 7, 20))


def _growth(findings: Findings[Any], lines: Sequence[Growth]) -> str:
    return "\n".join(f"{line.contender}: time grows as {line.axis}^{line.exponent:.2f}" for line in lines)


def _cold_starts(findings: Findings[Any], results: Sequence[ColdStart]) -> str:
    rows = [("contender", "seconds (least..most)", "MB", "ours/theirs", "memory")]
    for one in results:
        ratios = ("", "") if one.contender == OURS else (_ratio(one.ratio), f"{one.memory_ratio:.2f}")
        rows.append((one.contender, _spread(one.seconds), f"{one.peak_bytes / 1e6:.0f}", *ratios))
    return f"One image with {findings.model}, whole processes:\n{_table(rows)}"


def _checks(findings: Findings[Any], checks: Sequence[KernelCheck]) -> str:
    """A row for each kernel, with the worst of its shapes and dtypes."""
    rows = [("kernel", "verdict", "of allowed", "worst in", "at")]
    for kernel in dict.fromkeys(check.kernel for check in checks):
        own = [check for check in checks if check.kernel == kernel]
        failed = [check for check in own if not check.passed]
        worst = max(own, key=_share)
        verdict = f"{len(failed)} of {len(own)} WRONG" if failed else f"{len(own)} right"
        rows.append((kernel, verdict, f"{_share(worst):.0%}", worst.dtype, _shape(worst.shape)))
    side = findings.image_size[0] if findings.image_size else 0
    title = f"Kernels on {findings.device}, for the shapes of {findings.model} at {side} pixels:"
    return f"{title}\n{_table(rows, left=(0, 1, 3, 4))}"


def _timings(findings: Findings[Any], timings: Sequence[OperationTiming]) -> str:
    """Milliseconds, and the kernels' speedup over what MLX compiles."""
    rows = [("operation", "shape", "plain", "compiled", "kernel", "gain", "auto")]
    for one in timings:
        kernel = ("-", "-") if one.kernel is None else (digits(one.kernel), digits(one.compiled / one.kernel))
        rows.append((one.operation, _shape(one.shape), digits(one.plain), digits(one.compiled), *kernel, one.chosen))
    return f"Milliseconds in {timings[0].dtype}, batch {timings[0].shape[0]}:\n{_table(rows, left=(0, 6))}"


def _tuned(findings: Findings[Any], operations: Sequence[TunedOperation]) -> str:
    """Milliseconds of the chosen candidate, and how many times as long the rule's candidate and plain MLX take."""
    rows = [("operation", "shape", "computed by", "ms", "rule", "plain")]
    for one in operations:
        own = one.milliseconds.get(one.chosen)
        times = [one.milliseconds.get(name) for name in (one.rule, "plain")]
        rule, plain = (f"{time / own:.2f}" if own and time else "-" for time in times)
        rows.append((one.operation, _shape(one.shape), one.chosen, digits(own) if own else "-", rule, plain))
    title = f"On {findings.device} in {operations[0].dtype}, batch {operations[0].batch}, and what others take:"
    return f"{title}\n{_table(rows, left=(0, 1, 2))}"


_FORMATS: dict[type, Callable[[Findings[Any], Any], str]] = {
    Contender: _contenders,
    Measurement: _measurements,
    Point: _points,
    Growth: _growth,
    ColdStart: _cold_starts,
    KernelCheck: _checks,
    OperationTiming: _timings,
    TunedOperation: _tuned,
}


def _table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,), least: Sequence[int] = ()) -> str:
    """Columns as wide as their widest cell and at least `least`. Columns in `left` are flush left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths = [max(pair) for pair in zip(widths, least or widths, strict=True)]
    gap = "  " if sum(widths) + 2 * (len(widths) - 1) <= _WIDTH else " "
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(gap.join(cells).rstrip())
    return "\n".join(lines)


def _spread(values: Spread, unit: float = 1) -> str:
    return f"{digits(values.median * unit)} ({digits(values.min * unit)}..{digits(values.max * unit)})"


def _ratio(values: Spread) -> str:
    return f"{values.median:.2f} ({values.min:.2f}..{values.max:.2f})"


def digits(value: float) -> str:
    """The value with three digits, or with all digits before the point if there are more."""
    if not math.isfinite(value):
        return str(value)
    magnitude = math.floor(math.log10(abs(float(f"{value:.2e}")) or 1))  # of the rounded value
    return f"{value:.{max(0, min(3, 2 - magnitude))}f}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _share(check: KernelCheck) -> float:
    """The difference as a share of the tolerance. NaN counts as the worst."""
    share = check.difference / tolerances.KERNEL[check.dtype]
    return share if share == share else float("inf")
