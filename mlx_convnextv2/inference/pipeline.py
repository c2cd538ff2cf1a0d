"""The way from images to a model's outputs: threads read and prepare while batches are computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import mlx.core as mx
import numpy as np

from ..checkpoints.load import load
from ..files.tensors import dtype_name
from ..images.decode import NAMELESS, name_of
from ..images.processor import ImageProcessor
from ..model.convnextv2 import ConvNextV2PreTrainedModel
from ..runtime.forks import check_not_forked
from ..runtime.prefetch import map_ahead
from ..runtime.threads import available_cpus

Prediction = dict[str, Any]
Problem: TypeAlias = ValueError | OSError
UNNAMED = "the model"  # the name of a model that was passed loaded


@dataclass
class Result:
    """One image's predictions, best first, or the error that kept it from being read or classified."""

    image: Any
    predictions: list[Prediction] | None = None
    error: Problem | None = None


class _Failing(Protocol):
    image: Any
    error: Problem | None


SomeResult = TypeVar("SomeResult", bound=Result)
Failing = TypeVar("Failing", bound=_Failing)


class Pipeline:
    """Turns files into pixel values in threads, and passes them to a function in batches.

    Args:
        model: a Hub id, a folder, or a loaded model.
        processor: the image processor. A loaded model needs one; a Hub id or a folder brings its own.
        dtype, revision: as for `load`.
        batch_size: how many images of a list go through the model at once.

    Raises:
        FileNotFoundError, OSError, ValueError: as `load`; also if a loaded model came without a processor.
    """

    model: Any

    def __init__(
        self,
        model: str | os.PathLike[str] | ConvNextV2PreTrainedModel,
        processor: ImageProcessor | None = None,
        *,
        dtype: str | mx.Dtype | None = None,
        revision: str | None = None,
        batch_size: int = 8,
    ):
        if isinstance(model, str | os.PathLike):
            self.name = os.fspath(model)
            model, own_processor = load(self.name, dtype=dtype, revision=revision)
            processor = processor or own_processor
        else:
            self.name = UNNAMED
            if dtype is not None or revision is not None:
                raise ValueError("dtype and revision are for loading: pass them to load, which made this model")
        if processor is None:
            raise ValueError(f"a loaded model needs its image processor: {type(self).__name__}(model, processor)")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
        self.revision = revision
        self.dtype = dtype if dtype is None or isinstance(dtype, str) else dtype_name(dtype)
        self.model = model
        self.processor = processor
        self.batch_size = batch_size

    def run(
        self,
        function: Callable[[mx.array], mx.array],
        images: Iterable[Any],
        *,
        batched: bool | None = None,
        padded: bool = False,
    ) -> Generator[tuple[Result, np.ndarray | None], None, None]:
        """Yield, in order, a result for each image and its row of the function's output in float32.

        The row is None if the result has an error.

        Args:
            function: pixel values (N, H, W, C) -> (N, width).
            images: paths, file objects, PIL images or uint8 arrays, in any iterable.
            batched: take images ahead, and compute them in batches. This is the default for lists. An iterator may be a
                camera, so its images are taken and answered one by one.
            padded: fill every batch up, with copies, because the last digits of a score depend on the batch's size.

        Threads read and prepare the images of a batch while others are computed, up to a batch and one image for each
        core ahead. If an open image or file is in a list twice, one thread reads the whole list, because two threads
        must not read it at once. Any other `batched` iterable must not give it twice.
        """
        batch_size, workers, ahead = 1, 1, 1
        several = isinstance(images, list | tuple)
        if several if batched is None else batched:
            batch_size, workers = self.batch_size, available_cpus()
            ahead = batch_size + workers
        if isinstance(images, list | tuple):
            opened = [id(image) for image in images if not isinstance(image, str | os.PathLike | np.ndarray)]
            workers = workers if len(set(opened)) == len(opened) else 1
        prepared = map_ahead(self.prepare, map(_take, images), workers, ahead)
        return run_results(function, prepared, batch_size, batch_size if padded else 0)

    def prepare(self, result: Result) -> tuple[Result, np.ndarray | None]:
        """The result, and the pixel values (H, W, C) of its image, or None with the error in the result."""
        return read_into(result, lambda: self.preprocess(result.image))

    def preprocess(self, image: Any) -> np.ndarray:
        """The pixel values (H, W, C) of an image. The size is checked here: a small image must not spoil a batch."""
        array = self.processor.preprocess(image)
        height, width = self.model.config.min_image_shape
        if array.shape[0] < height or array.shape[1] < width:
            shape = f"{array.shape[0]} x {array.shape[1]}"
            raise ValueError(f"an image of {shape} pixels is too small: the model needs {height} x {width}")
        return array


def read_into(
    result: Failing, read: Callable[[], np.ndarray | None], name: Callable[[Problem, Any], Problem] | None = None
) -> tuple[Failing, np.ndarray | None]:
    """The result, and the pixel values that `read` returns, or None with the error in the result.

    Args:
        result: it is not read if it has an error already.
        read: returns the pixel values of the result's image.
        name: adds the image's name to an error; `named` by default.
    """
    name = name or named
    if result.error is None:
        try:
            return result, read()
        except (ValueError, OSError) as error:
            result.error = name(error, result.image)
        except MemoryError:
            result.error = name(OSError("there is not enough memory to prepare this image"), result.image)
    return result, None


def run_results(
    function: Callable[[mx.array], mx.array],
    prepared: Generator[tuple[SomeResult, np.ndarray | None], None, None],
    batch_size: int,
    size: int = 0,
) -> Generator[tuple[SomeResult, np.ndarray | None], None, None]:
    """Yield, in order, each result and its row of the function's output in float32, or None if it has no pixel values.

    Args:
        function: pixel values (N, H, W, C) -> (N, width).
        prepared: results with their pixel values (H, W, C) or None, as `map_ahead` gives them.
        batch_size: images that go through the function at once.
        size: fill smaller batches up to this, with copies.
    """
    with closing(prepared):
        waiting: list[SomeResult] = []
        arrays: dict[int, np.ndarray] = {}  # by place in `waiting`
        for result, array in prepared:
            if array is not None:
                if arrays and array.shape != next(iter(arrays.values())).shape:  # sizes differ without do_resize
                    yield from _answer(function, waiting, arrays, size)
                    waiting, arrays = [], {}
                arrays[len(waiting)] = array
            waiting.append(result)
            if len(arrays) == batch_size or not arrays:
                yield from _answer(function, waiting, arrays, size)
                waiting, arrays = [], {}
        yield from _answer(function, waiting, arrays, size)


def _answer(
    function: Callable[[mx.array], mx.array], results: list[SomeResult], arrays: dict[int, np.ndarray], size: int
) -> list[tuple[SomeResult, np.ndarray | None]]:
    """Each result with its row of the output, or None if it has no pixels. `arrays` holds them by place."""
    if not arrays:
        return [(result, None) for result in results]
    pixels = list(arrays.values())
    pixels += pixels[-1:] * (size - len(pixels))
    rows = as_float32(function(mx.array(np.stack(pixels))))  # (N, H, W, C) -> (N, width)
    found = dict(zip(arrays, rows, strict=False))
    return [(result, found.get(place)) for place, result in enumerate(results)]


def as_float32(array: mx.array) -> np.ndarray:
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


def named(error: Problem, image: Any) -> Problem:
    """The error with the image's name added, if the image has one and the message lacks it."""
    name = name_of(image)
    if name in str(error) or name == NAMELESS or getattr(error, "filename", None):
        return error
    return (ValueError if isinstance(error, ValueError) else OSError)(f"{name}: {error}")
