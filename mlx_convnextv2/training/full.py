"""Train all weights: epochs of steps. Each epoch is validated on the images set aside, and the best is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from ..checkpoints.processor import ConvNextImageProcessor
from ..images.class_folders import ClassFolders
from ..model.convnextv2 import ConvNextV2ForImageClassification
from .augment import Augmentation
from .batches import Batches, step_random
from .features import shared_features
from .head import Head
from .metrics import score
from .options import Options
from .progress import Progress, Row
from .recipe import Recipe
from .state import TrainingState
from .step import Step
from .world import World

Save = Callable[[TrainingState], None]


class FullTraining:
    """Trains from a state to the end of a run, and saves on the way.

    Args:
        model: is changed; in the end it has the best weights.
        processor: prepares validation images, and gives the size of training images.
        train, val: the images.
        recipe, options: the settings.
        save: saves a state. It is called each epoch, every `options.save_every` minutes, and on interruption.
        progress: is told of steps and epochs.
        world: the processes that share the batches.
    """

    def __init__(
        self,
        model: ConvNextV2ForImageClassification,
        processor: ConvNextImageProcessor,
        train: ClassFolders,
        val: ClassFolders,
        recipe: Recipe,
        options: Options,
        save: Save,
        progress: Progress,
        world: World,
    ):
        self._model, self._processor, self._val = model, processor, val
        self._recipe, self._options = recipe, options
        self._save, self._progress, self._world = save, progress, world
        share = world.share(recipe.batch_size)
        self._step = Step(model, recipe, world.mean, share)
        augmentation = Augmentation(processor, options)
        self._batches = Batches(train, augmentation, recipe.batch_size, options.seed, share, options.workers)

    def run(self, state: TrainingState) -> TrainingState:
        """Train to the end, or until `patience` epochs have brought no improvement.

        Raises:
            KeyboardInterrupt, SystemExit: after the state has been saved.
            ValueError, OSError: the loss is NaN, or an image can no longer be read. The last saved state is kept.
        """
        self._state = state
        self._progress.begin_at(state.step)
        try:
            while not self._is_over():
                if self._state.step < (self._epoch + 1) * self._recipe.steps_per_epoch:
                    self._steps()
                self._judge()
                self._save(self._state)
        except (KeyboardInterrupt, SystemExit):
            self._save(self._state)
            raise
        self._model.update(tree_unflatten(list(self._state.best_weights.items())))
        return self._state

    @property
    def _epoch(self) -> int:
        """The current epoch, from 0 on."""
        return sum(row.epoch > 0 for row in self._state.rows)

    def _is_over(self) -> bool:
        rows, best = self._state.rows, self._state.best
        stale = len(rows) - 1 - rows.index(best) if best is not None else 0
        patience = self._options.patience
        return self._epoch >= self._recipe.epochs or (patience is not None and stale >= patience)

    def _steps(self) -> None:
        """Run the epoch's remaining steps."""
        recipe, epoch = self._recipe, self._epoch
        done = self._state.step - epoch * recipe.steps_per_epoch
        self._progress.begin(f"epoch {epoch + 1}/{recipe.epochs}", recipe.steps_per_epoch * recipe.batch_size)
        self._progress.advance(done * recipe.batch_size)
        begun = last_save = time.monotonic()
        earlier = self._state.epoch_seconds
        with closing(self._batches.epoch(epoch, done)) as batches:
            for pixel_values, labels in batches:
                random = step_random(self._options.seed, self._state.step)
                after, loss = self._step(self._state, pixel_values, labels, random)
                now = time.monotonic()
                after = replace(after, epoch_loss=after.epoch_loss + loss, epoch_seconds=earlier + now - begun)
                self._state = after  # one assignment: an interruption must find a whole state
                self._progress.advance(recipe.batch_size, loss, recipe.learning_rate(after.step - 1))
                if now - last_save >= 60 * self._options.save_every:
                    self._save(self._state)
                    last_save = time.monotonic()
        self._progress.end()

    def _judge(self) -> None:
        """Add the epoch's row, and keep its weights if they are the best."""
        state, begun = self._state, time.monotonic()
        loss, top1, top5 = self.validate(state)
        row = Row(
            epoch=self._epoch + 1,
            train_loss=state.epoch_loss / self._recipe.steps_per_epoch,
            val_loss=loss,
            val_top1=top1,
            val_top5=top5,
            lr=self._recipe.learning_rate(state.step - 1),
            seconds=state.epoch_seconds + time.monotonic() - begun,
        )
        changes: dict[str, Any] = {"rows": (*state.rows, row), "epoch_loss": 0.0, "epoch_seconds": 0.0}
        if row.better_than(state.best):
            changes.update(best=row, best_weights=state.judged)
        self._state = replace(state, **changes)
        self._progress.row(row)

    def validate(self, state: TrainingState) -> tuple[float, float, float]:
        """The loss, top-1 and top-5 of the state's weights on the images set aside."""
        self._model.update(tree_unflatten(list(state.judged.items())))
        features, errors = shared_features(
            self._model,
            self._processor,
            self._val.files,
            self._world,
            workers=self._options.workers,
            progress=self._progress,
            name="validation",
        )
        for error in errors.values():
            raise error
        head = Head(np.array(self._model.classifier.weight), np.array(self._model.classifier.bias))
        return score(head(features), np.array(self._val.labels))


def limit_cache() -> int:
    """Limit MLX's cache of freed memory to a quarter of the GPU's memory. Returns the previous limit."""
    info = mx.device_info()
    most = int(info.get("max_recommended_working_set_size", 0) or info.get("memory_size", 0) or 2**33)
    return mx.set_cache_limit(most // 4)
