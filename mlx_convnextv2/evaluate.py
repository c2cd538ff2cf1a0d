"""`python -m mlx_convnextv2.evaluate`: how good a checkpoint is on folders of labelled images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import terminal

if TYPE_CHECKING:
    from .evaluation.run import Watch

_SPLITS = ("test", "val", "train", "all")

_EXAMPLES = """\
  python -m mlx_convnextv2.evaluate --model my-model --data photos --report report.html
  python -m mlx_convnextv2.evaluate --model my-model --data photos/test --json figures.json --csv answers.csv
  python -m mlx_convnextv2.evaluate --model facebook/convnextv2-tiny-1k-224 --data imagenet/val
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser(
        "evaluate", "Measure how good a checkpoint is on images whose classes are known.", _EXAMPLES
    )
    parser.add_argument("--model", required=True, metavar="M", help="a Hub id or a folder")
    parser.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="a folder with a folder for each class, perhaps below val/ or test/",
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub repository")
    parser.add_argument(
        "--split", choices=_SPLITS, help="the images to take (default: test/, else val/, else images not trained on)"
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="which folder is which class: a name a line in the model's order, or JSON"
    )
    terminal.add_reading(parser, batch_size=32)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one line for each image to this file")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw calibration and confusion (png, svg or pdf)"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a page with everything to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return terminal.run(evaluate, build_parser().parse_args(argv), "evaluate")


def evaluate(args: argparse.Namespace) -> int:
    """Measure, print, and write the files. The exit status is 1 if an image could not be read."""
    options = vars(args)
    files = {name: options.pop(name) for name in ("json", "csv", "plot", "report")}
    if sys.stderr.isatty():
        terminal.say(f"Loading {args.model} ...")  # before the slow imports
    from .evaluation import check_outputs, evaluate as measure

    check_outputs(**files)
    with _progress() as watch:
        evaluation = measure(options.pop("model"), options.pop("data"), **options, watch=watch)
    for failure in evaluation.failures:
        terminal.say(f"evaluate: {failure.error}")
    terminal.tell(evaluation)
    evaluation.write(**files)
    return terminal.SOME_FAILED if evaluation.failures else terminal.DONE


@contextmanager
def _progress() -> Iterator[Watch]:
    """A bar with the accuracy so far, on a terminal only. An interruption is always reported."""
    from tqdm import tqdm

    done, total, right = 0, 0, 0
    with tqdm(unit=" images", disable=not sys.stderr.isatty(), leave=False) as bar:

        def watch(*counts: int) -> None:
            nonlocal done, total, right
            done, total, right = counts
            bar.total = total
            bar.set_postfix_str(f"top-1 {right / done:.1%}", refresh=False)
            bar.update()

        try:
            yield watch
        except KeyboardInterrupt:
            if done:
                bar.close()
                terminal.say(
                    f"evaluate: interrupted after {done:,} of {total:,} images: top-1 so far {right / done:.1%}"
                )
            raise


if __name__ == "__main__":
    sys.exit(main())
