"""Pictures in, records out."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any

from ..images.decode import MissingExtraError
from ..inference.classifier import ImageClassifier, Result
from ..inference.fuse import make_ready
from ..messages import sentence
from .inputs import Input
from .records import Record


def stream_records(
    classifier: ImageClassifier, inputs: Iterable[Input], top_k: int = 5, padded: bool = True
) -> Generator[Record, None, None]:
    """A record for each input, in order.

    Inputs are taken ahead, up to a batch and one for each core. With `padded`, every batch is full and one engine
    computes them all, so that a picture's scores do not depend on its place in the run.
    """
    if padded:
        make_ready(classifier.predict)
    sent: deque[Input] = deque()

    def send() -> Iterator[Any]:
        for one in inputs:
            sent.append(one)
            yield one.image

    with closing(classifier.stream(send(), top_k, batched=True, padded=padded)) as results:
        for result in results:
            yield _record(sent.popleft(), result)


def _record(one: Input, result: Result) -> Record:
    error = result.error
    if error is None:
        return Record(one.name, result.predictions, time=one.time)
    if isinstance(error, IsADirectoryError):
        error = ValueError(f"no images in the folder {one.name}")
    if isinstance(error, MissingExtraError):
        kind, problem = f"in need of the extra {error.extra}", sentence(ValueError(error.problem))
        return Record(one.name, None, problem, one.time, kind, error.advice)
    return Record(one.name, None, sentence(error), one.time, _kind(error))


def _kind(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "not there"
    if isinstance(error, PermissionError):
        return "not permitted"
    return "unreadable" if isinstance(error, OSError) else "no images, damaged or too large"
