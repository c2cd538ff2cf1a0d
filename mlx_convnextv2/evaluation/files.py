"""The files that an evaluation writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import output_files

if TYPE_CHECKING:
    from .findings import Findings

_Name = str | os.PathLike[str] | None


def check_outputs(*, json: _Name = None, csv: _Name = None, plot: _Name = None, report: _Name = None) -> None:
    """Raise the errors of `Evaluation.write` before minutes of measuring.

    Raises:
        OSError: a file cannot be written.
        ValueError: two names are the same file; matplotlib is missing; or a plot of this kind cannot be drawn.
    """
    named = [Path(file).expanduser() for file in (json, csv, plot, report) if file is not None]
    own = [file.resolve() for file in named if file.is_file() or not file.exists()]  # not /dev/stdout
    if len(set(own)) < len(own):
        raise ValueError("two of the files to write are one: give each its own name")
    if plot is not None:
        from . import plots

        plots.check(Path(plot))
    for file in named:
        output_files.check(file)


def write(findings: Findings, files: Mapping[str, _Name]) -> None:
    check_outputs(**files)
    for kind, name in files.items():
        if name is not None:
            output_files.write(Path(name).expanduser(), _content(findings, kind, Path(name)))


def _content(findings: Findings, kind: str, file: Path) -> bytes:
    if kind == "plot":
        from . import plots

        return plots.drawn(findings, file.suffix[1:].lower())
    if kind == "report":
        from .report.page import as_html

        return as_html(findings).encode("utf-8", "backslashreplace")
    from . import records

    return records.as_json(findings) if kind == "json" else records.as_csv(findings)
