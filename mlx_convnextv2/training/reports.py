"""Numbers of a run for TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..messages import short
from .plan import Plan
from .progress import Progress, Row

Log = Callable[[dict[str, float], int], None]
_EXTRA = 'pip install "mlx-convnextv2[report]"'


class Reported(Progress):
    """Passes progress on, and logs the losses of steps and the numbers of epochs.

    Args:
        progress: receives all progress.
        names: "tensorboard", "wandb", or both with a comma between them.
        plan: names the run. TensorBoard's files go beside its output, with ".tensorboard" at the end.

    Raises:
        ValueError: another name is given, or a package is missing.
    """

    def __init__(self, progress: Progress, names: str, plan: Plan):
        self._progress, self._steps = progress, 0
        openers = {"tensorboard": _tensorboard, "wandb": _wandb}
        wanted = [name.strip() for name in names.split(",")]
        for name in wanted:
            if name not in openers:
                raise ValueError(f"report_to must be tensorboard, wandb or both with a comma, not {short(names)}")
        self._sinks = [openers[name](plan) for name in wanted]

    def begin_at(self, steps: int) -> None:
        self._steps = steps
        self._progress.begin_at(steps)

    def begin(self, name: str, total: int) -> None:
        self._progress.begin(name, total)

    def advance(self, images: int, loss: float | None = None, lr: float | None = None) -> None:
        if loss is not None and lr is not None:
            self._steps += 1
            self._log({"train/step_loss": loss, "train/lr": lr}, self._steps)
        self._progress.advance(images, loss, lr)

    def end(self) -> None:
        self._progress.end()

    def row(self, row: Row) -> None:
        values = {"val/loss": row.val_loss, "val/top1": row.val_top1, "val/top5": row.val_top5}
        if row.train_loss is not None:
            values["train/loss"] = row.train_loss
        self._log({**values, "epoch": float(row.epoch)}, self._steps or row.epoch)  # a penalty has no steps
        self._progress.row(row)

    def close(self) -> None:
        self._progress.close()
        for _, close in self._sinks:
            close()
        self._sinks = []

    def _log(self, values: dict[str, float], step: int) -> None:
        for log, _ in self._sinks:
            log(values, step)


def _tensorboard(plan: Plan) -> tuple[Log, Callable[[], None]]:
    writer = _module("tensorboardX").SummaryWriter(f"{plan.output}.tensorboard")

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log, writer.close


def _wandb(plan: Plan) -> tuple[Log, Callable[[], None]]:
    wandb = _module("wandb")
    run = wandb.init(project="mlx_convnextv2", name=Path(plan.output).name, config=plan.as_options())
    return lambda values, step: run.log(values, step=step), run.finish


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"report_to needs {name}: {_EXTRA}") from None
