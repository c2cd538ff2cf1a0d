"""`python -m mlx_convnextv2.benchmark`: how fast a checkpoint is on this device, alone or against its peers."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import cli
from .benchmarking.peers import COLD_PEERS, PEERS, expand, why_not
from .classify import DEFAULT_MODEL

_EXAMPLES = """\
  python -m mlx_convnextv2.benchmark --against transformers,onnxruntime,torch-compile
  python -m mlx_convnextv2.benchmark --size atto --batch-size 1,8 --dtype float32,float16
  python -m mlx_convnextv2.benchmark --size tiny --cold-start --plot cold.png
  python -m mlx_convnextv2.benchmark --size tiny --scale --plot growth.png
  python -m mlx_convnextv2.benchmark --size tiny --self-check
"""


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _dtypes(text: str) -> list[str]:
    return _chosen(text, cli.DTYPE_NAMES)


def _peers(text: str) -> list[str]:
    return _chosen(text, tuple(PEERS))


def _chosen(text: str, allowed: tuple[str, ...]) -> list[str]:
    names = list(dict.fromkeys(_listed(text)))
    for name in names:
        if name not in allowed:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown: choose from {', '.join(allowed)}")
    return names


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("benchmark", "Measure a ConvNeXt V2 checkpoint on this device.", _EXAMPLES)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="M", help=f"a Hub id or a folder (default: {DEFAULT_MODEL})")
    source.add_argument("--size", metavar="S", help="random weights of a size, atto to huge, without a download")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--cold-start",
        action="store_true",
        help="time whole processes for one image, against transformers and onnxruntime unless --against says less",
    )
    mode.add_argument(
        "--scale",
        action="store_true",
        help="time against batch, image side, and model size up to --size (default: tiny)",
    )
    mode.add_argument(
        "--self-check", action="store_true", help="compare every kernel with plain MLX on this GPU, with a verdict each"
    )
    mode.add_argument("--ops", action="store_true", help="time each operation: plain, compiled by MLX, and our kernels")
    parser.add_argument(
        "--batch-size", type=cli.positive_ints, metavar="N,...", help="images at once (default: 1; 1,2,4,8 for --scale)"
    )
    parser.add_argument("--dtype", type=_dtypes, metavar="T,...", help="compute in these (default: float32)")
    parser.add_argument(
        "--image-size", type=cli.positive_int, metavar="P", help="side in pixels (default: the model's)"
    )
    parser.add_argument("--runs", type=cli.positive_int, default=10, metavar="N", help="timed rounds (default: 10)")
    parser.add_argument(
        "--against", type=_peers, metavar="PEER,...", help=f"peers to run in alternation: {', '.join(PEERS)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw them (png, svg or pdf)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.scale and args.model:
        parser.error("--scale goes through random weights of several sizes: give --size rather than --model")
    if (args.scale or args.cold_start) and args.image_size:
        parser.error("--image-size is for neither --scale, which has its own, nor --cold-start, which has the model's")
    if (args.self_check or args.ops) and (args.against or args.plot):
        parser.error("--self-check and --ops look at our kernels alone: leave --against and --plot out")
    if args.self_check and (args.dtype or args.batch_size):
        parser.error("--self-check goes through all dtypes, one image each: leave --dtype and --batch-size out")
    if args.scale and len(args.dtype or [""]) > 1:
        parser.error("--scale takes one dtype")
    if args.cold_start:
        if args.dtype or args.batch_size:
            parser.error("--cold-start is one image in the checkpoint's dtype: leave --batch-size and --dtype out")
        if others := [peer for peer in args.against or [] if peer not in COLD_PEERS]:
            parser.error(f"--cold-start has scripts for {' and '.join(COLD_PEERS)} alone, not for {others[0]}")
    return cli.run(benchmark, args, "benchmark")


def benchmark(args: argparse.Namespace) -> int:
    """Measure, print, and write the files; the exit status is 1 where a peer failed or answered differently."""
    from .config import SIZES

    if args.size and args.size not in SIZES:
        raise ValueError(f"unknown size {args.size!r}: choose one of {', '.join(SIZES)}")
    if args.plot:
        from .benchmarking import plots

        plots.check(args.plot)
    for file in (args.json, args.plot):
        if file:
            _check_writable(file)

    measure = _complete(args)
    status = cli.DONE

    def failed(sentence: str) -> None:
        nonlocal status
        status = cli.SOME_FAILED
        report["failures"].append(sentence)
        cli.say(f"benchmark: {sentence}")

    report: dict[str, Any] = {
        "mode": measure.__name__.replace("_", "-"),
        "model": args.size or args.model,
        "system": platform.system(),
        "machine": platform.machine(),
        "runs": args.runs,
        **{"contenders": [], "results": [], "failures": []},
    }
    for peer in args.against:
        for dtype in args.dtype:
            if reason := why_not(peer, dtype):
                cli.say(f"benchmark: {peer} is left out in {dtype}: {reason}")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            measure(args, report, Path(temporary), failed)
    finally:
        measured = any(report[name] for name in ("contenders", "results", "failures"))
        if args.json and measured:  # before an error or an interruption, too
            args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.plot:
        plots.draw(report, args.plot)
    return status


def _complete(args: argparse.Namespace) -> Callable[..., None]:
    """Fill in the defaults of the mode, and return what measures it."""
    args.dtype = args.dtype or ["float32"]
    args.against = expand(args.against or []) if not args.cold_start else args.against or list(COLD_PEERS)
    if args.scale:
        from .benchmarking.scale import scale

        args.size = args.size or "tiny"
        args.batch_size = args.batch_size or [1, 2, 4, 8]
        return scale
    if not args.size:
        args.model = args.model or DEFAULT_MODEL
    args.batch_size = args.batch_size or [1]
    if args.cold_start:
        from .benchmarking.cold_start import cold_start

        return cold_start
    if args.self_check or args.ops:
        from .benchmarking import operations

        return operations.self_check if args.self_check else operations.time_operations
    from .benchmarking.compare import compare

    return compare


def _check_writable(file: Path) -> None:
    """Raises OSError where `file` could not be written, rather than after minutes of measuring."""
    existed = file.exists()
    with file.open("ab"):
        pass
    if not existed:
        file.unlink()


if __name__ == "__main__":
    sys.exit(main())
