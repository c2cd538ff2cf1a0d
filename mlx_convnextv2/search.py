"""`python -m mlx_convnextv2.search`: find pictures in a library, by a picture or a label, or near-duplicates."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import terminal

_FORMATS = ("table", "jsonl", "html")
_SUFFIXES = {".html": "html", ".htm": "html", ".jsonl": "jsonl", ".json": "jsonl", ".txt": "table", "": "table"}

_EXAMPLES = """\
  python -m mlx_convnextv2.search library/ cat.jpg
  python -m mlx_convnextv2.search library/ cat.jpg --top-k 100 --output cats.html
  python -m mlx_convnextv2.search library/ --label "tabby cat" --format jsonl
  python -m mlx_convnextv2.search library/ --duplicates --output duplicates.html
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser("search", "Find pictures in a library that embed has made.", _EXAMPLES)
    parser.add_argument("library", metavar="LIBRARY", help="the library's folder")
    parser.add_argument(
        "image", nargs="?", metavar="IMAGE", help="find the pictures most like this one; - is standard input"
    )
    parser.add_argument("--label", metavar="L", help="find the pictures that the classifier gives this label or index")
    parser.add_argument("--duplicates", action="store_true", help="find groups of pictures that are nearly the same")
    parser.add_argument(
        "--threshold", type=float, default=0.95, metavar="T", help="the least cosine of near-duplicates (default: 0.95)"
    )
    parser.add_argument(
        "--top-k", type=terminal.positive_int, metavar="K", help="pictures, or groups, at most (default: 20 for IMAGE)"
    )
    parser.add_argument(
        "--model", metavar="M", help="a Hub id or a folder, with the library's body and perhaps a new head"
    )
    parser.add_argument("--format", choices=_FORMATS, help="how to print (default: table, or --output's suffix)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if [args.image is not None, args.label is not None, args.duplicates].count(True) != 1:
        parser.error("give an IMAGE, or --label, or --duplicates")
    return terminal.run(search, args, "search")


def search(args: argparse.Namespace) -> int:
    """Search, and print or write what was found."""
    from .collections import find_inputs, search_library
    from .files import output_files

    if args.output is not None:
        output_files.check(args.output)
    found = search_library(
        args.library,
        next(find_inputs(["-"])).image if args.image == "-" else args.image,
        label=args.label,
        duplicates=args.threshold if args.duplicates else None,
        top_k=args.top_k,
        model=args.model,
        format=args.format or _format_of(args.output),
    )
    if not found:
        terminal.say("search: no picture was found")
    if args.output is not None:
        output_files.write(args.output, found.encode("utf-8", "backslashreplace"))
    else:
        sys.stdout.write(found)
        sys.stdout.flush()
    return terminal.DONE


def _format_of(file: Path | None) -> str:
    """The format that a file's suffix says. A file without one, or a text file, gets the table."""
    suffix = "" if file is None else file.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"{file} does not say its format: end it in {', '.join(filter(None, _SUFFIXES))}, or pass --format"
        )
    return _SUFFIXES[suffix]


if __name__ == "__main__":
    sys.exit(main())
