"""`python -m mlx_convnextv2.export`: a model as one file for an app."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import terminal
from .demo import DEMO
from .messages import printable
from .terminal import DEFAULT_MODEL

_EXAMPLES = """\
  python -m mlx_convnextv2.export --output classifier
  python -m mlx_convnextv2.export --model ./my-finetune --output classifier --batch 1,8 --dtype float16
  python -m mlx_convnextv2.export --model timm/convnextv2_atto.fcmae_ft_in1k --output small -q --q-bits 8 --features
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser("export", "Write a model as a graph that MLX runs from C++, Swift or Python.", _EXAMPLES)
    parser.add_argument("--model", metavar="M", help=f"a Hub id or a folder (default: {DEFAULT_MODEL})")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--demo", action="store_true", help="export the bundled digits checkpoint")
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write; it must not exist")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it is an exported model")
    parser.add_argument(
        "--batch", type=terminal.positive_ints, default=[1], metavar="N,...", help="images at once (default: 1)"
    )
    parser.add_argument("--dtype", choices=terminal.DTYPE_NAMES, help="the weights' type (default: the checkpoint's)")
    parser.add_argument("--features", action="store_true", help="return the pooled embedding too")
    terminal.add_quantization(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    terminal.check_quantization(parser, args)
    if args.demo and args.model is not None:
        parser.error("--demo brings its own model: leave --model out")
    return terminal.run(export, args, "export")


def export(args: argparse.Namespace) -> int:
    """Load, quantize if asked to, and write the folder."""
    source = str(DEMO) if args.demo else args.model or DEFAULT_MODEL
    name = "the bundled digits model" if args.demo else _name(source)
    if sys.stderr.isatty():
        terminal.say(f"Loading {name} ...")  # before the slow imports
    from .checkpoints.load import load
    from .files.atomic_folder import check_target
    from .graphs.trace import GRAPH, export_model, take_first_stream
    from .model.quantization import quantize

    take_first_stream()
    output = os.path.expanduser(args.output)
    check_target(output, args.overwrite, GRAPH)  # before a download
    model, processor = load(source, dtype=args.dtype, revision=args.revision)
    if args.quantize:
        terminal.tell(quantize(model, args.q_bits, args.q_group_size, args.q_mode))
    options = {"batches": args.batch, "features": args.features, "name": name, "overwrite": args.overwrite}
    description = export_model(model, processor, output, **options)
    batches = ", ".join(map(str, description["batches"]))
    size = description["bytes"] / 1e6
    terminal.tell(
        f"Wrote {printable(args.output)}: {size:,.1f} MB, batches of {batches}, MLX {description['mlx_version']}"
    )
    if description["device"] == "cpu":
        terminal.tell(
            "There is no GPU here: this graph runs on the CPU wherever it is loaded. Export it on a Mac for Metal."
        )
    return terminal.DONE


def _name(source: str) -> str:
    """What the app's users may read: a Hub id, but of a path only the last part."""
    return os.path.basename(os.path.abspath(source)) if os.path.exists(source) else source


if __name__ == "__main__":
    sys.exit(main())
