"""How all weights are trained: the authors' settings for each size, adapted to the data at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..model.config import SIZES, ConvNextV2Config
from .options import Options

_AUTHORS_BATCH = 1024


@dataclass(frozen=True)
class Published:
    """A row of TRAINING.md in the authors' repository, https://github.com/facebookresearch/ConvNeXt-V2.

    Args:
        lr: the rate for their batch of 1024, which is 4 times their base rate for 256 images.
        warmup: the share of the epochs used for warm-up.
    """

    lr: float
    warmup: float
    layer_decay: float
    layer_groups: str
    weight_decay: float
    drop_path: float
    mixup: float
    cutmix: float
    label_smoothing: float


_ATTO = Published(8e-4, 0, 0.9, "single", 0.3, 0.1, 0, 0, 0.2)
_TINY = Published(3.2e-3, 40 / 300, 0.9, "single", 0.05, 0.2, 0.8, 1.0, 0.1)
_BASE = Published(2.5e-3, 20 / 100, 0.6, "group", 0.05, 0.1, 0.8, 1.0, 0.1)
# The authors state three sizes. Up to nano, a model takes atto's settings; up to tiny, tiny's; above that, base's.
_BY_WIDTH = ((SIZES["nano"]["hidden_sizes"][-1], _ATTO), (SIZES["tiny"]["hidden_sizes"][-1], _TINY))


def published(config: ConvNextV2Config) -> Published:
    """The authors' settings for the size of this model, by the width of its last stage."""
    width = config.hidden_sizes[-1]
    return next((row for most, row in _BY_WIDTH if width <= most), _BASE)


@dataclass(frozen=True)
class Recipe:
    """The complete settings of a run with all weights. Names are as in `Options`.

    Args:
        steps_per_epoch: optimizer steps in an epoch. Images that do not fill a batch are left out of the epoch.
        warmup_steps: the number of steps of warm-up, from the first epoch on.
    """

    batch_size: int
    accumulate: int
    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    lr: float
    min_lr: float
    layer_decay: float
    layer_groups: str
    weight_decay: float
    drop_path: float
    label_smoothing: float
    ema: float
    clip_norm: float
    mixup: float
    cutmix: float
    dtype: str
    grad_checkpoint: bool

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def describe(self) -> str:
        """The settings in a sentence, for the model card."""
        mixing = f", mixup {self.mixup:g} and CutMix {self.cutmix:g}" if self.mixup or self.cutmix else ""
        average = f", the weights' moving average with decay {self.ema:.5g}" if self.ema else ""
        return (
            f"all weights, {self.epochs} epochs of {self.steps_per_epoch} steps of {self.batch_size} images at most, "
            f"AdamW with learning rate {self.lr:.2e}, {self.warmup_steps} steps of warm-up and a cosine, layer decay "
            f"{self.layer_decay:g} ({self.layer_groups}), weight decay {self.weight_decay:g}, drop path "
            f"{self.drop_path:g}, label smoothing {self.label_smoothing:g}{mixing}{average}, computed in {self.dtype}"
        )

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0: linear warm-up, then half a cosine down to `min_lr`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def make_recipe(options: Options, config: ConvNextV2Config, images: int, processes: int = 1) -> Recipe:
    """Fill in the settings that the options leave open, for this many training images.

    The learning rate is the authors' rate at 1024 images, scaled with the square root of the batch as suits Adam
    (Malladi et al. 2022, arXiv:2205.10287). The warm-up keeps its share of the epochs. The moving average spans a tenth
    of the run, at most the authors' 10,000 steps. Everything else is the authors'.

    Raises:
        ValueError: the batch cannot be divided among the processes and by `accumulate`.
    """
    authors = published(config)

    def chosen(name: str) -> Any:
        value = getattr(options, name)
        return getattr(authors, name) if value is None else value

    parts = processes * options.accumulate
    in_pairs = parts > 1 and bool(chosen("mixup") or chosen("cutmix"))  # mixed neighbours stay in one part
    unit = 2 * parts if in_pairs else parts
    if options.batch_size % unit:
        raise ValueError(
            f"batch_size {options.batch_size} cannot be divided into {processes} processes x {options.accumulate} "
            f"parts (accumulate){' of pairs of images, which are mixed' if in_pairs else ''}: make it a multiple of "
            f"{unit}"
        )
    batch = min(options.batch_size, images // unit * unit)
    if not batch:
        raise ValueError(f"{images} images are fewer than {unit}, the least that a batch can have: lower accumulate")
    steps_per_epoch = images // batch
    steps = steps_per_epoch * options.epochs
    lr = authors.lr * math.sqrt(batch / _AUTHORS_BATCH) if options.lr is None else options.lr
    warmup = authors.warmup * options.epochs if options.warmup_epochs is None else options.warmup_epochs

    return Recipe(
        batch_size=batch,
        accumulate=options.accumulate,
        epochs=options.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_steps=min(round(warmup * steps_per_epoch), steps),
        lr=lr,
        min_lr=min(options.min_lr, lr),
        ema=max(0.0, min(0.9999, 1 - 10 / steps)) if options.ema is None else options.ema,
        clip_norm=options.clip_norm,
        dtype=options.dtype or "float32",
        grad_checkpoint=options.grad_checkpoint,
        **{
            name: chosen(name)
            for name in (
                *("layer_decay", "layer_groups", "weight_decay", "drop_path", "label_smoothing", "mixup", "cutmix"),
            )
        },
    )
