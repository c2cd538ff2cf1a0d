"""Export a checkpoint by name to MLX, Core ML or ONNX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoints.hub import fetch
from ..checkpoints.load import load
from ..checkpoints.model_card import read_licence
from ..files.atomic_folder import check_target
from ..messages import printable
from ..model.quantization import quantize as quantize_model
from .coreml import check_program, export_coreml
from .onnx import check_onnx, export_onnx
from .trace import GRAPH, export_model, take_first_stream

FORMATS = ("mlx", "coreml", "onnx")


@dataclass(frozen=True)
class Export:
    """What was written, and remarks about it, one line each."""

    path: Path
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def export(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    format: str = "mlx",
    revision: str | None = None,
    batch: Sequence[int] = (1,),
    dtype: str | None = None,
    features: bool = False,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    input: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a checkpoint as MLX's graph, Core ML's program or an ONNX model. It appears whole or not at all.

    Args:
        model: a Hub id, a folder or a weights file, converted or not.
        output: the folder to write, which must not exist; for Core ML its name ends in .mlpackage.
        format: "mlx", see `trace.export_model`; "coreml", see `coreml.export_coreml`; "onnx", see `onnx.export_onnx`.
        revision: branch, tag or commit of the Hub repository.
        batch: the numbers of images at once. An ONNX model takes any.
        dtype: of the weights; None keeps the checkpoint's for MLX, and takes float16 for Core ML, float32 for ONNX.
        features: also return the pooled embedding.
        quantize, q_bits, q_group_size, q_mode: for MLX, as for `quantization.quantize`. For Core ML, 8 (the default),
            6 or 4 bits, in the mode "affine" or "palette". For ONNX, 8 bits.
        input: the type of an ONNX model's pixels, "uint8" (None) or "float32".
        name: a name for an app's users; None takes the Hub id, or the last part of a path.
        overwrite: replace an earlier export.

    Raises:
        FileExistsError: `output` exists.
        ImportError: the format needs a package that is not installed.
        FileNotFoundError, OSError, ValueError: as `load`. An argument that makes no sense is also a ValueError.
    """
    if format not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}, not {format!r}")
    if input is not None and format != "onnx":
        raise ValueError("only an ONNX model's pixels have a type to choose: leave the input (--input) out")
    if not quantize:
        q_bits = q_group_size = q_mode = None
    elif format != "mlx":
        q_bits = 8 if q_bits is None else q_bits
        if q_group_size is not None:
            raise ValueError("only MLX quantizes in groups: leave the group size (--q-group-size) out")
    order = _Order(
        source=model,
        output=Path(output).expanduser(),
        revision=revision,
        batches=batch,
        dtype=dtype,
        features=features,
        quantize=quantize,
        q_bits=q_bits,
        q_group_size=q_group_size,
        q_mode=q_mode,
        input=input or "uint8",
        name=name or (os.path.basename(os.path.abspath(model)) if os.path.exists(model) else os.fspath(model)),
        overwrite=overwrite,
    )
    write = {"mlx": _write_graph, "coreml": _write_coreml, "onnx": _write_onnx}[format]
    return Export(order.output, tuple(write(order)))


@dataclass(frozen=True)
class _Order:
    """The arguments of `export`, for the functions that write."""

    source: str | os.PathLike[str]
    output: Path
    revision: str | None
    batches: Sequence[int]
    dtype: str | None
    features: bool
    quantize: bool
    q_bits: int | None
    q_group_size: int | None
    q_mode: str | None
    input: str
    name: str
    overwrite: bool

    def wrote(self, what: object) -> str:
        return f"Wrote {printable(self.output)}: {what}"


def _write_graph(order: _Order) -> list[str]:
    take_first_stream()
    check_target(order.output, order.overwrite, GRAPH)  # before a download
    model, processor = load(order.source, dtype=order.dtype, revision=order.revision)
    lines = []
    if order.quantize:
        lines.append(str(quantize_model(model, order.q_bits, order.q_group_size, order.q_mode or "affine")))
    options: dict[str, Any] = {"batches": order.batches, "features": order.features, "name": order.name}
    description = export_model(model, processor, order.output, overwrite=order.overwrite, **options)
    batches = ", ".join(map(str, description["batches"]))
    size = description["bytes"] / 1e6
    lines.append(order.wrote(f"{size:,.1f} MB, batches of {batches}, MLX {description['mlx_version']}"))
    if description["device"] == "cpu":
        lines.append(
            "There is no GPU here: this graph runs on the CPU wherever it is loaded. Export it on a Mac for Metal."
        )
    return lines


def _write_coreml(order: _Order) -> list[str]:
    options: dict[str, Any] = {
        "batches": order.batches,
        "dtype": order.dtype or "float16",
        "q_bits": order.q_bits,
        "q_mode": order.q_mode,
        "overwrite": order.overwrite,
    }
    check_program(order.output, **options)
    options |= {"features": order.features, "name": order.name}
    model, processor, licence = _load(order)
    program = export_coreml(model, processor, order.output, licence=licence, **options)
    return [order.wrote(program), *_dequantized(order, model, program.dtype)]


def _write_onnx(order: _Order) -> list[str]:
    if list(order.batches) != [1]:
        raise ValueError("an ONNX model takes any number of images: leave the batch (--batch) out")
    if order.q_mode is not None:
        raise ValueError("an ONNX model's weights are quantized in one way: leave the mode (--q-mode) out")
    options: dict[str, Any] = {
        "input": order.input,
        "dtype": order.dtype or "float32",
        "q_bits": order.q_bits,
        "overwrite": order.overwrite,
    }
    check_onnx(order.output, **options)
    options |= {"features": order.features, "name": order.name}
    model, processor, licence = _load(order)
    written = export_onnx(model, processor, order.output, licence=licence, **options)
    return [order.wrote(written), *_dequantized(order, model, written.dtype)]


def _dequantized(order: _Order, model: Any, dtype: str) -> list[str]:
    if order.quantize or "quantization" not in model.config.extra:
        return []
    return [f"The checkpoint's quantized weights are {dtype} here: -q stores them in fewer bits, the format's own way."]


def _load(order: _Order) -> tuple[Any, Any, str | None]:
    """The model, its processor, and the licence stated by the source."""
    folder = fetch(order.source, revision=order.revision, card=True)
    return *load(folder), read_licence(folder)
