"""The work on a picture: one of a few threads decodes it, a single thread computes, and the server answers."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from PIL import Image

from ..heatmaps.drawing import overlay
from ..heatmaps.explanations import Explanation
from ..heatmaps.geometry import covered_box, seen_box
from ..heatmaps.methods import METHODS, check_method, explain_scores
from ..heatmaps.targets import find_label
from ..images.decode import NAMELESS, open_image
from ..inference.classifier import ImageClassifier, softmax
from ..inference.fuse import fuse, make_ready
from ..inference.numpy_classifier import NumpyClassifier
from ..inference.onnxruntime_classifier import ONNXRuntimeClassifier
from ..messages import sentence
from ..runtime.threads import available_cpus
from . import parameters as parse
from .batching import Batcher
from .bodies import Body
from .errors import RefusedError, busy
from .limits import Limits
from .metrics import Metrics

Outcome = TypeVar("Outcome")
_MAX_DECODERS = 4  # each may hold a picture of `max_pixels`
_COMPRESSION = 1  # of a PNG: the fastest, because each is sent once


@dataclass
class _Prepared:
    """A picture's pixel values (H, W, C). For drawing, also the picture and its original size."""

    pixel_values: np.ndarray
    picture: Image.Image | None = None
    size: tuple[int, int] = (0, 0)


class Service:
    """A classifier behind the endpoints. One thread computes; a few decode pictures and draw."""

    def __init__(self, classifier: ImageClassifier, limits: Limits, metrics: Metrics):
        self.classifier, self.limits, self.metrics = classifier, limits, metrics
        self.waiting = 0
        self.draining = False
        self._decoders = ThreadPoolExecutor(min(available_cpus(), _MAX_DECODERS), "mlx_convnextv2 decode")
        self._embed: Callable[[mx.array], mx.array] | None = None
        make_ready(classifier.predict)
        # Neither is faster with several pictures at once, and the first of a batch would wait for the last.
        most = 1 if isinstance(classifier.predict, NumpyClassifier | ONNXRuntimeClassifier) else limits.max_batch
        self.batcher = Batcher(self._compute, most, limits.max_wait, metrics.saw_batch)

    @property
    def ready(self) -> bool:
        return self.batcher.alive and not self.draining

    @property
    def full(self) -> bool:
        return self.waiting >= self.limits.max_waiting or self.draining

    def close(self) -> None:
        self.draining = True
        self.batcher.close()
        self._decoders.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among the requests that may be served. Raises a RefusedError if all are taken."""
        if self.full:
            raise busy()
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def classify(self, body: Body) -> list[dict[str, Any]]:
        """[{"label", "score", "index"}, ...], the highest score first."""
        wanted = body.parameters
        parse.check_known(wanted, ("top_k", "function_to_apply"))
        count = parse.top_k(wanted)
        function = parse.function_to_apply(wanted, self._default_function())
        logits = await self._run("logits", body.picture)
        scores = _FUNCTIONS[function](logits)
        _check_finite(scores)
        labels = self.classifier.labels
        best = np.argsort(-scores, kind="stable")[:count]
        return [{"label": labels[i], "score": float(scores[i]), "index": int(i)} for i in best]

    async def embed(self, body: Body) -> list[float]:
        """The pooled features."""
        parse.check_known(body.parameters, ())
        features = await self._run("features", body.picture)
        _check_finite(features)
        return [float(value) for value in features]

    async def explain(self, body: Body) -> tuple[Explanation, bytes | None]:
        """An explanation of the picture, and a PNG, or None if "format" is "json"."""
        wanted, config = body.parameters, self.classifier.model.config
        parse.check_known(wanted, ("label", "against", "layer", "method", "legend", "format"))
        label, against = parse.label(wanted, "label"), parse.label(wanted, "against")
        layer = parse.text(wanted, "layer", tuple(config.stage_names), None)
        method = parse.text(wanted, "method", METHODS, None)
        format = parse.text(wanted, "format", ("png", "json"), "png")
        legend = parse.switch(wanted, "legend", True)
        names = self.classifier.labels
        try:
            check_method(self.classifier.model, layer, method)
            label = label if label is None else find_label(names, label)
            against = "mean" if against in (None, "mean") else find_label(names, against)
        except ValueError as error:
            raise RefusedError(400, sentence(error)) from None
        if label is not None and label == against:
            raise RefusedError(400, "a label cannot be compared with itself: choose another one for against")
        prepared = await self._prepared(lambda: self._prepare_to_draw(body.picture))
        what = (("label", label), ("against", against), ("layer", layer), ("method", method))
        heat_map, logits, index = await self.batcher.run(what, prepared.pixel_values)
        explanation = self._explanation(prepared, heat_map, logits, index, against)
        if format == "json":
            return explanation, None
        return explanation, await self.in_thread(lambda: _png(explanation, legend))

    def _explanation(
        self, prepared: _Prepared, heat_map: np.ndarray, logits: np.ndarray, index: int, against: int | str
    ) -> Explanation:
        _check_finite(logits)
        _check_finite(heat_map)
        config, names = self.classifier.model.config, self.classifier.labels
        seen = seen_box(self.classifier.processor, prepared.size)
        box = covered_box(config, heat_map.shape, prepared.pixel_values.shape[:2], seen)
        less = 0.0 if len(names) == 1 else logits.mean() if isinstance(against, str) else logits[against]
        return Explanation(
            prepared.picture,
            label=names[index],
            index=index,
            score=float(softmax(logits)[index]),
            against=against if isinstance(against, str) else names[against],
            value=float(logits[index] - less),
            heat_map=heat_map,
            box=box,
            size=prepared.size,
        )

    async def _run(self, what: Hashable, picture: bytes) -> Any:
        """The model's result for a picture; `what` says which."""
        prepared = await self._prepared(lambda: self._prepare(picture))
        return await self.batcher.run(what, prepared.pixel_values)

    async def _prepared(self, prepare: Callable[[], _Prepared]) -> _Prepared:
        """Run `prepare` in one of the decoding threads."""
        self.batcher.expect(1)
        try:
            return await self.in_thread(prepare)
        except (ValueError, OSError) as error:
            message = sentence(error)
            raise RefusedError(413 if "too many pixels" in message else 400, message) from None
        except MemoryError:
            raise busy() from None
        finally:
            self.batcher.expect(-1)

    async def in_thread(self, function: Callable[[], Outcome]) -> Outcome:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function)

    def _prepare(self, content: bytes) -> _Prepared:
        """In a decoding thread."""
        return _Prepared(self._pixel_values(io.BytesIO(content)))

    def _prepare_to_draw(self, content: bytes) -> _Prepared:
        """In a decoding thread. Also keeps the upright picture, no larger than its heat map is drawn."""
        picture = open_image(io.BytesIO(content), max_pixels=self.classifier.processor.max_pixels)
        prepared = _Prepared(self._pixel_values(picture), picture, picture.size)
        picture.thumbnail((self.limits.max_side, self.limits.max_side), Image.Resampling.LANCZOS)
        return prepared

    def _pixel_values(self, source: Any) -> np.ndarray:
        """The pixel values (H, W, C), checked to be large enough for the model."""
        array = self.classifier.processor.preprocess(source)
        height, width = self.classifier.model.config.min_image_shape
        if array.shape[0] < height or array.shape[1] < width:
            raise ValueError(f"{NAMELESS} is too small: the model needs {height} x {width} pixels")
        return array

    def _compute(self, what: Hashable, pixel_values: np.ndarray) -> Sequence[Any]:
        """In the thread that computes. N results for pixel values (N, H, W, C)."""
        batch = mx.array(pixel_values)
        if what == "logits":
            return list(np.array(self.classifier.predict(batch).astype(mx.float32)))
        if what == "features":
            self._embed = self._embed or fuse(self.classifier.model, pooled=True)
            return list(np.array(self._embed(batch).astype(mx.float32)))
        options = dict(what)  # type: ignore[call-overload]
        maps, logits, target = explain_scores(self.classifier.model, batch, **options)
        return list(zip(np.array(maps), np.array(logits), target.labels, strict=True))

    def _default_function(self) -> str:
        """As transformers' pipeline: sigmoid for a single logit or for multi-label models, otherwise softmax."""
        config = self.classifier.model.config
        alone = config.problem_type == "multi_label_classification" or config.num_labels == 1
        return "sigmoid" if alone else "softmax"


def _png(explanation: Explanation, legend: bool) -> bytes:
    """The heat map over the picture. The box is scaled from the original size to the drawn one."""
    content = io.BytesIO()
    left, top, right, bottom = explanation.box
    across = explanation.image.width / explanation.size[0]
    down = explanation.image.height / explanation.size[1]
    box = (left * across, top * down, right * across, bottom * down)
    text = explanation.legend() if legend else None
    drawn = overlay(explanation.image, explanation.heat_map, box, legend=text)
    drawn.save(content, "PNG", compress_level=_COMPRESSION)
    return content.getvalue()


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits))


_FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": softmax,
    "sigmoid": _sigmoid,
    "none": lambda logits: logits,
}


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        problem = "the scores are not finite: the model's weights are damaged, or too large for its dtype"
        raise RefusedError(500, problem)
