"""Convert a checkpoint to MLX, or back to transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.configuration import open_checkpoint
from ..checkpoints.hub import check_repo_id, fetch, upload
from ..checkpoints.label_files import check_labels, read_labels
from ..checkpoints.load import load_unread
from ..checkpoints.model_card import read_base_model, read_licence
from ..checkpoints.save import save
from ..files.atomic_folder import check_target
from ..files.tensors import as_dtype
from ..model.quantization import QuantizationReport, dequantize as dequantize_model, quantize as quantize_model
from .verify import Verification, check_verifiable, verify as run_both


@dataclass(frozen=True)
class Conversion:
    """What a conversion did: where it wrote, what it left out, and how it named, quantized and compared."""

    path: Path
    scheme: str
    dropped: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
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
    labels: str | os.PathLike[str] | Sequence[str] | None = None,
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
        labels: names for the classes of a checkpoint that carries none, or other names: a list, or a file as
            `checkpoints.label_files.read_labels` reads it.
        to: "mlx" for MLX's layout, "huggingface" for what transformers loads.
        verify: run source and result on the same images and compare.
        upload_repo: publish the result as this repository of the Hub, unless it fails to verify.

    Raises:
        FileExistsError: `mlx_path` exists.
        FileNotFoundError, OSError, ValueError: as `load` and `save`; also a ValueError where the source is converted
            already.
    """
    if quantize and dequantize:
        raise ValueError("a checkpoint is quantized or dequantized, not both: leave one of them out")
    mlx_path = os.path.expanduser(mlx_path)
    check_target(mlx_path, overwrite)  # before a download of gigabytes
    if upload_repo is not None:
        check_repo_id(upload_repo)
    names = read_labels(labels) if isinstance(labels, str | os.PathLike) else labels
    source = fetch(hf_path, revision=revision, card=True)
    is_local = os.path.exists(os.path.expanduser(hf_path))
    target = Path(mlx_path).resolve()
    if target in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"{mlx_path} holds the source itself: choose another folder for the result")
    checkpoint = open_checkpoint(source)
    if checkpoint.is_mlx and to == "mlx" and not (quantize or dequantize or names) and dtype is None:
        raise ValueError(f"{hf_path} is converted to MLX already: load it as it is")
    renamed: dict[str, Any] = {} if names is None else {"id2label": _checked(names, checkpoint)}
    model, processor = load_unread(source, dtype=None if dequantize else dtype, **renamed)
    if dequantize:  # before the cast, which would round the scales
        dequantize_model(model, as_dtype(dtype))
    if verify:
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
        verification = run_both(source, Path(mlx_path))
    if upload_repo is not None and (verification is None or verification.passed):
        upload(mlx_path, upload_repo)
    return Conversion(
        Path(mlx_path),
        checkpoint.scheme.name,
        checkpoint.dropped,
        labels=tuple(names or ()),
        quantization=report,
        verification=verification,
    )


def _checked(labels: Sequence[str], checkpoint: Checkpoint) -> list[str]:
    """The labels, or a ValueError where they are not one for each class of the checkpoint's head."""
    head = checkpoint.tensors.get("classifier.bias")
    if head is None:
        raise ValueError(f"{checkpoint.path} has no head whose classes could be named: leave the labels out")
    if len(labels) != head.shape[0]:
        raise ValueError(
            f"{len(labels)} labels are given and the head of {checkpoint.path} has {head.shape[0]} classes: give one "
            "for each, in their order"
        )
    check_labels(list(labels))
    return list(labels)
