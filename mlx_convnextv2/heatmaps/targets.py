"""Which label a heat map explains, and what its logit is compared with."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..messages import LINE, short, some
from ..model.config import ConvNextV2Config
from ..model.labels import class_labels

Labels = int | str | Sequence[int | str] | None
MEAN = "mean"


@dataclass(frozen=True)
class Target:
    """The explained labels, an index for each image, and what their logits are compared with.

    against: an index for each image, "mean", or None.
    """

    labels: list[int]
    against: list[int] | str | None

    def score(self, logits: mx.array) -> mx.array:
        """The labels' logits less what they are compared with: (N, ..., num_labels) -> (N, ...)."""
        chosen = _of_each(logits, self.labels)
        if self.against is None or logits.shape[-1] == 1:  # a single logit equals the mean
            return chosen
        if isinstance(self.against, str):
            return chosen - logits.mean(axis=-1)
        return chosen - _of_each(logits, self.against)


def resolve_targets(config: ConvNextV2Config, logits: mx.array, label: Labels, against: Labels) -> Target:
    """The target for `explain`'s arguments and logits (N, num_labels). Raises a ValueError if they are invalid."""
    count = len(logits)
    names = class_labels(config)
    others = against if against is None or against == MEAN else _for_each(against, count, names)
    labels = _first(logits, others) if label is None else _for_each(label, count, names)
    if others is None or isinstance(others, str):
        return Target(labels, others)
    same = [names[one] for one, other in zip(labels, others, strict=True) if one == other]
    if same:
        raise ValueError(f"the label {short(same[0])} cannot be compared with itself: choose another one")
    return Target(labels, others)


def find_label(names: Sequence[str], wanted: int | str) -> int:
    """The index of a label.

    Args:
        names: all labels, in the order of the logits.
        wanted: an index; or a label or one of its comma-separated synonyms, in any case; or, if no label has that
            name, an index in digits.

    Raises:
        ValueError: no label matches, or several do.
    """
    if isinstance(wanted, str):
        found = _named(names, wanted)
        if len(found) > 1:
            two = " and ".join(f"{index} ({names[index]})" for index in found[:2])
            raise ValueError(f"several labels are called {short(wanted)}: give the index instead, such as {two}")
        if found:
            return found[0]
        if not (wanted.isascii() and wanted.isdigit() and len(wanted) < 10):
            words = (
                [word for name in names for word in _words(name)] if len(wanted) <= LINE else []
            )  # no endless search
            near = difflib.get_close_matches(wanted.lower(), words, 3)
            hint = f": did you mean {', '.join(map(short, near))}?" if near else f": this model has {some(names, 3)}"
            raise ValueError(f"no label is called {short(wanted)}{hint}")
        wanted = int(wanted)
    elif isinstance(wanted, bool) or not isinstance(wanted, int | np.integer):
        raise TypeError(f"a label is an index or a name, not a {type(wanted).__name__}")
    if not 0 <= wanted < len(names):
        raise ValueError(f"the model has labels 0 to {len(names) - 1}, but no {wanted}")
    return int(wanted)


def _named(names: Sequence[str], wanted: str) -> list[int]:
    """The labels with this whole name, or else those with this synonym."""
    wanted = wanted.strip().lower()
    whole = [index for index, name in enumerate(names) if name.strip().lower() == wanted]
    return whole or [index for index, name in enumerate(names) if wanted in _words(name)]


def _words(name: str) -> list[str]:
    return [word.strip().lower() for word in name.split(",")]


def _for_each(wanted: int | str | Sequence[int | str], count: int, names: Sequence[str]) -> list[int]:
    if isinstance(wanted, int | np.integer | str):
        return [find_label(names, wanted)] * count
    labels = [find_label(names, one) for one in (wanted.tolist() if hasattr(wanted, "tolist") else wanted)]
    if len(labels) != count:
        raise ValueError(f"there must be one label for each image, {count} and not {len(labels)}")
    return labels


def _first(logits: mx.array, others: list[int] | str | None) -> list[int]:
    """Each image's best label other than the one that it is compared with."""
    scores = np.array(logits)
    if isinstance(others, list):
        scores[np.arange(len(others)), others] = -np.inf
    return [int(index) for index in scores.argmax(axis=-1)]


def _of_each(logits: mx.array, labels: list[int]) -> mx.array:
    """One label's logit for each image: (N, ..., num_labels) -> (N, ...)."""
    index = mx.array(labels).reshape(-1, *[1] * (logits.ndim - 1))  # (N, 1, ..., 1)
    index = mx.broadcast_to(index, (*logits.shape[:-1], 1))
    return mx.take_along_axis(logits, index, axis=-1)[..., 0]
