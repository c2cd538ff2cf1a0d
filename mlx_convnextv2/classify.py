"""`python -m mlx_convnextv2.classify`: name what images show."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from . import terminal
from .demo import DEMO
from .runtime.quick_start import end_quickly, import_numpy, is_own_process

if TYPE_CHECKING:
    from .collections.records import Record
    from .collections.shards import Shard

_FORMATS = ("table", "jsonl", "csv", "parquet", "json")  # the last is another name for jsonl

_EXAMPLES = """\
  python -m mlx_convnextv2.classify cat.jpg
  python -m mlx_convnextv2.classify photos/ --top-k 1 --output labels.csv
  python -m mlx_convnextv2.classify cat.jpg --model ./my-finetune --format jsonl
  cat cat.jpg | python -m mlx_convnextv2.classify -
  find . -name '*.jpg' -print0 | python -m mlx_convnextv2.classify @- -0 --output results/
  python -m mlx_convnextv2.classify photos/ --shard 2/8 --output results/
  python -m mlx_convnextv2.classify --merge results/ --output labels.parquet
  python -m mlx_convnextv2.classify --demo
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser("classify", "Name what images show, with a ConvNeXt V2 checkpoint.", _EXAMPLES)
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="an image or video file, a folder (with those below it), a quoted pattern, @LIST, or - for standard input",
    )
    terminal.add_model(parser, "use the bundled digits checkpoint, by default on its images")
    parser.add_argument(
        "--top-k", type=terminal.positive_int, default=5, metavar="K", help="labels for each image (default: 5)"
    )
    terminal.add_reading(parser)
    parser.add_argument("--verbose", action="store_true", help="say what computes, and how fast, on standard error")
    inputs = parser.add_argument_group("more inputs")
    inputs.add_argument("--allow-urls", action="store_true", help="fetch http and https addresses")
    inputs.add_argument("--fps", type=terminal.positive, metavar="F", help="frames a second of a video (default: 1)")
    inputs.add_argument("-0", "--null", action="store_true", help="NUL bytes end the names in @LIST")
    outputs = parser.add_argument_group("results")
    outputs.add_argument("--format", choices=_FORMATS, help="how to write (default: table, or --output's suffix)")
    outputs.add_argument("--output", metavar="PATH", help="a file, or a folder of parts, where a later run goes on")
    outputs.add_argument("--shard", metavar="I/N", help="take the I-th of N shares (default: mlx.launch's)")
    outputs.add_argument(
        "--part-size", type=terminal.positive_int, default=1_000, metavar="N", help="images in a part (default: 1000)"
    )
    outputs.add_argument("--merge", metavar="DIR", help="join the parts in DIR instead of classifying")
    outputs.add_argument("--partial", action="store_true", help="join what there is of an unfinished run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    terminal.check_model(parser, args)
    args.output = None if args.output == "-" else args.output  # standard output
    if args.merge is not None:
        if args.images or args.demo or args.model is not None or args.shard is not None:
            parser.error("--merge joins what is there: give no IMAGE, no model and no shard")
        return terminal.run(merge, args, "classify")
    if args.partial:
        parser.error("--partial goes with --merge")
    if not args.images and not args.demo:
        parser.error("give at least one IMAGE, or --demo")
    return terminal.run(classify, args, "classify")


def classify(args: argparse.Namespace) -> int:
    """Classify, and print or write. The exit status says whether all images, some or none succeeded."""
    model, name = terminal.find_model(args)
    if sys.stderr.isatty():
        terminal.say(f"Loading {name} ...")  # before the slow imports
    start = time.perf_counter()
    if is_own_process():
        import_numpy()
        end_quickly()
    from .collections import Printed, Watch, classify_images
    from .inference.classifier import ImageClassifier

    class Report(Watch):
        """Shows a bar and says what failed, on standard error."""

        counts = sys.stderr.isatty() and "@-" not in args.images  # a list on standard input may be slow to come

        def begin(self, total: int | None) -> None:
            bar.begin(total)

        def advance(self, record: Record) -> None:
            if record.error is not None:
                bar.clear()
                terminal.say(f"classify: {record.error}{f': {record.advice}' if record.advice else ''}")
            bar.update()

    shard, launched = _shard(args)
    classifier = ImageClassifier(model, dtype=args.dtype, revision=args.revision, batch_size=args.batch_size)
    if args.max_pixels is not None:
        classifier.processor.max_pixels = args.max_pixels
    if args.verbose:
        from .inference.fuse import chosen_operations, describe

        seconds = time.perf_counter() - start
        terminal.say(f"classify: {describe(classifier.model, classifier.predict)}; loaded in {seconds:.2f} s")
    options = {"format": args.format, "top_k": args.top_k, "shard": shard, "part_size": args.part_size}
    options |= {"allow_urls": args.allow_urls, "fps": args.fps, "null": args.null}
    options |= {"notice": terminal.say if sys.stderr.isatty() else None}
    try:
        with closing(terminal.Bar()) as bar:
            output = args.output or Printed(args.format, bar.clear)
            images = args.images or [_shortest(DEMO / "images")]
            summary = classify_images(classifier, images, output, watch=Report(), **options)
    except KeyboardInterrupt:
        if args.output and os.path.isdir(args.output):
            terminal.say("classify: interrupted: whole parts are kept, and the same command goes on")
        raise
    if args.verbose or (summary.images + summary.before > 1 and (args.output or sys.stderr.isatty())):
        terminal.say(f"classify: {summary}")
    if args.verbose:
        for one in chosen_operations(classifier.predict):
            shape = "x".join(map(str, one["shape"]))
            terminal.say(f"classify: {one['operation']} of {shape}: {one['computed_by']}, {one['because']}")
    if launched:
        return terminal.DONE  # the launcher ends all processes if one has another status
    if summary.failed and summary.failed == summary.images:
        return terminal.NOTHING_DONE
    return terminal.SOME_FAILED if summary.failed else terminal.DONE


def merge(args: argparse.Namespace) -> int:
    """Join the parts of a run, and print or write."""
    from .collections import Printed, merge as join

    output = args.output or Printed(args.format)
    images = join(args.merge, output, format=args.format, partial=args.partial)
    if args.output:
        terminal.say(f"classify: {images} images are joined")
    return terminal.DONE


def _shard(args: argparse.Namespace) -> tuple[Shard | None, bool]:
    """The share of this process, and whether `mlx.launch` gave it. Arguments that cannot be right raise an error."""
    from .collections import Shard
    from .collections.outputs import plan

    is_folder = args.output is not None and plan(args.output, args.format).is_folder
    if args.shard is not None:
        return Shard.parse(args.shard), False
    launched = Shard.of_launch()
    if launched is not None and args.output is not None and not is_folder:
        raise ValueError(f"{launched.count} processes cannot write one file: give --output a folder, and --merge it")
    if launched is not None and {"-", "@-"} & {*args.images}:
        raise ValueError("the launcher does not end standard input: write the list to a file, and give @FILE")
    return launched, launched is not None


def _shortest(path: Path) -> str:
    """The relative or the absolute path, whichever is shorter."""
    return min(os.path.relpath(path), str(path), key=len)


if __name__ == "__main__":
    sys.exit(main())
