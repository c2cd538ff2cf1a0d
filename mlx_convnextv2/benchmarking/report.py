"""The report of a benchmark, as text and as JSON. docs/benchmark.md describes the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import output_files
from . import tables
from .findings import Contender, Failure, Finding, Findings, Growth, LeftOut, News, Result

Watch = Callable[["Report[Any]", News], None]


@dataclass
class Report(Findings[Result]):
    """The results of one benchmark. `str` gives its tables.

    Args:
        watch: called after each addition, with the report so far and the new results, all of one kind.
    """

    watch: Watch | None = field(default=None, repr=False, compare=False)

    def add(self, *news: Finding | Failure | LeftOut) -> None:
        """Add results, all of one kind, and call `watch`."""
        kinds: dict[type, list[Any]] = {
            **{Contender: self.contenders, Growth: self.growth},
            **{LeftOut: self.left_out, Failure: self.failures},
        }
        for one in news:
            kinds.get(type(one), self.results).append(one)
        if news and self.watch:
            self.watch(self, news)

    def fail(self, sentence: str) -> None:
        self.add(Failure(sentence))

    def to_json(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "watch"}
        findings = {name: [one.to_json() for one in values[name]] for name in ("contenders", "results", "growth")}
        return {**values, **findings}

    def write(self, file: Path) -> None:
        """Write the report as JSON, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        output_files.write(file, f"{json.dumps(self.to_json(), indent=2)}\n".encode())

    def __str__(self) -> str:
        return tables.report(self)
