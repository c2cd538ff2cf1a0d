"""`python -m mlx_convnextv2.serve`: a page to drop pictures on, and an endpoint for programs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import terminal
from .messages import printable

_KEY_VARIABLE = "MLX_CONVNEXTV2_API_KEY"
_EXAMPLES = """\
  python -m mlx_convnextv2.serve --demo
  python -m mlx_convnextv2.serve --model ./my-finetune --port 9000
  MLX_CONVNEXTV2_API_KEY=$(openssl rand -hex 24) python -m mlx_convnextv2.serve --host 0.0.0.0
  curl --data-binary @cat.jpg http://127.0.0.1:8000
"""


def build_parser() -> argparse.ArgumentParser:
    parser = terminal.parser("serve", "Serve a model to browsers and programs, from this machine.", _EXAMPLES)
    terminal.add_model(parser, "serve the bundled digits checkpoint")
    parser.add_argument("--dtype", choices=terminal.DTYPE_NAMES, help="compute in this type (default: its own)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=_port, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--api-key", metavar="KEY", help=f"the key clients must send; better in ${_KEY_VARIABLE}")
    parser.add_argument("--allow-anyone", action="store_true", help="listen beyond this machine without a key")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a further name of the server"
    )
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="a site whose pages may ask")
    size = terminal.positive_int
    parser.add_argument("--batch-size", type=size, default=8, metavar="N", help="pictures at once (default: 8)")
    parser.add_argument("--max-waiting", type=size, default=64, metavar="N", help="requests that wait (default: 64)")
    parser.add_argument("--max-body", type=size, default=16_000_000, metavar="B", help="bytes (default: 16 million)")
    parser.add_argument("--max-pixels", type=size, default=50_000_000, metavar="P", help="(default: 50 million)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    terminal.check_model(parser, args)
    return terminal.run(serve, args, "serve")


def serve(args: argparse.Namespace) -> int:
    """Load the model and serve it until the process is asked to stop."""
    source, name = terminal.find_model(args)
    if sys.stderr.isatty():
        terminal.say(f"Loading {name} ...")  # before the slow imports
    from .serving import Limits, serve

    limits = Limits(
        max_body=args.max_body,
        max_pixels=args.max_pixels,
        max_waiting=args.max_waiting,
        max_batch=args.batch_size,
    )
    serve(
        source,
        args.host,
        args.port,
        dtype=args.dtype,
        revision=args.revision,
        limits=limits,
        api_key=args.api_key or os.environ.get(_KEY_VARIABLE) or None,
        allow_hosts=args.allow_host,
        allow_origins=args.allow_origin,
        allow_anyone=args.allow_anyone,
        name=name,
        on_start=lambda address: terminal.tell(f"Serving {printable(name)} at {address} (Ctrl-C stops it)"),
    )
    return terminal.DONE


def _port(text: str) -> int:
    """0 to 65535, for argparse."""
    if not text.isdecimal() or len(text) > 5 or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
