"""Image files in, predictions out."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Any

import mlx.core as mx
import numpy as np

from ..images.processor import ImageProcessor
from ..model.convnextv2 import ConvNextV2ForImageClassification
from ..model.labels import class_labels
from .fuse import fuse
from .pipeline import Pipeline, Prediction as Prediction, Result as Result, named


class ImageClassifier(Pipeline):
    """A checkpoint ready to classify in any thread. On a Linux CPU it also works in a forked process.

    Args:
        model: a Hub id, a folder, or a loaded model.
        processor: the image processor. A loaded model needs one; a Hub id or a folder brings its own.
        dtype, revision: as for `load`.
        batch_size: how many images of a list go through the model at once.

    Raises:
        FileNotFoundError, OSError, ValueError: as `load`.
        ValueError: the checkpoint has no classification head, or a loaded model came without a processor.
    """

    model: ConvNextV2ForImageClassification

    def __init__(
        self,
        model: str | os.PathLike[str] | ConvNextV2ForImageClassification,
        processor: ImageProcessor | None = None,
        *,
        dtype: str | mx.Dtype | None = None,
        revision: str | None = None,
        batch_size: int = 8,
    ):
        super().__init__(model, processor, dtype=dtype, revision=revision, batch_size=batch_size)
        if not isinstance(self.model, ConvNextV2ForImageClassification) or self.model.config.num_labels == 0:
            raise ValueError(f"{self.name} has no classification head, so it cannot name what an image shows")
        self.labels = class_labels(self.model.config)
        self.predict = fuse(self.model)

    def __call__(self, images: Any, top_k: int = 5) -> list[Any]:
        """Classify one image or a list of them.

        Args:
            images: a path, a file object, a PIL image, a uint8 array (H, W, C), or a list of these.
            top_k: how many labels to return for each image, at most.

        Returns:
            For one image, a list of {"label", "score", "index"}, the highest score first. For a list of images, a
            list of such lists. Scores are the softmax over all classes, computed in float32.

        Raises:
            FileNotFoundError, OSError, ValueError: an image cannot be read, or its scores are not finite. `stream`
                goes on to the next image instead.
        """
        several = isinstance(images, list | tuple)
        predictions = []
        for result in self.stream(images if several else [images], top_k):
            if result.error is not None:
                raise result.error
            predictions.append(result.predictions or [])
        return predictions if several else predictions[0]

    def stream(
        self, images: Iterable[Any], top_k: int = 5, *, batched: bool | None = None, padded: bool = False
    ) -> Generator[Result, None, None]:
        """Classify images in order and yield one `Result` for each, which holds the error if the image failed.

        Args:
            images: as for calling the classifier, in any iterable.
            top_k: how many labels each image gets, at most.
            batched, padded: as for `Pipeline.run`.
        """
        if not isinstance(top_k, int | np.integer) or top_k < 1:
            raise ValueError(f"top_k must be a whole number of at least 1, not {top_k!r}")
        with closing(self.stream_logits(images, batched=batched, padded=padded)) as answers:
            for result, logits in answers:
                if logits is not None:
                    scores = softmax(logits)
                    best = np.argsort(-scores, kind="stable")[:top_k]
                    result.predictions = [
                        {"label": self.labels[index], "score": float(scores[index]), "index": int(index)}
                        for index in best
                    ]
                yield result

    def stream_logits(
        self, images: Iterable[Any], *, batched: bool | None = None, padded: bool = False
    ) -> Generator[tuple[Result, np.ndarray | None], None, None]:
        """As `stream`, but yields each result without predictions, and beside it the logits (num_labels,) in float32.

        The logits are None if the result has an error. Their softmax is always finite.
        """
        with closing(self.run(self.predict, images, batched=batched, padded=padded)) as answers:
            for result, logits in answers:
                if logits is not None and not np.isfinite(softmax(logits)).all():
                    problem = "its scores are not finite: the model's weights are damaged, or too large for its dtype"
                    result.error = named(ValueError(problem), result.image)
                    logits = None
                yield result, logits


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float32. It is numpy's because a forked process cannot compute with MLX."""
    with np.errstate(all="ignore"):  # infinities give NaN
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)
