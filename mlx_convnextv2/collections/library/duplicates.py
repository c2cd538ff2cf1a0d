"""Groups of near-duplicates: pictures that are linked by pairs whose cosine reaches a threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .nearest import SCALE, cosines, margin, unscaled
from .reader import View
from .writer import Entry

_BLOCK = 2048  # rows: 16 MiB of scores
_PAIRS = 8192  # computed in float64 at a time

Rows = Callable[[np.ndarray], np.ndarray]


def duplicates(views: Sequence[View], threshold: float) -> list[list[tuple[float, Entry]]]:
    """Groups of two or more pictures, the largest first.

    In each, the picture with the most pixels comes first; the numbers are cosines with it.
    """
    live = [np.unique(view.live()["row"], return_counts=True) for view in views]
    rows = np.concatenate([own for own, _ in live])
    owner = np.repeat(np.arange(len(views)), [len(own) for own, _ in live])
    width = views[0].features.shape[1]

    def features(indices: np.ndarray) -> np.ndarray:
        found = np.empty((len(indices), width), "<f2")
        for number, view in enumerate(views):
            own = owner[indices] == number
            found[own] = view.features[rows[indices[own]]]
        return found

    first = linked(features, len(rows), width, threshold)
    pictures = np.zeros(len(rows), np.int64)
    np.add.at(pictures, first, np.concatenate([counts for _, counts in live]))
    wanted = np.flatnonzero(pictures[first] > 1)
    groups: dict[int, list[tuple[int, Entry]]] = {}
    for number, view in enumerate(views):
        index = {int(rows[i]): int(i) for i in wanted[owner[wanted] == number]}
        for entry in view.entries(list(index)):
            groups.setdefault(int(first[index[entry.row]]), []).append((index[entry.row], entry))
    scored = [_scored(group, features) for group in groups.values()]
    return sorted(scored, key=lambda group: (-len(group), group[0][1].path))


def _scored(group: list[tuple[int, Entry]], features: Rows) -> list[tuple[float, Entry]]:
    group.sort(key=lambda one: (-one[1].width * one[1].height, -one[1].size, one[1].path))
    scores: list[float] = []
    best = features(np.array([group[0][0]]))[0]
    for start in range(0, len(group), _PAIRS):
        scores += cosines(features(np.array([i for i, _ in group[start : start + _PAIRS]])), best).tolist()
    return [(score, entry) for score, (_, entry) in zip(scores, group, strict=True)]


def linked(rows: Rows, count: int, width: int, threshold: float) -> np.ndarray:
    """The first row of each row's group (count,). Groups are the connected parts of the graph of all close pairs.

    All pairs are compared, in blocks in float32. Pairs that are too near the threshold are compared again in float64.

    Args:
        rows: indices (n,) -> features (n, C) float16.
        count, width: the number of rows, and of features C.
        threshold: the least cosine of a close pair.
    """
    first = np.arange(count)
    unsure = margin(width)
    for left, right, scores in _products_of_blocks(rows, count):
        i, j = np.nonzero(scores >= threshold - unsure)
        sure = scores[i, j] >= threshold + unsure
        i, j = left[i], right[j]
        join(first, i[sure], j[sure])
        i, j = i[~sure], j[~sure]
        while len(i := i[apart := first[i] != first[j]]):
            j = j[apart]
            close = cosines(rows(i[:_PAIRS]), rows(j[:_PAIRS])) >= threshold
            join(first, i[:_PAIRS][close], j[:_PAIRS][close])
            i, j = i[_PAIRS:], j[_PAIRS:]
    return first


def join(first: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
    """Join the groups of i and j, for all pairs at once. `first` holds the first row of each row's group."""
    while True:
        a, b = first[i], first[j]
        apart = a != b
        if not apart.any():
            return
        i, j = i[apart], j[apart]
        np.minimum.at(first, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while not np.array_equal(above := first[first], first):
            first[:] = above


def _products_of_blocks(rows: Rows, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Each pair of blocks: the indices (n,) and (m,) of their rows, and the products (n, m) in float32."""
    blocks = [np.arange(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    for place, left in enumerate(blocks):
        floats = _floats(rows(left))
        for right in blocks[place:]:
            yield left, right, floats @ (_floats(rows(right)) if right is not left else floats).T


def _floats(features: np.ndarray) -> np.ndarray:
    found = unscaled(features, np.empty(features.shape, np.float32))
    return np.multiply(found, SCALE, out=found)
