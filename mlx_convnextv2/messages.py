"""Values, lists and errors as short text that is safe on a terminal and in a spreadsheet."""

from __future__ import annotations

import json
import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

LINE = 200  # characters: no message repeats more than this of a file's content
_MOST = 5_000  # characters of a whole message: the system's longest path and a sentence

# Characters that a terminal obeys or hides instead of showing: controls (C0, DEL, C1), line separators, marks that
# change the direction of text, invisible characters, halves of surrogate pairs. The joiners of emoji and Persian stay.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
_UNSAFE_IN_CSV = re.compile(rf"(?!\n){_UNSAFE.pattern}")
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")  # noqa: RUF001 - spreadsheets read the wide forms too


def printable(text: object) -> str:
    """Text on one line that a terminal shows and does not obey. Unsafe characters become \\x1b, \\u202e, ..."""
    return _UNSAFE.sub(_escape, str(text))


def csv_cell(text: object) -> str:
    """Text for a cell of a CSV file: `printable` except for newlines, which CSV quotes, and never a formula."""
    cell = _UNSAFE_IN_CSV.sub(_escape, str(text))
    return f"'{cell}" if _FORMULA.match(cell) else cell


def json_text(value: Any) -> str:
    """A value as JSON on one line, in the script that it is written in. Unsafe characters become JSON's escapes."""
    return _UNSAFE.sub(lambda match: json.dumps(match[0])[1:-1], json.dumps(value, ensure_ascii=False))


def cut(text: str, most: int = LINE) -> str:
    """Text, without its middle if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2 - 2]}...{text[len(text) - most // 2 + 1 :]}"


def short(value: Any) -> str:
    """A value as written in Python, cut to fit in a message."""
    try:
        return cut(printable(reprlib.repr(value)))
    except ValueError:  # a number of thousands of digits
        return f"a very long {type(value).__name__}"


def some(names: Sequence[str], most: int = 5) -> str:
    """A list for a message: the first few names in printable form, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name if name.isprintable() and len(name) < LINE else short(name) for name in names[:most]) + more


def grouped(names: Sequence[str], most: int = 3, lines: int = 10) -> str:
    """A list for a message. Many names with the same first word become that word and their number."""
    first = Counter(name.split(".")[0] for name in names if "." in name)
    entries: dict[str, None] = {}  # each once, in order
    for name in names:
        word = name.split(".")[0]
        entries[f"{word}.* ({first[word]} tensors)" if "." in name and first[word] > most else name] = None
    return some(list(entries), lines)


def one_line(error: BaseException) -> str:
    """The message of another library's error on one line, or the error's type if it has no message."""
    return cut(printable(" ".join(str(error).split()))) or type(error).__name__


def sentence(error: BaseException) -> str:
    """The message of one of our errors on one line. For a system error: the file and what failed."""
    if isinstance(error, OSError) and error.strerror:
        return printable(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    return cut(printable(" ".join(str(error).split())), _MOST) or type(error).__name__


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
