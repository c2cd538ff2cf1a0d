"""The arguments of a run, kept for resuming or repeating it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .options import RUN_ONLY, Options


@dataclass(frozen=True)
class Plan:
    """The arguments of `train`. `model` is None if it was given in memory."""

    data: str
    model: str | None
    output: str
    overwrite: bool
    upload_repo: str | None
    options: Options

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "options": self.options.to_dict(), "folder": str(Path.cwd())}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The plan from the result of `to_dict`. Raises a ValueError for anything else."""
        values, names = dict(values), ("data", "model")
        try:
            folder = values.pop("folder")
            if folder != str(Path.cwd()):  # the paths are relative to the folder where the run was started
                moved = {name: os.path.join(folder, values[name]) for name in names if values[name] is not None}
                values.update({name: path for name, path in moved.items() if os.path.exists(path)})
            return cls(**{**values, "options": Options.of(values["options"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"the run's options cannot be read ({error}): start it anew (--overwrite)") from None

    def as_options(self) -> dict[str, Any]:
        """The content of args.yaml, which `--config` reads."""
        given = {"data": self.data, "model": self.model, "output": self.output}
        return {name: value for name, value in given.items() if value is not None} | self.options.to_dict()

    def numbers(self) -> dict[str, Any]:
        """The options that affect the run's numbers."""
        return {name: value for name, value in self.options.to_dict().items() if name not in RUN_ONLY}

    def command(self) -> str:
        """The command that repeats the run, with all options that differ from their defaults."""
        defaults = Options().to_dict()
        words = ["python -m mlx_convnextv2.train"]
        for name, value in self.as_options().items():
            if value is None or (name in defaults and value == defaults[name]):
                continue
            words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}"))
        return " ".join(words)
