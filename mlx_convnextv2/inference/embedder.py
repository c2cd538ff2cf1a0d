"""Image files in, features out."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import Any

import mlx.core as mx
import numpy as np

from ..images.processor import ImageProcessor
from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model
from ..runtime.prefetch import map_ahead
from ..runtime.threads import available_cpus
from .fuse import fuse
from .pipeline import Pipeline, SomeResult, named, run_results


class ImageEmbedder(Pipeline):
    """A checkpoint ready to describe images by its pooled features, as fast as an ImageClassifier.

    Args:
        model: a Hub id, a folder, or a loaded model, with a classification head or without.
        processor, dtype, revision, batch_size: as for `ImageClassifier`.

    Raises:
        FileNotFoundError, OSError, ValueError: as `load`; also if a loaded model came without a processor, or the
            checkpoint is a backbone.
    """

    model: ConvNextV2ForImageClassification | ConvNextV2Model

    def __init__(
        self,
        model: str | os.PathLike[str] | ConvNextV2ForImageClassification | ConvNextV2Model,
        processor: ImageProcessor | None = None,
        *,
        dtype: str | mx.Dtype | None = None,
        revision: str | None = None,
        batch_size: int = 8,
    ):
        super().__init__(model, processor, dtype=dtype, revision=revision, batch_size=batch_size)
        if not isinstance(self.model, ConvNextV2ForImageClassification | ConvNextV2Model):
            raise ValueError(f"{self.name} is a backbone, which has no pooled features: give a model or a classifier")
        self.width: int = self.model.config.hidden_sizes[-1]  # how many features an image has
        self.embed = fuse(self.model, pooled=True)

    def __call__(self, image: Any) -> np.ndarray:
        """The pooled features (C,) float32 of one image: a path, a file object, a PIL image or a uint8 array.

        Raises:
            FileNotFoundError, OSError, ValueError: the image cannot be read, or its features are zero or not finite.
        """
        with closing(self.run(self.embed, [image])) as answers:
            for result, features in answers:
                if result.error is None and features is not None:
                    check_features(features)
                    return features
                raise result.error or ValueError("the image has no features")
        raise ValueError("there is no image")

    def stream(
        self,
        results: Iterable[SomeResult],
        prepare: Callable[[SomeResult], tuple[SomeResult, np.ndarray | None]],
    ) -> Generator[tuple[SomeResult, np.ndarray | None], None, None]:
        """Yield each result, in order, with its pooled features (C,) float32.

        `prepare` is called in threads. The features are None if it gives no pixel values (H, W, C). They are also None
        if they are zero or not finite, and the result then has the error.
        """
        workers = available_cpus()
        prepared = map_ahead(prepare, results, workers, self.batch_size + workers)
        with closing(run_results(self.embed, prepared, self.batch_size)) as answers:
            for result, features in answers:
                if features is not None:
                    try:
                        check_features(features)
                    except ValueError as error:
                        result.error = named(error, result.image)
                        features = None
                yield result, features


def check_features(features: np.ndarray) -> None:
    """Raise a ValueError if the features are zero or not finite, so that they cannot be normalised."""
    with np.errstate(all="ignore"):
        norm = float(np.linalg.norm(features))
    if not np.isfinite(norm):
        raise ValueError("its features are not finite: the model's weights are damaged, or too large for its dtype")
    if norm < np.finfo(np.float32).tiny:
        raise ValueError("its features are all zero: the model's weights are damaged")
