"""`python -m mlx_convnextv2.train`: train a classifier on folders of pictures."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from . import terminal
from .training.options import Options, read_config

_EXAMPLES = """\
  python -m mlx_convnextv2.train --data photos/ --output my-model
  python -m mlx_convnextv2.train --data photos/ --output my-model --full --epochs 30
  python -m mlx_convnextv2.train --config my-model/args.yaml --output again
  python -m mlx_convnextv2.train --output my-model --resume
  python -m mlx_convnextv2.classify new-photo.jpg --model my-model
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser(
        "train",
        "Train a classifier on a folder with a folder of pictures for each class (or train/ and val/ above them):\n"
        "its head on frozen features, in seconds, or with --full all weights.",
        _EXAMPLES,
    )
    parser.add_argument("--data", metavar="DIR", help="the folder with the classes' folders")
    parser.add_argument(
        "--model", metavar="M", help=f"a Hub id or a folder to begin with (default: {terminal.DEFAULT_MODEL})"
    )
    parser.add_argument("--output", metavar="OUT", help="the checkpoint folder to write")
    parser.add_argument(
        "--overwrite", action="store_true", default=None, help="replace a checkpoint folder that is there"
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file with options; those given here win")
    parser.add_argument("--upload-repo", metavar="REPO", help="publish the result as this repository of the Hub")
    parser.add_argument("--show-batch", metavar="FILE", help="write the model's input as a picture, and exit")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run (give only --output)")
    for option in fields(Options):
        _add(parser, option.name, option.default, option.metadata)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    return terminal.run(lambda args: train(parser, args), args, "train")


def train(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Train, and print a line for each epoch and the result."""
    values: dict[str, Any] = read_config(args.config) if args.config is not None else {}
    given = vars(args)
    resuming, _ = given.pop("resume"), given.pop("config")
    values.update({name: value for name, value in given.items() if value is not None})
    data, model, output, picture = (values.pop(name, None) for name in ("data", "model", "output", "show_batch"))
    if resuming:
        good = output is not None and (data, model, picture, values.get("overwrite")) == (None, None, None, None)
    else:
        good = data is not None and (output is not None or picture is not None)
    if not good:
        parser.error("give --data DIR and --output OUT; with --resume --output OUT alone")
    from . import training
    from .runtime.heap import keep_freed_memory
    from .training.bars import Bars

    keep_freed_memory()
    model = model or terminal.DEFAULT_MODEL
    if picture is not None:
        for name in ("overwrite", "upload_repo"):
            values.pop(name, None)
        terminal.tell(training.show_batch(data, model, picture, **values))
        return terminal.DONE
    try:
        if resuming:
            trained = training.resume(output, progress=Bars(terminal.tell), **values)
        else:
            trained = training.train(data, model, output, progress=Bars(terminal.tell), **values)
    except (KeyboardInterrupt, SystemExit):
        if training.is_unfinished(output):
            again = f"python -m mlx_convnextv2.train --output {shlex.quote(output)} --resume"
            terminal.say(f"train: the run is saved: {again} goes on")
        raise
    if trained.rank == 0:
        terminal.tell(trained)
    return terminal.DONE


def _add(parser: argparse.ArgumentParser, name: str, default: Any, metadata: Any) -> None:
    """Add an option for a field. It is None if it is not given, and a file's value counts then."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(default, bool):
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=metadata["help"])
        return
    says = metadata["help"] + ("" if default is None or "default" in metadata["help"] else f" (default: {default})")
    kind, choices = metadata.get("kind", str), metadata.get("choices")
    metavar = None if choices else metadata.get("metavar", "N" if kind is int else "X")
    parser.add_argument(flag, type=kind, choices=choices, metavar=metavar, help=says)


if __name__ == "__main__":
    sys.exit(main())
