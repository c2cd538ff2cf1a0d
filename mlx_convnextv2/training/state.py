"""The state that a run needs to go on exactly where it was, in one file that is written whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..messages import one_line
from .optimizer import Arrays
from .progress import Row

STATE_FILE = "state.safetensors"
FIRST_LOSS_SCALE = 2.0**15
_ARRAYS = ("weights", "average", "first", "second", "best_weights")
_FORMAT = 1


@dataclass(frozen=True)
class TrainingState:
    """A run between two steps. Order, augmentation, drop path and mixing follow from the seed and `step` alone.

    Args:
        weights: by name, float32.
        average: the weights' moving average; empty if there is none.
        first, second: AdamW's moments.
        step: steps done, over all epochs.
        skipped: how many of these steps were skipped because float16 overflowed.
        loss_scale, since_overflow: float16's loss scale, and the steps since it last changed.
        epoch_loss: the sum of the losses of the epoch's steps so far.
        rows: the finished epochs, after the row of the fitted head if there is one.
        best_weights, best: the weights and the row of the best epoch.
        seconds: the time that the run has taken.
        epoch_seconds: the part of it taken by this epoch.
    """

    weights: Arrays
    average: Arrays
    first: Arrays
    second: Arrays
    step: int = 0
    skipped: int = 0
    loss_scale: float = 1.0
    since_overflow: int = 0
    epoch_loss: float = 0.0
    epoch_seconds: float = 0.0
    rows: tuple[Row, ...] = ()
    best_weights: Arrays = field(default_factory=dict)
    best: Row | None = None

    def after(self, **changes: Any) -> TrainingState:
        """The state one step later, with these changes."""
        return replace(self, step=self.step + 1, **changes)

    @property
    def judged(self) -> Arrays:
        """The weights to validate and keep: the average if there is one."""
        return self.average or self.weights


def save_state(folder: Path, state: TrainingState, description: dict[str, Any]) -> None:
    """Write the state. If the process is killed, the file holds either this state or the one before."""
    arrays = {f"{part}/{name}": array for part in _ARRAYS for name, array in getattr(state, part).items()}
    plain = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in (*_ARRAYS, "rows", "best")}
    values = {
        **plain,
        "rows": [row.to_dict() for row in state.rows],
        "best": None if state.best is None else state.best.to_dict(),
    }
    metadata = {"format": str(_FORMAT), "state": json.dumps(values), "run": json.dumps(description)}
    temporary = folder / f".{os.getpid()}.{STATE_FILE}"
    try:
        mx.save_safetensors(str(temporary), arrays, metadata)
        _flush(temporary)
        os.replace(temporary, folder / STATE_FILE)
        _flush(folder)
    except RuntimeError as error:
        raise OSError(f"{folder} cannot be written, most likely for lack of space ({one_line(error)})") from None
    finally:
        temporary.unlink(missing_ok=True)


def load_state(folder: Path) -> tuple[TrainingState, dict[str, Any]]:
    """The state and the description that `save_state` wrote.

    Raises:
        FileNotFoundError: there is no state.
        ValueError: the state is damaged, or of another version.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no unfinished run at {folder}: leave --resume out")
    try:
        loaded: Any = mx.load(str(path), return_metadata=True)
        arrays, metadata = loaded
        if metadata.get("format") != str(_FORMAT):
            raise ValueError("another version wrote it")
        values, description = json.loads(metadata["state"]), json.loads(metadata["run"])
        parts: dict[str, Any] = {part: {} for part in _ARRAYS}
        for name, array in sorted(arrays.items()):
            part, _, rest = name.partition("/")
            parts[part][rest] = array
        mx.eval(parts)
        values["rows"] = tuple(Row(**row) for row in values["rows"])
        values["best"] = None if values["best"] is None else Row(**values["best"])
        return TrainingState(**parts, **values), description
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({one_line(error)}): start the run anew (--overwrite)") from None


def _flush(path: Path) -> None:
    """Make the system write a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
