"""`python -m mlx_convnextv2.classify`: name what images show."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from . import terminal
from .messages import csv_cell, cut, printable, sentence

if TYPE_CHECKING:
    from .inference.classifier import Result

from .demo import DEMO
from .terminal import DEFAULT_MODEL

_BAR_WIDTH = 24

_EXAMPLES = """\
  python -m mlx_convnextv2.classify cat.jpg
  python -m mlx_convnextv2.classify photos/ --top-k 1 --format csv > labels.csv
  python -m mlx_convnextv2.classify cat.jpg --model ./my-finetune --format json
  cat cat.jpg | python -m mlx_convnextv2.classify -
  python -m mlx_convnextv2.classify --demo
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser("classify", "Name what images show, with a ConvNeXt V2 checkpoint.", _EXAMPLES)
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="an image file, a folder (with those below it), or - for standard input",
    )
    parser.add_argument("--model", metavar="M", help=f"a Hub id or a folder (default: {DEFAULT_MODEL})")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub repository")
    parser.add_argument(
        "--demo", action="store_true", help="use the bundled digits checkpoint, by default on its images"
    )
    parser.add_argument(
        "--top-k", type=terminal.positive_int, default=5, metavar="K", help="labels for each image (default: 5)"
    )
    parser.add_argument(
        "--batch-size", type=terminal.positive_int, default=8, metavar="N", help="images at once (default: 8)"
    )
    parser.add_argument(
        "--max-pixels", type=terminal.positive_int, metavar="P", help="refuse larger images (default: 300 million)"
    )
    parser.add_argument(
        "--dtype", choices=terminal.DTYPE_NAMES, help="compute in this type (default: the checkpoint's)"
    )
    parser.add_argument("--verbose", action="store_true", help="say what computes, and how fast, on standard error")
    parser.add_argument("--format", choices=tuple(_WRITERS), default="table", help="how to print (default: table)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    terminal.check_model(parser, args)
    if not args.images and not args.demo:
        parser.error("give at least one IMAGE, or --demo")
    return terminal.run(classify, args, "classify")


def classify(args: argparse.Namespace) -> int:
    """Classify and print. The exit status says whether all images, some or none succeeded."""
    model, name = terminal.find_model(args)
    if sys.stderr.isatty():
        terminal.say(f"Loading {name} ...")  # before the slow imports
    start = time.perf_counter()
    from .inference.classifier import ImageClassifier

    images = find_inputs(args.images or [_shortest(DEMO / "images")])
    classifier = ImageClassifier(model, dtype=args.dtype, revision=args.revision, batch_size=args.batch_size)
    if args.max_pixels is not None:
        classifier.processor.max_pixels = args.max_pixels
    if args.verbose:
        from .inference.fuse import chosen_operations, describe

        seconds = time.perf_counter() - start
        terminal.say(f"classify: {describe(classifier.model, classifier.predict)}; loaded in {seconds:.2f} s")

    start = time.perf_counter()
    write = _WRITERS[args.format]()
    done = failed = 0
    with terminal.progress(len(images)) as bar:
        for result in classifier.stream(images, args.top_k):
            bar.clear()  # a result may go to the same terminal
            if isinstance(result.error, IsADirectoryError):
                result.error = ValueError(f"no images in the folder {result.image}")
            if result.error is not None:
                failed += 1
                terminal.say(f"classify: {sentence(result.error)}")
            else:
                done += 1
            sys.stdout.write(write(result))
            sys.stdout.flush()
            bar.update()
    if args.verbose:
        seconds = time.perf_counter() - start
        terminal.say(f"classify: {done + failed} images in {seconds:.2f} s, {(done + failed) / seconds:.1f} a second")
        for one in chosen_operations(classifier.predict):
            shape = "x".join(map(str, one["shape"]))
            terminal.say(f"classify: {one['operation']} of {shape}: {one['computed_by']}, {one['because']}")
    if not done:
        return terminal.NOTHING_DONE
    return terminal.SOME_FAILED if failed else terminal.DONE


class Stream(io.BytesIO):
    """The content of a pipe, read by the main thread, because another thread waiting for it cannot be interrupted.

    `name` is its name in errors, and `argument` is the user's name for it.
    """

    def __init__(self, file: BinaryIO, name: str, argument: str):
        from .images.decode import read_stream

        super().__init__(read_stream(file))
        self.name = name
        self.argument = argument


def find_inputs(arguments: Sequence[str]) -> list[Any]:
    """The images named by the arguments: paths and standard input. A folder with images is replaced by its images."""
    from .images.decode import find_images, is_pipe

    images: list[Any] = []
    for argument in arguments:
        if argument == "-":
            images.append(Stream(sys.stdin.buffer, "<stdin>", argument))
        elif is_pipe(argument) and os.access(argument, os.R_OK):
            if sys.stderr.isatty():
                terminal.say(f"Waiting for the named pipe {argument} ...")
            with open(argument, "rb") as pipe:
                images.append(Stream(pipe, argument, argument))
        else:
            found = find_images(argument) if os.path.isdir(argument) else []
            images += map(str, found) if found else [argument]
    return images


def _shortest(path: Path) -> str:
    """The relative or the absolute path, whichever is shorter."""
    return min(os.path.relpath(path), str(path), key=len)


def _name(result: Result) -> str:
    return result.image.argument if isinstance(result.image, Stream) else str(result.image)


def _table() -> Callable[[Result], str]:
    """A block for each image: its name, then a line for each label with its score as a number and a bar."""
    eighths = " ▏▎▍▌▋▊▉█" if _can_print("█") else " ......##"

    def bar(score: float) -> str:
        full, rest = divmod(round(score * _BAR_WIDTH * 8), 8)
        return (eighths[8] * full + eighths[rest].strip()).ljust(_BAR_WIDTH)

    def write(result: Result) -> str:
        if result.predictions is None:
            return ""
        lines = [f"  {p['score']:6.1%}  {bar(p['score'])}  {cut(printable(p['label']))}\n" for p in result.predictions]
        return "".join([f"{printable(_name(result))}\n", *lines])

    return write


def _json() -> Callable[[Result], str]:
    """One line for each image: {"image", "predictions"} or {"image", "error"}."""

    def write(result: Result) -> str:
        line: dict[str, Any] = {"image": _name(result)}
        if result.error is not None:
            line["error"] = sentence(result.error)
        else:
            line["predictions"] = result.predictions
        return json.dumps(line) + "\n"

    return write


def _csv() -> Callable[[Result], str]:
    """A header, then one line for each label of each image, or for the image's error."""
    lines: list[str] = []

    class Sink:
        def write(self, line: str) -> None:
            lines.append(line)

    writer = csv.writer(Sink(), lineterminator="\n")
    writer.writerow(["image", "rank", "label", "index", "score", "error"])

    def write(result: Result) -> str:
        if result.error is not None:
            writer.writerow([csv_cell(_name(result)), "", "", "", "", csv_cell(sentence(result.error))])
        for rank, p in enumerate(result.predictions or [], start=1):
            writer.writerow([csv_cell(_name(result)), rank, csv_cell(p["label"]), p["index"], p["score"], ""])
        text = "".join(lines)
        lines.clear()
        return text

    return write


_WRITERS: dict[str, Callable[[], Callable[[Result], str]]] = {"table": _table, "json": _json, "csv": _csv}


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
