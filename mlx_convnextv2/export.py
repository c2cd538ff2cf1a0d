"""`python -m mlx_convnextv2.export`: a model as one file for an app."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import cli
from .classify import DEFAULT_MODEL

_EXAMPLES = """\
  python -m mlx_convnextv2.export --output classifier
  python -m mlx_convnextv2.export --model ./my-finetune --output classifier --batch 1,8 --dtype float16
  python -m mlx_convnextv2.export --model timm/convnextv2_atto.fcmae_ft_in1k --output small -q --q-bits 8 --features
"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("export", "Write a model as a graph that MLX runs from C++, Swift or Python.", _EXAMPLES)
    parser.add_argument(
        "--model", metavar="M", default=DEFAULT_MODEL, help="a Hub id or a folder (default: %(default)s)"
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write; it must not exist")
    parser.add_argument(
        "--batch", type=cli.positive_ints, default=[1], metavar="N,...", help="images at once (default: 1)"
    )
    parser.add_argument("--dtype", choices=cli.DTYPE_NAMES, help="the weights' type (default: the checkpoint's)")
    parser.add_argument("--features", action="store_true", help="return the pooled embedding too")
    cli.add_quantization(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    cli.check_quantization(parser, args)
    return cli.run(export, args, "export")


def export(args: argparse.Namespace) -> int:
    """Load, quantize if asked to, and write the folder."""
    if sys.stderr.isatty():
        cli.say(f"Loading {args.model} ...")  # before the slow imports
    from .folders import check_target
    from .graph import export_model
    from .hub import load
    from .quantization import quantize

    check_target(args.output)  # before a download
    model, processor = load(args.model, dtype=args.dtype, revision=args.revision)
    if args.quantize:
        print(quantize(model, args.q_bits, args.q_group_size, args.q_mode))
    description = export_model(
        model, processor, args.output, batches=args.batch, features=args.features, name=args.model
    )
    batches = ", ".join(map(str, description["batches"]))
    size = description["bytes"] / 1e6
    print(f"Wrote {args.output}: {size:,.1f} MB, batches of {batches}, MLX {description['mlx_version']}")
    if description["device"] == "cpu":
        print("There is no GPU here: this graph runs on the CPU wherever it is loaded. Export it on a Mac for Metal.")
    return cli.DONE


if __name__ == "__main__":
    sys.exit(main())
