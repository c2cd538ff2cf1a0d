"""YAML files of options, read within bounds: a few bytes of YAML can expand to gigabytes or take minutes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MAX_BYTES = 100_000
_MAX_BRACKETS = 100  # a few thousand take minutes to read
_LINE = "one option a line, as in epochs: 30"


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The map of names to values in a YAML file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is too large, not YAML, or not such a map.
    """
    import yaml  # comes with huggingface_hub

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no such configuration file: {file}")
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{file} has more than {_MAX_BYTES // 1000} kB, so it is no file of options")
    text = file.read_text(encoding="utf-8", errors="replace")
    if sum(map(text.count, "[{")) > _MAX_BRACKETS:
        raise ValueError(f"{file} must have {_LINE}")
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):  # a few could expand to gigabytes
            raise ValueError(f"{file} refers to itself with *, which is not read: write the values out")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        raise ValueError(f"{file} is not valid YAML{line}: write {_LINE}") from None
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{file} must have {_LINE}")
    return dict(values)


def write_yaml(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write a map, in its order, for `read_yaml`."""
    import yaml

    Path(path).write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), encoding="utf-8")
