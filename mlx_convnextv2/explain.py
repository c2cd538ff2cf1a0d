"""`python -m mlx_convnextv2.explain`: which parts of a picture made the model choose a label."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import terminal
from .demo import DEMO
from .messages import cut, printable, sentence

if TYPE_CHECKING:
    from .heatmaps import Explanation

_EXAMPLES = """\
  python -m mlx_convnextv2.explain cat.jpg
  python -m mlx_convnextv2.explain cat.jpg --label "tiger cat" --against "tabby" --output maps
  python -m mlx_convnextv2.explain photos/ --layer stage2 --output maps
  python -m mlx_convnextv2.explain cat.jpg --format json
  python -m mlx_convnextv2.explain --demo --layer stage1
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser("explain", "Show what in a picture speaks for a label, and what against it.", _EXAMPLES)
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="an image file, a folder (with those below it), or - for standard input",
    )
    terminal.add_model(parser, "use the bundled digits checkpoint, by default on a digit")
    parser.add_argument("--label", metavar="L", help="a label or its index (default: each picture's best)")
    parser.add_argument("--against", metavar="L", default="mean", help="another label (default: the mean of all)")
    parser.add_argument(
        "--layer", metavar="S", help="stem, stage1, ...: earlier ones are finer (default: the last stage)"
    )
    parser.add_argument(
        "--method", choices=("exact", "hirescam", "gradcam"), help="default: exact in the last stage, else hirescam"
    )
    parser.add_argument(
        "--output", default="heatmaps", metavar="DIR", help="the folder to write to (default: heatmaps)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace heat maps that are there")
    parser.add_argument(
        "--format", choices=("png", "npy", "json"), default="png", help="json is printed (default: png)"
    )
    parser.add_argument("--no-legend", dest="legend", action="store_false", help="write nothing on the picture")
    terminal.add_reading(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    terminal.check_model(parser, args)
    if not args.images and not args.demo:
        parser.error("give at least one IMAGE, or --demo")
    return terminal.run(explain, args, "explain")


def explain(args: argparse.Namespace) -> int:
    """Explain, and write or print. The exit status says whether all images, some or none succeeded."""
    model, name = terminal.find_model(args)
    if sys.stderr.isatty():
        terminal.say(f"Loading {name} ...")  # before the slow imports
    from .heatmaps import explain_images, write_heat_maps
    from .inference.classifier import ImageClassifier

    classifier = ImageClassifier(model, dtype=args.dtype, revision=args.revision, batch_size=args.batch_size)
    if args.max_pixels is not None:
        classifier.processor.max_pixels = args.max_pixels
    images = _inputs(args.images or [os.path.relpath(DEMO / "images" / "digit-8.png")])
    options = {"label": args.label, "against": args.against, "layer": args.layer, "method": args.method}
    results: Iterator[tuple[Explanation, Path | None]]
    if args.format == "json":
        results = ((result, None) for result in explain_images(classifier, images, **options))
    else:
        files = {"format": args.format, "overwrite": args.overwrite, "legend": args.legend}
        results = write_heat_maps(classifier, images, args.output, **options, **files)
    done = failed = 0
    for result, file in results:
        if result.error is None:
            done += 1
        else:
            failed += 1
            terminal.say(f"explain: {sentence(result.error)}")
        if args.format == "json":
            terminal.tell(json.dumps({"image": _name(result), **result.to_dict()}))
        elif file is not None:
            terminal.tell(f"{printable(file)}: {cut(printable(result.legend()))}")
    if not done:
        return terminal.NOTHING_DONE
    return terminal.SOME_FAILED if failed else terminal.DONE


def _inputs(arguments: Sequence[str]) -> list[Any]:
    """The images named by the arguments. Folders are not expanded, because their heat maps keep the subfolders."""
    from .collections import find_inputs

    images: list[Any] = []
    for argument in arguments:
        images += [argument] if os.path.isdir(argument) else [one.image for one in find_inputs([argument])]
    return images


def _name(result: Explanation) -> str:
    from .images.decode import name_of

    return str(getattr(result.image, "argument", name_of(result.image)))


if __name__ == "__main__":
    sys.exit(main())
