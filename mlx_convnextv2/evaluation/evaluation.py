"""An evaluation: what was found, as tables and files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from . import files, records, tables
from .findings import Findings


@dataclass
class Evaluation(Findings):
    """What one evaluation found. As a string it is its tables."""

    def __str__(self) -> str:
        return tables.table(self)

    def to_json(self) -> dict[str, Any]:
        """All figures, without the answers to single images but the most confident mistakes."""
        return records.to_json(self)

    def write(
        self,
        *,
        json: str | os.PathLike[str] | None = None,
        csv: str | os.PathLike[str] | None = None,
        plot: str | os.PathLike[str] | None = None,
        report: str | os.PathLike[str] | None = None,
    ) -> None:
        """Write files, each whole or not at all. docs/evaluating.md has what they hold.

        Args:
            json: all figures, as `to_json` has them.
            csv: one line for each image, those with an error too.
            plot: calibration, accuracy by class and the confusion matrix, as a .png, .svg or .pdf. Needs matplotlib.
            report: one HTML page with everything, and the most confident mistakes as pictures. It needs no other file.

        Raises:
            OSError: a file cannot be written.
            ValueError: as `check_outputs`.
        """
        files.write(self, {"json": json, "csv": csv, "plot": plot, "report": report})
