"""The progress of a run: phases, steps and epochs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """A line of results.csv: one epoch with all weights, or one strength of the penalty on the head.

    Args:
        epoch: from 1 on; 0 is the fitted head before all weights are trained.
        train_loss: the mean over the epoch's steps, with augmentation and smoothing. A head's loss is without them.
        val_loss, val_top1, val_top5: mean cross-entropy, and shares from 0 to 1, on the images set aside.
        lr: the learning rate of the epoch's last step.
        l2: the penalty on the head's weights.
        seconds: the time taken.
    """

    epoch: int
    train_loss: float | None
    val_loss: float
    val_top1: float
    val_top5: float
    lr: float | None = None
    l2: float | None = None
    seconds: float = 0.0

    def better_than(self, other: Row | None) -> bool:
        """Whether more answers are right, or equally many with a smaller loss."""
        return other is None or (self.val_top1, -self.val_loss) > (other.val_top1, -other.val_loss)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        how = f"l2 {self.l2:.0e}" if self.l2 is not None else f"epoch {self.epoch:3d}"
        train = "" if self.train_loss is None else f"  train loss {self.train_loss:.4f}"
        rate = "" if self.lr is None else f"  lr {self.lr:.2e}"
        return (
            f"{how}{train}  val loss {self.val_loss:.4f}  top-1 {self.val_top1:6.2%}  top-5 {self.val_top5:6.2%}"
            f"{rate}  {self.seconds:.1f} s"
        )


class Progress:
    """Receives all progress and prints nothing. A program can give `train` a subclass."""

    def begin_at(self, steps: int) -> None:
        """Training of all weights begins with this many steps already done; 0 unless it is resumed."""

    def begin(self, name: str, total: int) -> None:
        """A phase of this many images begins."""

    def advance(self, images: int, loss: float | None = None, lr: float | None = None) -> None:
        """Images are done. In training, `loss` and `lr` are those of their step."""

    def end(self) -> None:
        """The phase is over."""

    def row(self, row: Row) -> None:
        """An epoch is over."""

    def close(self) -> None:
        """The run is over, or has failed."""
