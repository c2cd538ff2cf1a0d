"""`python -m mlx_convnextv2.benchmark`: how fast a checkpoint is on this device, alone or against its peers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import terminal
from .benchmarking.peers import COLD_PEERS, PEERS
from .terminal import DEFAULT_MODEL

if TYPE_CHECKING:
    from .benchmarking.report import News, Report

_EXAMPLES = """\
  python -m mlx_convnextv2.benchmark compare --against transformers,onnxruntime,torch-compile
  python -m mlx_convnextv2.benchmark compare --size atto --batch-size 1,8 --dtype float32,float16
  python -m mlx_convnextv2.benchmark cold-start --size tiny --plot cold.png
  python -m mlx_convnextv2.benchmark scale --size tiny --plot growth.png
  python -m mlx_convnextv2.benchmark self-check --size tiny
  python -m mlx_convnextv2.benchmark tune --size tiny --batch-size 1,8 --dtype float16
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser("benchmark", "Measure a ConvNeXt V2 checkpoint on this device.", _EXAMPLES)
    modes = parser.add_subparsers(title="what to measure", required=True)

    def mode(name: str, function: str, what: str) -> argparse.ArgumentParser:
        added = modes.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        added.set_defaults(function=function, plot=None)
        return added

    compare = mode("compare", "compare", "time a checkpoint in turns with its peers, and compare the answers")
    _add_model(compare)
    _add_against(compare, [*PEERS])
    _add_batch_size(compare, [1])
    _add_dtypes(compare)
    _add_image_size(compare)
    _add_runs(compare)
    _add_plot(compare)

    cold_start = mode("cold-start", "cold_start", "time whole processes for one image, in the checkpoint's dtype")
    _add_model(cold_start)
    _add_against(cold_start, COLD_PEERS, COLD_PEERS)
    _add_runs(cold_start)
    _add_plot(cold_start)

    scale = mode("scale", "scale", "time against batch, image side, and model size, with random weights")
    scale.add_argument("--size", default="tiny", metavar="S", help="the largest, atto to huge (default: tiny)")
    _add_against(scale, [*PEERS])
    _add_batch_size(scale, [1, 2, 4, 8])
    scale.add_argument("--dtype", default="float32", metavar="T", help="compute in this type (default: float32)")
    _add_runs(scale)
    _add_plot(scale)

    self_check = mode("self-check", "self_check", "compare every kernel with plain MLX on this GPU, in all dtypes")
    _add_model(self_check)
    _add_image_size(self_check)

    ops = mode("ops", "time_operations", "time each operation: plain, compiled by MLX, and our kernels")
    _add_model(ops)
    _add_batch_size(ops, [1])
    _add_dtypes(ops)
    _add_image_size(ops)
    _add_runs(ops)

    tune = mode("tune", "tune", "measure what computes a model fastest on this device, and keep it for later uses")
    _add_model(tune)
    _add_batch_size(tune, [1, 8])
    _add_dtypes(tune, None, "the model's")
    _add_image_size(tune)

    for name in (compare, cold_start, scale, self_check, ops, tune):
        name.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    return parser


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _add_model(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="M", help=f"a Hub id or a folder (default: {DEFAULT_MODEL})")
    source.add_argument("--size", metavar="S", help="random weights of a size, atto to huge, without a download")


def _add_against(parser: argparse.ArgumentParser, peers: Sequence[str], default: Sequence[str] = ()) -> None:
    names = ", ".join(peers)
    text = f"peers to run in turns (default: {names})" if default else f"peers to run in turns, of {names}"
    parser.add_argument("--against", type=_words, default=list(default), metavar="PEER,...", help=text)


def _add_batch_size(parser: argparse.ArgumentParser, default: list[int]) -> None:
    text = f"images at once (default: {','.join(map(str, default))})"
    parser.add_argument("--batch-size", type=terminal.positive_ints, default=default, metavar="N,...", help=text)


def _add_dtypes(
    parser: argparse.ArgumentParser, default: Sequence[str] | None = ("float32",), shown: str = "float32"
) -> None:
    text = f"compute in these, of {', '.join(terminal.DTYPE_NAMES)} (default: {shown})"
    parser.add_argument("--dtype", type=_words, default=default and list(default), metavar="T,...", help=text)


def _add_image_size(parser: argparse.ArgumentParser) -> None:
    text = "side in pixels (default: the model's)"
    parser.add_argument("--image-size", type=terminal.positive_int, metavar="P", help=text)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runs", type=terminal.positive_int, default=10, metavar="N", help="timed rounds (default: 10)"
    )


def _add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the figures (png, svg or pdf)")


def main(argv: Sequence[str] | None = None) -> int:
    return terminal.run(benchmark, build_parser().parse_args(argv), "benchmark")


def benchmark(args: argparse.Namespace) -> int:
    """Measure, print, and write the files. The exit status is 1 if a peer failed or answered differently."""
    from . import benchmarking
    from .files import output_files

    options = vars(args)
    function, json_file, plot = (options.pop(name) for name in ("function", "json", "plot"))
    if "model" in options and options["size"] is None:
        options["model"] = options["model"] or DEFAULT_MODEL
    measure = getattr(benchmarking, function)
    if plot:
        from .benchmarking import plots

        plots.check(plot)
    for file in (json_file, plot):
        if file:
            output_files.check(file)

    latest: Report[Any] | None = None

    def watch(report: Report[Any], news: News) -> None:
        nonlocal latest
        latest = report
        _show(report, news)

    try:
        report = measure(**options, watch=watch)
    finally:
        if json_file and latest and (latest.contenders or latest.results or latest.failures):
            latest.write(json_file)  # also after an error or an interruption
    if plot:
        plots.draw(report, plot)
    return terminal.SOME_FAILED if report.failures else terminal.DONE


def _show(report: Report[Any], news: News) -> None:
    """Print new results. Failures go to standard error."""
    from .benchmarking import tables

    for one in news:
        if isinstance(one, str):
            terminal.say(f"benchmark: {one}")
    if not isinstance(news[0], str):
        terminal.tell(tables.news(report, news))


if __name__ == "__main__":
    sys.exit(main())
