"""`python -m mlx_convnextv2 COMMAND ...` is the same as `python -m mlx_convnextv2.COMMAND ...`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import terminal

COMMANDS = {
    "classify": "name what images show",
    "convert": "convert a checkpoint to MLX, or back to transformers",
    "train": "train a classifier on folders of pictures",
    "evaluate": "measure how good a checkpoint is on labelled images",
    "export": "write a model for an app: for MLX, Core ML or ONNX Runtime",
    "embed": "make a library of pictures, to search in",
    "search": "find pictures in a library",
    "explain": "show which parts of a picture speak for a label",
    "serve": "show the model in a browser, and answer programs",
    "benchmark": "measure a checkpoint on this device",
}

_EXAMPLES = """\
  python -m mlx_convnextv2 classify --demo
  python -m mlx_convnextv2 convert --help
"""


def build_parser() -> argparse.ArgumentParser:
    lines = "".join(f"\n  {name:<9}  {purpose}" for name, purpose in COMMANDS.items())
    parser = terminal.parser("", f"ConvNeXt V2 image classification in Apple MLX.\n\ncommands:{lines}", _EXAMPLES)
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help="one of the commands above")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments; see COMMAND --help")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return terminal.DONE
    status: int = importlib.import_module(f".{args.command}", __package__).main(args.arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
