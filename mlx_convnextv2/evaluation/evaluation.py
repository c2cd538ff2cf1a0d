"""An evaluation's results, as tables and files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from . import files, records, tables
from .findings import Findings


@dataclass
class Evaluation(Findings):
    """The results of one evaluation. `str` gives its tables."""

    def __str__(self) -> str:
        return tables.table(self)

    def to_json(self) -> dict[str, Any]:
        """All figures. Of the answers to single images, it has only the most confident mistakes."""
        return records.to_json(self)

    def write(
        self,
        *,
        json: str | os.PathLike[str] | None = None,
        csv: str | os.PathLike[str] | None = None,
        plot: str | os.PathLike[str] | None = None,
        report: str | os.PathLike[str] | None = None,
    ) -> None:
        """Write files, each whole or not at all. docs/evaluating.md describes their contents.

        Args:
            json: all figures, as `to_json` has them.
            csv: one line for each image, including those with an error.
            plot: calibration, accuracy by class and the confusion matrix, as a .png, .svg or .pdf. Needs matplotlib.
            report: one self-contained HTML page with all results, and pictures of the most confident mistakes.

        Raises:
            OSError: a file cannot be written.
            ValueError: as `check_outputs`.
        """
        files.write(self, {"json": json, "csv": csv, "plot": plot, "report": report})
