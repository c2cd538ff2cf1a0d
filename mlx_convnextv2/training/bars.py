"""Progress as the command shows it: bars on a terminal, and a line for each epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .progress import Progress, Row


class Bars(Progress):
    """tqdm's bars on standard error if it is a terminal. Rows go to `tell`."""

    def __init__(self, tell: Callable[[object], None] = print):
        self._tell = tell
        self._bar: Any = None

    def begin(self, name: str, total: int) -> None:
        from tqdm import tqdm  # huggingface_hub brings it

        self.close()
        self._bar = tqdm(
            total=total, desc=name, unit=" images", leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty()
        )

    def advance(self, images: int, loss: float | None = None, lr: float | None = None) -> None:
        if loss is not None and lr is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}", refresh=False)
        self._bar.update(images)

    def end(self) -> None:
        self.close()

    def row(self, row: Row) -> None:
        self.close()
        self._tell(row)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
