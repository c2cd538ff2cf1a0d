"""`python -m mlx_convnextv2.convert`: bring a checkpoint to MLX, or back to transformers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import terminal
from .messages import grouped, printable, some

_EXAMPLES = """\
  python -m mlx_convnextv2.convert --hf-path facebook/convnextv2-tiny-1k-224 --mlx-path convnextv2-tiny
  python -m mlx_convnextv2.convert --hf-path timm/convnextv2_nano.fcmae_ft_in1k --mlx-path nano -q --q-bits 8
  python -m mlx_convnextv2.convert --hf-path convnextv2_atto_1k_224_ema.pt --mlx-path atto --dtype float16 --verify
  python -m mlx_convnextv2.convert --hf-path convnextv2-tiny --mlx-path for-transformers --to huggingface
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser("convert", "Convert a ConvNeXt V2 checkpoint to MLX, or back to transformers.", _EXAMPLES)
    parser.add_argument("--hf-path", required=True, metavar="SRC", help="a Hub id, a folder or a weights file")
    parser.add_argument("--mlx-path", required=True, metavar="OUT", help="the folder to write; it must not exist")
    parser.add_argument(
        "--dtype", choices=terminal.DTYPE_NAMES, help="store the weights as this type (default: the source's)"
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a checkpoint folder")
    parser.add_argument(
        "--to", choices=("mlx", "huggingface"), default="mlx", help="the layout to write (default: mlx)"
    )
    terminal.add_quantization(parser)
    parser.add_argument(
        "-d", "--dequantize", action="store_true", help="bring quantized weights back to floating point"
    )
    parser.add_argument("--labels", metavar="FILE", help="name the classes: one label a line in their order, or JSON")
    parser.add_argument("--verify", action="store_true", help="run source and result on the same images and compare")
    parser.add_argument("--upload-repo", metavar="R", help="publish the result as this repository of the Hub")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    terminal.check_quantization(parser, args)
    return terminal.run(_convert, args, "convert")


def _convert(args: argparse.Namespace) -> int:
    if sys.stderr.isatty():
        terminal.say(f"Loading {args.hf_path} ...")  # before the slow imports
    from .conversion.convert import convert
    from .runtime.heap import keep_freed_memory

    keep_freed_memory()

    options = {name: value for name, value in vars(args).items() if name not in ("hf_path", "mlx_path")}
    conversion = convert(args.hf_path, args.mlx_path, **options)
    if conversion.dropped:
        terminal.tell(f"Left out of what the file holds: {grouped(conversion.dropped)}")
    if conversion.labels:
        terminal.tell(f"Named {len(conversion.labels)} classes: {some(conversion.labels)}")
    if conversion.quantization is not None:
        terminal.tell(conversion.quantization)
    terminal.tell(f"Wrote {printable(args.mlx_path)}: {conversion.summary}")
    if conversion.verification is not None:
        terminal.tell(conversion.verification)
        if not conversion.verification.passed:
            raise ValueError(f"the numbers of {args.mlx_path} differ more than rounding explains: do not use it")
    return terminal.DONE


if __name__ == "__main__":
    sys.exit(main())
