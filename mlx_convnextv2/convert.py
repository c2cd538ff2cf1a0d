"""`python -m mlx_convnextv2.convert`: bring a checkpoint to MLX, or back to transformers."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import cli
from .messages import grouped, printable

if TYPE_CHECKING:
    from .quantization import QuantizationReport
    from .verify import Verification

_EXAMPLES = """\
  python -m mlx_convnextv2.convert --hf-path facebook/convnextv2-tiny-1k-224 --mlx-path convnextv2-tiny
  python -m mlx_convnextv2.convert --hf-path timm/convnextv2_nano.fcmae_ft_in1k --mlx-path nano -q --q-bits 8
  python -m mlx_convnextv2.convert --hf-path convnextv2_atto_1k_224_ema.pt --mlx-path atto --dtype float16 --verify
  python -m mlx_convnextv2.convert --hf-path convnextv2-tiny --mlx-path for-transformers --to huggingface
"""


@dataclass(frozen=True)
class Conversion:
    """What a conversion did: where it wrote, what it left out and quantized, and how it compares with the source."""

    path: Path
    scheme: str
    dropped: tuple[str, ...] = ()
    quantization: QuantizationReport | None = None
    verification: Verification | None = None


def convert(
    hf_path: str | os.PathLike[str],
    mlx_path: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str = "affine",
    dequantize: bool = False,
    to: str = "mlx",
    verify: bool = False,
    upload_repo: str | None = None,
) -> Conversion:
    """Convert a checkpoint of Hugging Face's, timm's or the authors' to a folder, which appears whole or not at all.

    Args:
        hf_path: a Hub id, a folder with config.json and weights, or a .safetensors, .bin, .pt, .pth or .pth.tar file.
        mlx_path: the folder to write, which must not exist.
        dtype: "float32", "float16" or "bfloat16"; None keeps the source's.
        revision: branch, tag or commit of the Hub repository.
        overwrite: replace a checkpoint folder at `mlx_path`.
        quantize, q_bits, q_group_size, q_mode: as for `quantization.quantize`.
        dequantize: bring a quantized checkpoint back to floating point.
        to: "mlx" for MLX's layout, "huggingface" for what transformers loads.
        verify: run source and result on the same images and compare.
        upload_repo: publish the result as this repository of the Hub, unless it fails to verify.

    Raises:
        FileExistsError: `mlx_path` exists.
        FileNotFoundError, OSError, ValueError: as `load` and `save`; also a ValueError where the source is converted
            already.
    """
    from .download import fetch
    from .folders import check_target
    from .hub import check_repo_id, load_unread, save, upload
    from .model_card import read_base_model, read_licence
    from .quantization import dequantize as dequantize_model, quantize as quantize_model
    from .sources import open_checkpoint
    from .tensor_files import as_dtype

    if quantize and dequantize:
        raise ValueError("a checkpoint is quantized or dequantized, not both: leave one of them out")
    mlx_path = os.path.expanduser(mlx_path)
    check_target(mlx_path, overwrite)  # before a download of gigabytes
    if upload_repo is not None:
        check_repo_id(upload_repo)
    source = fetch(hf_path, revision=revision, card=True)
    is_local = os.path.exists(os.path.expanduser(hf_path))
    target = Path(mlx_path).resolve()
    if target in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"{mlx_path} holds the source itself: choose another folder for the result")
    checkpoint = open_checkpoint(source)
    if checkpoint.is_mlx and to == "mlx" and not (quantize or dequantize) and dtype is None:
        raise ValueError(f"{hf_path} is converted to MLX already: load it as it is")
    model, processor = load_unread(source, dtype=None if dequantize else dtype)
    if dequantize:  # before the cast, which would round the scales
        dequantize_model(model, as_dtype(dtype))
    if verify:
        from .verify import check_verifiable

        check_verifiable(checkpoint, model)
    report = quantize_model(model, q_bits, q_group_size, q_mode) if quantize else None
    save(
        model,
        mlx_path,
        processor,
        format=to,
        overwrite=overwrite,
        name=upload_repo,
        base_model=read_base_model(source) or (source.resolve().name if is_local else os.fspath(hf_path)),
        licence=read_licence(source),
        release=True,
    )
    verification = None
    if verify:
        from .verify import verify as run_both

        verification = run_both(source, Path(mlx_path))
    if upload_repo is not None and (verification is None or verification.passed):
        upload(mlx_path, upload_repo)
    return Conversion(Path(mlx_path), checkpoint.scheme.name, checkpoint.dropped, report, verification)


def build_parser() -> argparse.ArgumentParser:
    parser = cli.parser("convert", "Convert a ConvNeXt V2 checkpoint to MLX, or back to transformers.", _EXAMPLES)
    parser.add_argument("--hf-path", required=True, metavar="SRC", help="a Hub id, a folder or a weights file")
    parser.add_argument("--mlx-path", required=True, metavar="OUT", help="the folder to write; it must not exist")
    parser.add_argument(
        "--dtype", choices=cli.DTYPE_NAMES, help="store the weights as this type (default: the source's)"
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the Hub repository")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a checkpoint folder")
    parser.add_argument(
        "--to", choices=("mlx", "huggingface"), default="mlx", help="the layout to write (default: mlx)"
    )
    cli.add_quantization(parser)
    parser.add_argument(
        "-d", "--dequantize", action="store_true", help="bring quantized weights back to floating point"
    )
    parser.add_argument("--verify", action="store_true", help="run source and result on the same images and compare")
    parser.add_argument("--upload-repo", metavar="R", help="publish the result as this repository of the Hub")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    cli.check_quantization(parser, args)
    return cli.run(_convert, args, "convert")


def _convert(args: argparse.Namespace) -> int:
    if sys.stderr.isatty():
        cli.say(f"Loading {args.hf_path} ...")  # before the slow imports
    _keep_large_buffers()
    if args.verify:  # which computes
        from . import blas

        blas.load()  # before the first import of MLX
    options = {name: value for name, value in vars(args).items() if name not in ("hf_path", "mlx_path")}
    conversion = convert(args.hf_path, args.mlx_path, **options)
    if conversion.dropped:
        cli.tell(f"Left out of what the file holds: {grouped(conversion.dropped)}")
    if conversion.quantization is not None:
        cli.tell(conversion.quantization)
    cli.tell(f"Wrote {printable(args.mlx_path)}: {_summary(conversion.path)}")
    if conversion.verification is not None:
        cli.tell(conversion.verification)
        if not conversion.verification.passed:
            raise ValueError(f"the numbers of {args.mlx_path} differ more than rounding explains: do not use it")
    return cli.DONE


def _keep_large_buffers() -> None:
    """Let glibc use buffers again whatever their size.

    It would return each one over 32 MB to the system, and the fresh pages of the next cost as much as the cast.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def _summary(folder: Path) -> str:
    """What a converted folder holds, in a line."""
    from .quantization import count_parameters
    from .sources import read_config
    from .weights import Checkpoint

    checkpoint = Checkpoint.open(folder)
    tensors = checkpoint.tensors.values()
    dtypes = sorted({str(tensor.dtype).removeprefix("mlx.core.") for tensor in tensors})
    bits = (read_config(checkpoint).extra.get("quantization") or {}).get("bits")
    parameters = count_parameters({name: tensor.shape for name, tensor in checkpoint.tensors.items()}, bits)
    megabytes = sum(file.stat().st_size for file in {tensor.file for tensor in tensors}) / 1e6
    return f"{parameters:,} parameters in {len(tensors)} tensors, {', '.join(dtypes)}, {megabytes:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
