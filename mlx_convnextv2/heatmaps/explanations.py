"""Heat maps of many pictures, read from files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from ..images.decode import MAX_PIXELS, open_image
from ..inference.classifier import ImageClassifier, softmax
from ..inference.pipeline import read_into
from ..messages import printable, sentence
from ..runtime.prefetch import map_ahead
from ..runtime.threads import available_cpus
from .drawing import overlay
from .geometry import Box, covered_box, seen_box
from .methods import check_method, explain_scores
from .pictures import again, keep, named_pictures, naming
from .targets import find_label


@dataclass
class Explanation:
    """One picture's heat map, or the error that kept it from being read or explained.

    image: as it was given. label, index: the explained label. score: its probability. against: "mean", another label,
    or None. value: the label's logit less the one that it is compared with, which the map explains. heat_map: (h, w)
    float32. box: left, top, right, bottom of the part that the map covers, in pixels of the upright picture. size: that
    picture's (width, height). max_pixels: the reader's limit.
    """

    image: Any
    label: str = ""
    index: int = -1
    score: float = 0.0
    against: str | None = None
    value: float = 0.0
    heat_map: np.ndarray | None = None
    box: Box = (0.0, 0.0, 0.0, 0.0)
    size: tuple[int, int] = (0, 0)
    max_pixels: int = field(default=MAX_PIXELS, repr=False)
    error: ValueError | OSError | None = None

    def legend(self) -> str:
        """The label and its score, in one line."""
        versus = "" if self.against in (None, "mean") else f" rather than {self.against}"
        return f"{self.label}{versus}  {self.score:.1%}"

    def to_dict(self) -> dict[str, Any]:
        """The fields that go into JSON."""
        if self.error is not None or self.heat_map is None:
            return {"error": "there is no heat map" if self.error is None else sentence(self.error)}
        return {
            "label": self.label,
            "index": self.index,
            "score": self.score,
            "against": self.against,
            "value": self.value,
            "size": list(self.size),
            "box": list(self.box),
            "heat_map": self.heat_map.tolist(),
        }

    def draw(self, legend: bool = True) -> Image.Image:
        """The upright picture in its own size with the map over it. The picture is read again.

        Raises:
            FileNotFoundError, OSError, ValueError: the picture can no longer be read, or this is the `error`.
        """
        if self.error is not None or self.heat_map is None:
            raise self.error or ValueError("there is no heat map to draw")
        picture = open_image(again(self.image), "L", self.max_pixels)
        return overlay(picture, self.heat_map, self.box, legend=self.legend() if legend else None)


def explain_images(
    classifier: ImageClassifier,
    images: Iterable[Any],
    label: int | str | None = None,
    *,
    against: int | str | None = "mean",
    layer: str | None = None,
    method: str | None = None,
) -> Iterator[Explanation]:
    """Explain pictures in order, read in threads and explained in batches of the classifier's `batch_size`.

    Args:
        classifier: the model, its processor and its batch size.
        images: paths, folders, binary file objects, PIL images or uint8 arrays (H, W, C). A list's pictures are read
            ahead and explained in batches. An iterator's are taken one by one.
        label, against, layer, method: as for `explain`, the same for all pictures.

    Raises:
        ValueError: no such label, layer or method. A picture's own error is in its `Explanation`.
    """
    names = classifier.labels
    check_method(classifier.model, layer, method)
    label = label if label is None else find_label(names, label)
    against = against if against in (None, "mean") else find_label(names, against)
    if label is not None and label == against:
        raise ValueError(f"the label {printable(names[label])} cannot be compared with itself: choose another one")
    options = {"label": label, "against": against, "layer": layer, "method": method}
    if not isinstance(images, list | tuple):  # an iterator may be a camera: one picture at a time
        return _explain_images(classifier, images, 1, 1, options)
    opened = [id(image) for image in images if not isinstance(image, str | os.PathLike | np.ndarray)]
    workers = available_cpus() if len(set(opened)) == len(opened) else 1  # two may not read one open file at once
    return _explain_images(classifier, images, workers, classifier.batch_size, options)


def _explain_images(
    classifier: ImageClassifier, images: Iterable[Any], workers: int, batch_size: int, options: dict[str, Any]
) -> Iterator[Explanation]:
    def explained(waiting: list[tuple[Explanation, np.ndarray | None]]) -> list[Explanation]:
        """The batch with its maps filled in."""
        results = [result for result, _ in waiting]
        readable = [(result, array) for result, array in waiting if array is not None]
        if readable:
            pixel_values = mx.array(np.stack([array for _, array in readable]))
            _fill(classifier, [result for result, _ in readable], pixel_values, options)
        return results

    ahead = batch_size + workers if batch_size > 1 else 1
    prepared = map_ahead(
        lambda result: _prepare(classifier, result),
        (_take(image) for image, _ in named_pictures(images)),
        workers,
        ahead,
    )
    with closing(prepared):
        waiting: list[tuple[Explanation, np.ndarray | None]] = []
        for result, array in prepared:
            shapes = {other.shape for _, other in waiting if other is not None}
            if array is not None and shapes - {array.shape}:  # without do_resize each picture has its own size
                yield from explained(waiting)
                waiting = []
            waiting.append((result, array))
            if len(waiting) == batch_size:
                yield from explained(waiting)
                waiting = []
        yield from explained(waiting)


def _take(image: Any) -> Explanation:
    """The result to fill in. An open file's content is kept, because it is read to explain and again to draw."""
    try:
        return Explanation(keep(image))
    except (OSError, ValueError) as error:
        return Explanation(image, error=naming(error, image))


def _prepare(classifier: ImageClassifier, result: Explanation) -> tuple[Explanation, np.ndarray | None]:
    """The result, and the pixel values (H, W, C) of its picture, or None with the error in the result."""
    processor = classifier.processor

    def read() -> np.ndarray:
        mode = "L" if len(processor.image_mean) == 1 else "RGB"
        picture = open_image(again(result.image), mode, processor.max_pixels)
        result.size, result.max_pixels = picture.size, processor.max_pixels
        return classifier.preprocess(picture)

    return read_into(result, read, naming)


def _fill(
    classifier: ImageClassifier, results: list[Explanation], pixel_values: mx.array, options: dict[str, Any]
) -> None:
    """Explain pixel_values (N, H, W, C) and fill in the results."""
    names, config = classifier.labels, classifier.model.config
    heat_maps, scores, target = explain_scores(classifier.model, pixel_values, **options)
    # (N, h, w), (N, num_labels) and (N,)
    maps, logits, values = (np.array(array) for array in (heat_maps, scores, target.score(scores)))
    against = options["against"]
    for i, result in enumerate(results):
        if not np.isfinite(logits[i]).all() or not np.isfinite(maps[i]).all():
            problem = "its scores are not finite: the model's weights are damaged, or too large for its dtype"
            result.error = naming(ValueError(problem), result.image)
            continue
        index = target.labels[i]
        result.label, result.index, result.score = names[index], index, float(softmax(logits[i])[index])
        result.against = names[against] if isinstance(against, int) else against
        result.value, result.heat_map = float(values[i]), maps[i]
        seen = seen_box(classifier.processor, result.size)
        result.box = covered_box(config, maps.shape[1:], pixel_values.shape[1:3], seen)
