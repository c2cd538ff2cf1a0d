"""Which class of a model each folder of images stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints.label_files import composed, read_names
from ..files.json_files import read_json
from ..messages import short, some
from ..model.labels import imagenet_1k, imagenet_1k_synsets

_LISTED = 20  # names in an error
_SAME = 0.9  # share of ImageNet's 1000 labels that must match before its numbers are used


def match_folders(
    folders: Sequence[str], labels: Sequence[str], names: str | os.PathLike[str] | None = None
) -> list[int]:
    """The class of each folder: an index into the labels.

    A folder belongs to the class whose label is the folder's name. Failing that, case, spaces, underscores and hyphens
    are ignored. Failing that, the folder may have one of the names in a label such as "tabby, tabby cat". A number such
    as n01440764 stands for a class of ImageNet.

    Args:
        folders: the names of the folders.
        labels: the model's labels, in the order of its classes.
        names: a file that names the classes in their order, as `read_labels` reads it. Its names are tried before the
            labels. Or a .json file {folder: label}.

    Raises:
        ValueError: some folders match no class (the message lists them), a name belongs to two classes, two folders
            belong to one class, or the file of names does not fit the model.
    """
    lookups = _lookups(labels)
    own: dict[str, int] = {}
    if names is not None:
        lookups, own = _with_names(names, labels, lookups)
    found: dict[str, int] = {}
    unknown: list[str] = []
    for folder in folders:
        index = own.get(composed(folder))
        if index is None:
            index = _find(folder, lookups)
        if index is None:
            unknown.append(folder)
        else:
            found[folder] = index
    if unknown:
        raise ValueError(_unknown(unknown, len(folders), labels))
    _check_distinct(found, labels)
    return [found[folder] for folder in folders]


@dataclass
class _Lookup:
    """From names to the classes that have them. Names are compared after `key` is applied."""

    key: Callable[[str], str]
    classes: dict[str, set[int]] = field(default_factory=dict)

    def add(self, names: Iterable[str], index: int) -> None:
        for name in names:
            self.classes.setdefault(self.key(name), set()).add(index)

    def get(self, name: str) -> set[int]:
        return self.classes.get(self.key(name), set())


def _lookups(labels: Sequence[str]) -> list[_Lookup]:
    """The tables, in order. The first that knows a folder decides its class."""
    exact, alike, synonyms = _Lookup(composed), _Lookup(_plain), _Lookup(_plain)
    for index, label in enumerate(labels):
        exact.add([label], index)
        alike.add([label], index)
        synonyms.add(label.split(","), index)
    return [exact, _synsets(labels, synonyms), alike, synonyms]


def _synsets(labels: Sequence[str], synonyms: _Lookup) -> _Lookup:
    """ImageNet's numbers: by the class's place if the labels are ImageNet's, otherwise by the number's names."""
    if len(labels) == len(imagenet_1k()):
        like = sum(
            not {*map(_plain, own.split(","))}.isdisjoint(map(_plain, names.split(",")))
            for own, names in zip(labels, imagenet_1k(), strict=True)
        )
        if like >= _SAME * len(labels):
            return _Lookup(str, {number: {index} for index, number in enumerate(imagenet_1k_synsets())})
    numbers = _Lookup(str)
    for number, names in zip(imagenet_1k_synsets(), imagenet_1k(), strict=True):
        for index in set().union(*map(synonyms.get, names.split(","))):
            numbers.add([number], index)
    return numbers


def _with_names(
    file: str | os.PathLike[str], labels: Sequence[str], lookups: list[_Lookup]
) -> tuple[list[_Lookup], dict[str, int]]:
    """The tables with a file's names put first, or the classes of the folders that the file lists."""
    path = Path(file).expanduser()
    values = read_json(path) if path.suffix.lower() == ".json" and path.is_file() else None
    if isinstance(values, Mapping) and values and "id2label" not in values and not _is_numbered(values):
        return lookups, _listed(values, labels, lookups, path)
    names = read_names(path)
    if len(names) != len(labels):
        raise ValueError(f"{path} names {len(names)} classes and the model has {len(labels)}: give one line a class")
    exact, alike = _Lookup(composed), _Lookup(_plain)
    for index, own in enumerate(names):
        exact.add(own, index)
        alike.add(own, index)
    return [exact, alike, *lookups], {}


def _is_numbered(values: Mapping[str, object]) -> bool:
    """Whether this is {index: label}, which names classes, and not {folder: label}."""
    return all(key.isdecimal() for key in values) and all(isinstance(value, str) for value in values.values())


def _listed(values: Mapping[str, object], labels: Sequence[str], lookups: list[_Lookup], path: Path) -> dict[str, int]:
    own = {}
    for folder, value in values.items():
        index = value if type(value) is int else _find(value, lookups) if isinstance(value, str) else None
        if index is None or not 0 <= index < len(labels):
            raise ValueError(
                f"{path} says that the folder {short(folder)} is {short(value)}, which is no class of the model"
            )
        own[composed(folder)] = index
    return own


def _find(folder: str, lookups: Iterable[_Lookup]) -> int | None:
    for lookup in lookups:
        classes = lookup.get(folder)
        if len(classes) > 1:
            raise ValueError(
                f"the folder {short(folder)} could be any of the classes {some(list(map(str, sorted(classes))))}, "
                "which share the name: name it by ImageNet's number, or say which with --labels"
            )
        if classes:
            return next(iter(classes))
    return None


def _plain(name: str) -> str:
    """A name without the differences in case and in how words are joined."""
    return re.sub(r"[\s_-]+", " ", composed(name)).strip().casefold()


def _unknown(unknown: list[str], count: int, labels: Sequence[str]) -> str:
    which = "this folder is no class" if len(unknown) == 1 else f"{len(unknown)} of {count} folders are no classes"
    return (
        f"{which} of the model: {some(unknown, _LISTED)}. Its {len(labels)} labels are {some([*map(short, labels)])}: "
        "rename the folders, or say which they are with --labels"
    )


def _check_distinct(found: Mapping[str, int], labels: Sequence[str]) -> None:
    folders: dict[int, list[str]] = {}
    for folder, index in found.items():
        folders.setdefault(index, []).append(folder)
    doubled = [
        f"{' and '.join(map(short, same))} for {short(labels[index])}"
        for index, same in folders.items()
        if len(same) > 1
    ]
    if doubled:
        raise ValueError(f"two folders stand for one class: {some(doubled)}. Join them or rename one")
