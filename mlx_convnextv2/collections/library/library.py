"""A library of pictures on disk, and what can be asked of it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...heatmaps.targets import find_label
from ...inference.embedder import ImageEmbedder, check_features
from ...messages import some
from ..shards import Shard
from .duplicates import duplicates
from .embed import embed_folder, made_by, own_model
from .files import Made, another_model, find_shards
from .labels import head_of, labelled
from .nearest import nearest, rough_scores
from .reader import RenumberedError, View
from .update import Update
from .writer import Entry

Found = dict[str, Any]
Answer = TypeVar("Answer")
_TRIES = 5


class Library:
    """A library that `embed_folder` has made. Any thread may use it, also while it is being written.

    A picture is a dict: "path" (absolute), "score", "width", "height" (upright, in pixels), "taken" (the EXIF date,
    such as "2024-05-31T18:30:00", or None) and "size" (bytes).

    Args:
        path: the library's folder.
        model: a Hub id or a folder in place of the one that the library remembers, or an `ImageEmbedder`. Its body must
            have the same weights; its head may be another one, for `labelled`.

    Raises:
        FileNotFoundError: there is no library. If only some of its shards are there, that is a warning.
        OSError, ValueError: it cannot be read, is damaged, or its shards were made with different models.
    """

    def __init__(self, path: str | os.PathLike[str], model: str | os.PathLike[str] | ImageEmbedder | None = None):
        self.path = Path(path).expanduser()
        self._model = model
        self._embedder: ImageEmbedder | None = None
        views = self._views()
        self.made: Made = views[0].state.made
        self.shards: list[Shard] = [view.files.shard for view in views]
        if len(views) < (count := self.shards[0].count):
            here = some([str(shard) for shard in self.shards])
            warnings.warn(f"{self.path} is divided into {count} shards, of which only {here} are there", stacklevel=2)

    @property
    def embedder(self) -> ImageEmbedder:
        """The library's model, which is loaded on first use.

        Raises:
            FileNotFoundError, OSError, ValueError: as `load`; also if its features would not be the library's.
        """
        if self._embedder is None:
            given = own_model(self.path, self.made) if self._model is None else self._model
            if not isinstance(given, ImageEmbedder):
                given = ImageEmbedder(given, dtype=self.made.dtype)
            made = made_by(given)
            if not self.made.same(made):
                raise ValueError(another_model(self.path, self.made, made))
            self._embedder = given
        return self._embedder

    def __len__(self) -> int:
        return sum(view.count() for view in self._views())

    def __iter__(self) -> Iterator[Found]:
        """All pictures, without scores."""
        found = self._steadily(
            lambda views: [entry for view in views for entry in view.entries(np.unique(view.live()["row"]).tolist())]
        )
        return map(_picture, found)

    def search(self, image: Any, top_k: int = 20) -> list[Found]:
        """The pictures most like an image: a path, a file object, a PIL image or a uint8 array (H, W, C).

        Returns:
            At most `top_k` pictures, the best first, and by path where scores are equal. The score is the cosine of the
            features, which is exact: all pictures are compared.

        Raises:
            FileNotFoundError, OSError, ValueError: the image cannot be read; or as for `embedder`.
        """
        check_top_k(top_k)
        return self.search_features(self.embedder(image), top_k)

    def search_features(self, features: Any, top_k: int = 20) -> list[Found]:
        """As `search`, for pooled features (C,), of any length but zero."""
        check_top_k(top_k)
        vector = np.asarray(features, np.float64)
        if vector.shape != (self.made.features,):
            raise ValueError(f"the features must have the shape ({self.made.features},), not {vector.shape}")
        check_features(vector)
        query = (vector / np.linalg.norm(vector)).astype(np.float32)

        def answer(views: list[View]) -> list[Found]:
            found = [pair for view in views for pair in _best(view, query, top_k)]
            found.sort(key=_order)
            return [_picture(entry, score) for score, entry in found[:top_k]]

        return self._steadily(answer)

    def duplicates(self, threshold: float = 0.95) -> list[list[Found]]:
        """Groups of two or more pictures that are linked by pairs whose cosine is at least the threshold.

        All pairs are compared. Files with the same content are always a group.

        Returns:
            The largest group first. In each, the picture with the most pixels first; the scores are cosines with it.
        """
        if not 0 < threshold <= 1:
            raise ValueError(f"the threshold is a cosine above 0 and at most 1, not {threshold!r}")

        groups = self._steadily(lambda views: duplicates(views, threshold))
        return [[_picture(entry, score) for score, entry in group] for group in groups]

    def labelled(self, label: int | str, top_k: int | None = None) -> list[Found]:
        """The pictures whose best label is this one, the most probable first.

        The classifier's head is applied to the features in the library: no picture is read.

        Args:
            label: a label, one of its comma-separated synonyms in any case, or its index.
            top_k: how many pictures, at most. None means all.

        Returns:
            Pictures with the probability as their score, and with "label" and "index".

        Raises:
            ValueError: no such label, or several; the model has no classification head; or as for `embedder`.
        """
        if top_k is not None:
            check_top_k(top_k)
        labels, head = head_of(self.embedder)
        index = find_label(labels, label)
        found = self._steadily(lambda views: labelled(views, head, index))
        found.sort(key=_order)
        named = {"label": labels[index], "index": index}
        return [{**_picture(entry, score), **named} for score, entry in found[:top_k]]

    def update(self, *folders: str | os.PathLike[str], **options: Any) -> Update:
        """Bring the library up to date with folders of pictures: `embed_folder` with this library and its model."""
        return embed_folder(list(folders), self.path, self.embedder, **options)

    def _views(self) -> list[View]:
        missing = f"there is no library in {self.path}: make one with embed"
        try:
            shards = find_shards(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(missing) from None
        views = [view for shard in shards if (view := View.of(shard)) is not None]
        if not views:
            raise FileNotFoundError(missing)
        for view in views[1:]:
            if not view.state.made.same(views[0].state.made):
                raise ValueError(another_model(self.path, views[0].state.made, view.state.made))
        return views

    def _steadily(self, answer: Callable[[list[View]], Answer]) -> Answer:
        """The answer from views of the shards, asked again if a matrix is rewritten meanwhile."""
        for _ in range(_TRIES):
            try:
                return answer(self._views())
            except RenumberedError:
                continue
        raise OSError(f"{self.path} is being written all the time: try again")


def _best(view: View, query: np.ndarray, count: int) -> list[tuple[float, Entry]]:
    """The shard's pictures with the best `count` scores, those that tie with the last, and perhaps more."""
    rough = rough_scores(view.features, query)
    wanted = count
    while True:
        rows, scores = nearest(view.features, query, rough, wanted)
        found = dict(zip(rows.tolist(), scores.tolist(), strict=True))
        entries = view.entries(list(found))
        if len(entries) >= count or len(rows) == len(rough):
            return [(found[entry.row], entry) for entry in entries]
        wanted *= 4  # some of these rows belong to no picture any more


def _order(found: tuple[float, Entry]) -> tuple[float, bytes]:
    return -found[0], found[1].path


def _picture(entry: Entry, score: float | None = None) -> Found:
    scored = {} if score is None else {"score": score}
    return {
        **{"path": os.fsdecode(entry.path), **scored, "width": entry.width, "height": entry.height},
        **{"taken": entry.taken, "size": entry.size},
    }


def check_top_k(top_k: int) -> None:
    """Raise a ValueError unless it is a whole number of at least 1."""
    if not isinstance(top_k, int | np.integer) or top_k < 1:
        raise ValueError(f"top_k must be a whole number of at least 1, not {top_k!r}")
