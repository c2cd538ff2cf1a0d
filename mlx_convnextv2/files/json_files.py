"""JSON files, read within bounds and written in the Hub's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MAX_JSON_BYTES = 4_000_000  # ImageNet-22k's labels take under 3 MB
_MAX_JSON_MARKS = 300_000  # commas and brackets; ImageNet-22k's labels, both ways, have about 120,000


def read_json(path: str | Path) -> Any:
    """The parsed content of a JSON file. A ValueError names a file that is not JSON or is too large."""
    if Path(path).stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path} has more than {_MAX_JSON_BYTES // 10**6} MB, so it is no checkpoint's JSON file")
    content = Path(path).read_bytes()
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > _MAX_JSON_MARKS:
        raise ValueError(f"{path} has more than {_MAX_JSON_MARKS:,} entries, so it is no checkpoint's JSON file")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{path} is not valid JSON ({error}): download or write it again") from None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file like the Hub's: indented, in UTF-8."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON's escape for half a pair, too
