"""What the commands share: one-sentence errors, exit statuses, and progress on a terminal."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from ._version import __version__
from .demo import DEFAULT_MODEL as DEFAULT_MODEL, DEMO
from .messages import printable, sentence

DONE, SOME_FAILED, NOTHING_DONE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
DTYPE_NAMES = ("float32", "float16", "bfloat16")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))  # the message may repeat a file's name


def parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser for `python -m mlx_convnextv2.NAME`, or without NAME. Its --help ends with examples."""
    result = _Parser(
        prog=f"python -m mlx_convnextv2.{name}".removesuffix("."),
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--version", action="version", version=f"mlx_convnextv2 {__version__}")
    return result


def run(command: Callable[[argparse.Namespace], int], args: argparse.Namespace, name: str) -> int:
    """Run a command and return its exit status. Any error that a user can cause becomes one sentence on stderr."""
    for stream, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, stream) is None:  # closed by the shell, for example with `>&-`
            setattr(sys, stream, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries end in an error of ours
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module=r"PIL\."
        )  # Pillow warns of large or oddly tagged images, which are read all the same
        warnings.showwarning = lambda message, *_, **__: say(f"{name}: warning: {message}")
        try:
            status = command(args)
            sys.stdout.flush()
            return status
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        except (ValueError, OSError, ImportError) as error:
            say(f"{name}: error: {sentence(error)}")
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate" not in str(error):
                raise
            say(f"{name}: error: there is not enough memory: choose a smaller batch or model")
        return NOTHING_DONE


def _stop(*_: object) -> None:
    """End on SIGTERM as on an exception, which removes temporary folders. A second SIGTERM changes nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(TERMINATED)


def say(message: str) -> None:
    """Print a line on standard error."""
    print(printable(message), file=sys.stderr, flush=True)


def tell(report: object) -> None:
    """Print a result, of one or more lines, on standard output."""
    print("\n".join(map(printable, str(report).split("\n"))), flush=True)


def positive_int(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def positive_ints(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas, for argparse."""
    return [positive_int(part.strip()) for part in text.split(",")]


def add_model(parser: argparse.ArgumentParser, demo: str, default: str = DEFAULT_MODEL) -> None:
    """The options that name a model: --model, --revision and --demo, which `demo` describes."""
    parser.add_argument("--model", metavar="M", help=f"a Hub id or a folder (default: {default})")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--demo", action="store_true", help=demo)


def add_reading(parser: argparse.ArgumentParser, batch_size: int = 8, dtype: str = "the checkpoint's") -> None:
    """The options of images that go through a model: --batch-size, --max-pixels and --dtype."""
    parser.add_argument(
        "--batch-size",
        type=positive_int,
        default=batch_size,
        metavar="N",
        help=f"images at once (default: {batch_size})",
    )
    parser.add_argument(
        "--max-pixels", type=positive_int, metavar="P", help="refuse larger images (default: 300 million)"
    )
    parser.add_argument("--dtype", choices=DTYPE_NAMES, help=f"compute in this type (default: {dtype})")


def check_model(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error if both --model and --demo are given."""
    if args.demo and args.model is not None:
        parser.error("--demo brings its own model: leave --model out")


def find_model(args: argparse.Namespace) -> tuple[str, str]:
    """The model that --model or --demo asks for, and what to call it."""
    if args.demo:
        return str(DEMO), "the bundled digits model"
    model = DEFAULT_MODEL if args.model is None else args.model
    return model, model


def add_quantization(parser: argparse.ArgumentParser, *further_modes: str) -> None:
    """The options -q, --q-bits, --q-group-size and --q-mode, named as in mlx-lm, for MLX's modes and further ones."""
    parser.add_argument("-q", "--quantize", action="store_true", help="quantize the linear layers")
    parser.add_argument("--q-bits", type=int, metavar="B", help="bits of a weight (default: the mode's, 4 for affine)")
    parser.add_argument(
        "--q-group-size", type=int, metavar="G", help="weights that share a scale (default: the mode's)"
    )
    modes = ("affine", "mxfp4", "mxfp8", "nvfp4", *further_modes)
    parser.add_argument("--q-mode", choices=modes, default="affine", help="MLX's mode")


def check_quantization(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage error if the details of a quantization are given without -q."""
    sizes_given = args.q_bits is not None or args.q_group_size is not None
    if not args.quantize and (sizes_given or args.q_mode not in (None, "affine")):
        parser.error("--q-bits, --q-group-size and --q-mode go with -q")


class Bar:
    """tqdm's bar on standard error, if this is a terminal and there may be more than one image."""

    def __init__(self) -> None:
        self._bar: Any = None

    def begin(self, images: int | None) -> None:
        """Show the bar; None if nobody knows how many images there are."""
        if (images is None or images > 1) and sys.stderr.isatty():
            from tqdm import tqdm  # comes with huggingface_hub

            self._bar = tqdm(total=images, unit=" images", leave=False, dynamic_ncols=True)

    def clear(self) -> None:
        """Before something is printed."""
        if self._bar is not None:
            self._bar.clear()

    def update(self) -> None:
        """One image is done."""
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
