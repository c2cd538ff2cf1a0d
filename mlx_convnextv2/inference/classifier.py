"""Image files in, predictions out."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoints.load import load
from ..images.decode import NAMELESS, name_of
from ..images.processor import ImageProcessor
from ..model.convnextv2 import ConvNextV2ForImageClassification
from ..model.labels import class_labels
from ..runtime.forks import check_not_forked
from ..runtime.prefetch import map_ahead
from ..runtime.threads import available_cpus
from .fuse import fuse

Prediction = dict[str, Any]


@dataclass
class Result:
    """One image's predictions, best first, or the error that kept it from being read or classified."""

    image: Any
    predictions: list[Prediction] | None = None
    error: ValueError | OSError | None = None


class ImageClassifier:
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

    def __init__(
        self,
        model: str | os.PathLike[str] | ConvNextV2ForImageClassification,
        processor: ImageProcessor | None = None,
        *,
        dtype: str | mx.Dtype | None = None,
        revision: str | None = None,
        batch_size: int = 8,
    ):
        if isinstance(model, str | os.PathLike):
            name = os.fspath(model)
            model, own_processor = load(name, dtype=dtype, revision=revision)
            processor = processor or own_processor
        else:
            name = "the model"
            if dtype is not None or revision is not None:
                raise ValueError("dtype and revision are for loading: pass them to load, which made this model")
        if not isinstance(model, ConvNextV2ForImageClassification) or model.config.num_labels == 0:
            raise ValueError(f"{name} has no classification head, so it cannot name what an image shows")
        if processor is None:
            raise ValueError("a loaded model needs its image processor: ImageClassifier(model, processor)")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
        self.name = name
        self.model = model
        self.processor = processor
        self.labels = class_labels(model.config)
        self.batch_size = batch_size
        self.predict = fuse(model)

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
            batched: take images ahead, and let them through the model in batches. By default this holds for lists; an
                iterator may be a camera, so its images are taken and answered one by one.
            padded: fill every batch up, with copies, because the last digits of a score depend on the batch's size.

        Threads read and prepare the images of a batch while others are classified, up to a batch and one image for each
        core ahead. One thread reads them all if an open image or file is in a list twice, because two threads must not
        read it at once; another iterable that is `batched` must not give it twice.
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
        batch_size, workers, ahead = 1, 1, 1
        several = isinstance(images, list | tuple)
        if several if batched is None else batched:
            batch_size, workers = self.batch_size, available_cpus()
            ahead = batch_size + workers
        if several:
            opened = [id(image) for image in images if not isinstance(image, str | os.PathLike | np.ndarray)]
            workers = workers if len(set(opened)) == len(opened) else 1
        prepared = map_ahead(self._prepare, map(_take, images), workers, ahead)
        size = batch_size if padded else 0
        with closing(prepared):
            waiting: list[Result] = []
            arrays: list[np.ndarray] = []
            for result, array in prepared:
                if array is not None:
                    if arrays and array.shape != arrays[0].shape:  # without do_resize each image has its own size
                        yield from self._answer(waiting, arrays, size)
                        waiting, arrays = [], []
                    arrays.append(array)
                waiting.append(result)
                if len(arrays) == batch_size or not arrays:
                    yield from self._answer(waiting, arrays, size)
                    waiting, arrays = [], []
            yield from self._answer(waiting, arrays, size)

    def _prepare(self, result: Result) -> tuple[Result, np.ndarray | None]:
        """The result, and the pixel values (H, W, C) of its image, or None with the error in the result."""
        if result.error is None:
            try:
                return result, self._preprocess(result.image)
            except (ValueError, OSError) as error:
                result.error = _named(error, result.image)
            except MemoryError:
                result.error = _named(OSError("there is not enough memory to prepare this image"), result.image)
        return result, None

    def _preprocess(self, image: Any) -> np.ndarray:
        """The pixel values (H, W, C) of an image. The size is checked here: a small image must not spoil a batch."""
        array = self.processor.preprocess(image)
        height, width = self.model.config.min_image_shape
        if array.shape[0] < height or array.shape[1] < width:
            shape = f"{array.shape[0]} x {array.shape[1]}"
            raise ValueError(f"an image of {shape} pixels is too small: the model needs {height} x {width}")
        return array

    def _answer(
        self, results: list[Result], arrays: list[np.ndarray], size: int
    ) -> list[tuple[Result, np.ndarray | None]]:
        """Each result with its logits, or None if it has an error. `arrays` holds the pixels of the other results.

        The model sees at least `size` images.
        """
        if not arrays:
            return [(result, None) for result in results]
        arrays = arrays + arrays[-1:] * (size - len(arrays))
        rows = iter(_as_float32(self.predict(mx.array(np.stack(arrays)))))  # (N, H, W, C) -> (N, num_labels)
        answers: list[tuple[Result, np.ndarray | None]] = []
        for result in results:
            logits = next(rows) if result.error is None else None
            if logits is not None and not np.isfinite(softmax(logits)).all():
                problem = "its scores are not finite: the model's weights are damaged, or too large for its dtype"
                result.error = _named(ValueError(problem), result.image)
                logits = None
            answers.append((result, logits))
        return answers


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float32. It is numpy's because a forked process cannot compute with MLX."""
    with np.errstate(all="ignore"):  # infinities give NaN
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)


def _as_float32(array: mx.array) -> np.ndarray:
    """The values of an array of any floating dtype, read without an MLX operation."""
    values = array.tolist() if array.dtype == mx.bfloat16 else array  # numpy has no bfloat16
    return np.array(values, np.float32)


def _take(image: Any) -> Result:
    """The result to fill in. This runs in the caller's thread, because no other can evaluate a lazy mx.array."""
    result = Result(image)
    if isinstance(image, mx.array):
        try:
            check_not_forked()
            mx.eval(image)
        except OSError as error:
            result.error = error
        except RuntimeError as error:
            if "Stream" not in str(error):
                raise
            result.error = ValueError(
                "the image is an mx.array that another thread left lazy: call mx.eval on it there"
            )
    return result


def _named(error: ValueError | OSError, image: Any) -> ValueError | OSError:
    """The error with the image's name added, if the image has one and the message lacks it."""
    name = name_of(image)
    if name in str(error) or name == NAMELESS or getattr(error, "filename", None):
        return error
    return (ValueError if isinstance(error, ValueError) else OSError)(f"{name}: {error}")
