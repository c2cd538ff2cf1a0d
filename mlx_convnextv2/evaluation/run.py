"""Run a classifier on folders of labelled images and gather its answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ..images.class_folders import ClassFolders
from ..inference.classifier import ImageClassifier, softmax
from ..messages import sentence
from .evaluation import Evaluation
from .findings import TOP, Failure
from .matching import match_folders
from .metrics import best_classes, label_ranks, log_softmax
from .splits import find_images

# Called after each image with the number of images done, of all images, and of right answers.
Watch = Callable[[int, int, int], None]


def evaluate(
    model: str | os.PathLike[str] | ImageClassifier,
    data: str | os.PathLike[str] | ClassFolders,
    *,
    split: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    batch_size: int = 32,
    max_pixels: int | None = None,
    watch: Watch | None = None,
) -> Evaluation:
    """Measure how good a classifier is on images whose classes are known.

    Images are read and prepared in threads while others are classified. An image that cannot be read is listed among
    the failures, and no figure counts it.

    Args:
        model: a Hub id, a folder, or an ImageClassifier, which has its own batch size and dtype.
        data: a folder with a folder for each class, perhaps with train/, val/ and test/ above them; or the result of
            `read_class_folders`. `match_folders` says which folder is which class.
        split: "train", "val", "test" or "all". None takes test/ if it exists, otherwise val/. If neither exists, it
            takes the images that training set aside if the model's folder says that it was trained on `data`, and all
            images otherwise.
        labels: a file that says which folder is which class, as `match_folders` reads it.
        dtype, revision: as for `load`.
        batch_size: images that go through the model at once.
        max_pixels: refuse larger images.
        watch: called after each image.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder, split or checkpoint.
        OSError, ValueError: as `load`, `read_class_folders` and `match_folders`; also if no image could be read.
    """
    given = model if isinstance(model, ImageClassifier) else None
    if given is not None and (dtype, revision, max_pixels) != (None, None, None):
        raise ValueError("dtype, revision and max_pixels are for loading: give them to the ImageClassifier")
    name = "the model" if isinstance(model, ImageClassifier) else os.fspath(model)
    folder = Path(name).expanduser() if given is None and Path(name).expanduser().is_dir() else None
    if isinstance(data, ClassFolders):
        images, where = data, f"{len(data.classes)} folders of classes"
    else:
        images, where = find_images(Path(data).expanduser(), split, folder)
    classifier = given or ImageClassifier(name, dtype=dtype, revision=revision, batch_size=batch_size)
    if max_pixels is not None:
        classifier.processor.max_pixels = max_pixels
    classes = np.array(match_folders(images.classes, classifier.labels, labels), np.int64)
    targets = classes[np.array(images.labels, np.int64)]
    return _gather(classifier, images.files, targets, watch, model=name, data=where, folder=folder)


def _gather(
    classifier: ImageClassifier, files: Sequence[Path], targets: np.ndarray, watch: Watch | None, **about: Any
) -> Evaluation:
    """The answers to the files. `targets` holds the files' classes, `about` further fields of the result."""
    start = time.perf_counter()
    top = min(TOP, len(classifier.labels))
    answers, scores = np.zeros((len(files), top), np.int64), np.zeros((len(files), top), np.float32)
    target_scores, losses = np.zeros(len(files), np.float32), np.zeros(len(files), np.float32)
    ranks = np.zeros(len(files), np.int64)
    answered = np.zeros(len(files), bool)
    failures: list[Failure] = []
    right = 0
    with closing(classifier.stream_logits(list(files))) as results:
        for index, (result, logits) in enumerate(results):
            if logits is None:
                failures.append(Failure(result.image, sentence(result.error or ValueError("no answer"))))
            else:
                target = targets[index]
                probabilities = softmax(logits)
                answers[index] = best_classes(probabilities, top)
                scores[index] = probabilities[answers[index]]
                target_scores[index] = probabilities[target]
                losses[index] = -log_softmax(logits.astype(np.float64))[target]
                ranks[index] = label_ranks(probabilities[None], targets[index : index + 1])[0]
                answered[index] = True
                right += ranks[index] == 0
            if watch is not None:
                watch(index + 1, len(files), int(right))
    if not answered.any():
        first = f", the first because {failures[0].error}" if failures else ""
        raise ValueError(f"none of the {len(files)} images could be read{first}")
    return Evaluation(
        labels=classifier.labels,
        images=[file for file, good in zip(files, answered, strict=True) if good],
        targets=targets[answered],
        answers=answers[answered],
        scores=scores[answered],
        target_scores=target_scores[answered],
        ranks=ranks[answered],
        losses=losses[answered],
        failures=failures,
        seconds=time.perf_counter() - start,
        **about,
    )
