"""Convert a checkpoint to MLX, or back to transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.hub import check_repo_id, upload
from ..checkpoints.label_files import check_labels, read_labels
from ..checkpoints.load import load_unread
from ..checkpoints.model_card import read_base_model, read_licence
from ..checkpoints.save import save
from ..files.atomic_folder import check_target
from ..files.tensors import as_dtype
from ..model.convnextv2 import ConvNextV2ForImageClassification, ConvNextV2Model
from ..model.quantization import (
    QuantizationReport,
    count_parameters,
    dequantize as dequantize_model,
    quantize as quantize_model,
)
from .references import who_runs
from .verify import Verification, verify as run_both


@dataclass(frozen=True)
class Conversion:
    """The outcome of a conversion: what it wrote, left out and quantized, and how it compares with the source."""

    result: Checkpoint
    scheme: str
    dropped: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    quantization: QuantizationReport | None = None
    verification: Verification | None = None

    @property
    def summary(self) -> str:
        """What the folder holds, in a line."""
        tensors = self.result.weights.tensors
        dtypes = sorted({str(tensor.dtype).removeprefix("mlx.core.") for tensor in tensors.values()})
        bits = (self.result.config.extra.get("quantization") or {}).get("bits")
        parameters = count_parameters({name: tensor.shape for name, tensor in tensors.items()}, bits)
        megabytes = sum(file.stat().st_size for file in {tensor.file for tensor in tensors.values()}) / 1e6
        return f"{parameters:,} parameters in {len(tensors)} tensors, {', '.join(dtypes)}, {megabytes:,.1f} MB"


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
    """Convert a checkpoint from Hugging Face, timm or the authors. The folder appears whole or not at all.

    Args:
        hf_path: a Hub id, a folder with config.json and weights, or a .safetensors, .bin, .pt, .pth or .pth.tar file.
        mlx_path: the folder to write, which must not exist.
        dtype: "float32", "float16" or "bfloat16"; None keeps the source's.
        revision: branch, tag or commit of the Hub repository.
        overwrite: replace a checkpoint folder at `mlx_path`.
        quantize, q_bits, q_group_size, q_mode: as for `quantization.quantize`.
        dequantize: bring a quantized checkpoint back to floating point.
        labels: new names for the classes: a list, or a file that `checkpoints.label_files.read_labels` can read.
        to: "mlx" for MLX's layout, "huggingface" for what transformers loads.
        verify: run source and result on the same images and compare their outputs.
        upload_repo: publish the result in this Hub repository, unless verification fails.

    Raises:
        FileExistsError: `mlx_path` exists.
        FileNotFoundError, OSError, ValueError: as `load` and `save`. A source that is already converted is also a
            ValueError.
    """
    if quantize and dequantize:
        raise ValueError("a checkpoint is quantized or dequantized, not both: leave one of them out")
    mlx_path = os.path.expanduser(mlx_path)
    check_target(mlx_path, overwrite)  # before a download of gigabytes
    if upload_repo is not None:
        check_repo_id(upload_repo)
    names = read_labels(labels) if isinstance(labels, str | os.PathLike) else labels
    source = Checkpoint.open(hf_path, revision=revision, card=True)
    is_local = os.path.exists(os.path.expanduser(hf_path))
    target = Path(mlx_path).resolve()
    if target in (source.path.resolve(), *source.path.resolve().parents):
        raise ValueError(f"{mlx_path} holds the source itself: choose another folder for the result")
    if source.weights.is_mlx and to == "mlx" and not (quantize or dequantize or names) and dtype is None:
        raise ValueError(f"{hf_path} is converted to MLX already: load it as it is")
    if names is not None:
        _check_for_head(names, source)
        source.config.update({"id2label": list(names)})
    model = load_unread(source, None if dequantize else as_dtype(dtype))
    if dequantize:  # before the cast, which would round the scales
        dequantize_model(model, as_dtype(dtype))
    if verify:
        if not isinstance(model, ConvNextV2ForImageClassification | ConvNextV2Model):
            raise ValueError("a backbone has no single output to verify: verify the classifier that it comes from")
        who_runs(source)  # fails before the work is done if a package is missing
    report = quantize_model(model, q_bits, q_group_size, q_mode) if quantize else None
    save(
        model,
        mlx_path,
        source.processor,
        format=to,
        overwrite=overwrite,
        name=upload_repo,
        base_model=read_base_model(source.path) or (source.path.resolve().name if is_local else os.fspath(hf_path)),
        licence=read_licence(source.path),
        release=True,
    )
    result = Checkpoint.open(mlx_path)
    verification = run_both(source, result) if verify else None
    if upload_repo is not None and (verification is None or verification.passed):
        upload(mlx_path, upload_repo)
    return Conversion(
        result,
        source.weights.scheme.name,
        source.weights.dropped,
        labels=tuple(names or ()),
        quantization=report,
        verification=verification,
    )


def _check_for_head(labels: Sequence[str], source: Checkpoint) -> None:
    """Raise a ValueError unless there is one label for each class of the checkpoint's head."""
    head = source.weights.tensors.get("classifier.bias")
    if head is None:
        raise ValueError(f"{source.path} has no head whose classes could be named: leave the labels out")
    if len(labels) != head.shape[0]:
        raise ValueError(
            f"{len(labels)} labels are given and the head of {source.path} has {head.shape[0]} classes: give one "
            "for each, in their order"
        )
    check_labels(list(labels))
