"""`python -m mlx_convnextv2.export`: a model for an app, for MLX, for Core ML or for ONNX Runtime."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import terminal
from .terminal import DEFAULT_MODEL

_EXAMPLES = """\
  python -m mlx_convnextv2.export --output classifier
  python -m mlx_convnextv2.export --model ./my-finetune --output classifier --batch 1,8 --dtype float16
  python -m mlx_convnextv2.export --format coreml --output Classifier.mlpackage
  python -m mlx_convnextv2.export --format onnx --output web -q
  python -m mlx_convnextv2.export --model timm/convnextv2_atto.fcmae_ft_in1k --output small -q --q-bits 8 --features
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser(
        "export", "Write a model for an app: for MLX (C++, Swift, Python), Core ML or ONNX Runtime.", _EXAMPLES
    )
    parser.add_argument(
        "--format", choices=("mlx", "coreml", "onnx"), default="mlx", help="what to write (default: mlx)"
    )
    parser.add_argument("--model", metavar="M", help=f"a Hub id or a folder (default: {DEFAULT_MODEL})")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--demo", action="store_true", help="export the bundled digits checkpoint")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="the folder to write; for Core ML Name.mlpackage"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DIR if it is an exported model")
    parser.add_argument(
        "--batch", type=terminal.positive_ints, default=[1], metavar="N,...", help="images at once (default: 1)"
    )
    parser.add_argument(
        "--dtype",
        choices=terminal.DTYPE_NAMES,
        help="the weights' type (default: the checkpoint's; Core ML: float16; ONNX: float32)",
    )
    parser.add_argument("--input", choices=("uint8", "float32"), help="an ONNX model's pixels (default: uint8)")
    parser.add_argument("--features", action="store_true", help="return the pooled embedding too")
    terminal.add_quantization(parser, "palette")
    parser.set_defaults(q_mode=None)  # each format has its own default
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    terminal.check_quantization(parser, args)
    terminal.check_model(parser, args)
    return terminal.run(_export, args, "export")


def _export(args: argparse.Namespace) -> int:
    options = dict(vars(args))
    source, name = terminal.find_model(args)
    options |= {"model": source, "name": name if options.pop("demo") else None}
    if sys.stderr.isatty():
        terminal.say(f"Loading {name} ...")  # before the slow imports
    from .graphs.export import export

    terminal.tell(export(**options))
    return terminal.DONE


if __name__ == "__main__":
    sys.exit(main())
