"""`python -m mlx_convnextv2.embed`: make a library of pictures, to search in."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import terminal
from .demo import DEMO
from .messages import printable, sentence

if TYPE_CHECKING:
    from .collections.library.update import Picture

_EXAMPLES = """\
  python -m mlx_convnextv2.embed photos/ --output library/
  python -m mlx_convnextv2.embed photos/ --output library/ --shard 2/8
  python -m mlx_convnextv2.search library/ cat.jpg
  python -m mlx_convnextv2.embed --demo --output digits/
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser(
        "embed",
        "Put the features of pictures into a library, to search in. Run it again after the pictures have changed:\n"
        "it reads what is new, and goes on where it was interrupted.",
        _EXAMPLES,
    )
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="a folder (with those below it) or an image file")
    parser.add_argument("--output", required=True, metavar="DIR", help="the library's folder")
    demo = "use the bundled digits checkpoint, by default on its images"
    terminal.add_model(parser, demo, f"the library's, or {terminal.DEFAULT_MODEL}")
    terminal.add_reading(parser, dtype="the library's or the checkpoint's")
    parser.add_argument("--shard", metavar="I/N", help="take the I-th of N shares (default: mlx.launch's)")
    parser.add_argument(
        "--prune",
        action="store_true",
        help="also forget missing pictures whose folder is gone, empty or unreadable",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    terminal.check_model(parser, args)
    if not args.folders and not args.demo:
        parser.error("give at least one FOLDER, or --demo")
    return terminal.run(embed, args, "embed")


def embed(args: argparse.Namespace) -> int:
    """Bring the library up to date, and say what was done. The exit status is 1 if an image could not be read."""
    if sys.stderr.isatty():
        terminal.say("Loading the model ...")  # before the slow imports
    from .collections import Shard, embed_folder
    from .images.decode import MissingExtraError

    bar, advised = terminal.Bar(), set()

    def watch(picture: Picture, done: int, total: int) -> None:
        if done == 1:
            bar.begin(total)
        if error := picture.error:
            bar.clear()
            if isinstance(error, MissingExtraError) and error.extra in advised:
                error = ValueError(error.problem)  # the advice comes once
            terminal.say(f"embed: {sentence(error)}")
            advised.add(getattr(error, "extra", None))
        bar.update()

    launched = None if args.shard else Shard.of_launch()
    options = {"dtype": args.dtype, "revision": args.revision, "batch_size": args.batch_size}
    try:
        done = embed_folder(
            args.folders or [DEMO / "images"],
            args.output,
            DEMO if args.demo else args.model,
            **options,
            max_pixels=args.max_pixels,
            shard=args.shard or launched,
            prune=args.prune,
            watch=watch,
        )
    except KeyboardInterrupt:
        bar.close()
        terminal.say("embed: interrupted: what is done is kept, and the same command goes on")
        raise
    finally:
        bar.close()
    terminal.tell(f"{printable(args.output)}: {done}")
    if done.kept:
        terminal.say(
            f"embed: {done.kept:,} pictures are missing from folders that are empty or cannot be read. If their disk "
            "is there, --prune forgets them"
        )
    if launched is not None:
        return terminal.DONE  # the launcher ends all processes if one has another status
    if not done.failures:
        return terminal.DONE
    return terminal.SOME_FAILED if done.total else terminal.NOTHING_DONE


if __name__ == "__main__":
    sys.exit(main())
