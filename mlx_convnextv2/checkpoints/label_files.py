"""Files that name classes: one label per line, or JSON like a checkpoint's config.json."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.json_files import read_json
from ..messages import short
from ..model.config import MAX_LABELS

_MAX_BYTES = 4_000_000  # ImageNet-22k's labels take under 3 MB
_WORDNET_LINE = re.compile(r"(n[0-9]{8})[\s,]+(\S.*)")  # "n01440764 tench, Tinca tinca"


def read_labels(file: str | os.PathLike[str]) -> list[str]:
    """The labels of a file, in the order of the classes.

    Args:
        file: text in UTF-8 with one label per line, or a .json file: a list of labels, {index: label}, {label: index},
            or a config.json with id2label. WordNet's number is dropped from a line such as
            "n01440764 tench, Tinca tinca".

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no labels, an empty one, indices that do not run from 0, or too many.
    """
    return [names[0] for names in read_names(file)]


def read_names(file: str | os.PathLike[str]) -> list[tuple[str, ...]]:
    """As `read_labels`, but each label is followed by WordNet's number if its line has one."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such file of labels: {path}")
    lines = _from_json(path) if path.suffix.lower() == ".json" else _lines(path)
    names = [_names(line) for line in lines]
    _check([first for first, *_ in names], path)
    return names


def _names(line: str) -> tuple[str, ...]:
    match = _WORDNET_LINE.fullmatch(line)
    return (match[2], match[1]) if match else (line,)


def _lines(path: Path) -> list[str]:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} has more than {_MAX_BYTES // 10**6} MB, so it is no file of labels")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8: save it as such, with one label a line") from None
    return [line.strip() for line in text.rstrip().splitlines()]


def _from_json(path: Path) -> list[str]:
    values = read_json(path)
    if isinstance(values, Mapping) and isinstance(values.get("id2label"), Mapping):
        values = values["id2label"]
    if isinstance(values, Mapping):
        values = _ordered(values, path)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f'{path} must hold a list of labels, or an object such as {{"0": "cat", "1": "dog"}}')
    return [value.strip() for value in values]


def _ordered(values: Mapping[str, Any], path: Path) -> list[Any]:
    """The labels of {index: label} or {label: index}, in the order of their indices."""
    if all(re.fullmatch(r"[0-9]{1,9}", key) for key in values):
        pairs = {int(key): value for key, value in values.items()}
    else:
        pairs = {index: label for label, index in values.items() if type(index) is int}
    if len(pairs) < len(values) or sorted(pairs) != list(range(len(values))):
        raise ValueError(f"{path} must number its {len(values)} labels from 0 without a gap")
    return [pairs[index] for index in range(len(pairs))]


def _check(labels: list[str], path: Path) -> None:
    if not labels:
        raise ValueError(f"{path} holds no labels: write one a line")
    if len(labels) > MAX_LABELS:
        raise ValueError(f"{path} holds {len(labels):,} labels, and a model has at most {MAX_LABELS:,}")
    check_labels(labels, f"{path}: ")


def check_labels(labels: list[str], where: str = "") -> None:
    """Raise a ValueError that begins with `where` if a label is not text, is empty, or cannot be printed."""
    for number, label in enumerate(labels, start=1):
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"{where}label {number} of {len(labels)} is {short(label)}: each needs a name")
        if not label.isprintable():
            raise ValueError(f"{where}label {number} of {len(labels)} cannot be printed, {short(label)}: rename it")


def composed(text: str) -> str:
    """Text in Unicode's composed form, in which labels and folder names are compared."""
    return unicodedata.normalize("NFC", text)
