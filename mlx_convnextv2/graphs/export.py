"""Export a checkpoint by name, in one of the formats that others run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ..checkpoints.hub import fetch
from ..checkpoints.load import load
from ..checkpoints.model_card import read_licence
from ..files.atomic_folder import check_target
from ..messages import printable
from ..model.quantization import quantize as quantize_model
from .coreml import check_program, export_coreml
from .trace import GRAPH, export_model, take_first_stream

FORMATS = ("mlx", "coreml")


@dataclass(frozen=True)
class Export:
    """What was written, and what there is to say of it, a line each."""

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
    name: str | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a checkpoint as a graph for MLX or as a program for Core ML. It appears whole or not at all.

    Args:
        model: a Hub id, a folder or a weights file, converted or not.
        output: the folder to write, which must not exist; for Core ML its name ends in .mlpackage.
        format: "mlx", see `trace.export_model`, or "coreml", see `coreml.export_coreml`.
        revision: branch, tag or commit of the Hub repository.
        batch: the numbers of images at once.
        dtype: of the weights; None keeps the checkpoint's, and for Core ML takes float16.
        features: return the pooled embedding, too.
        quantize, q_bits, q_group_size, q_mode: for MLX as for `quantization.quantize`; for Core ML 8, 6 or 4 bits, 8
            unless given, in the mode "affine" or "palette".
        name: what an app's users may read; None takes the Hub id, or the last part of a path.
        overwrite: replace what was exported there before.

    Raises:
        FileExistsError: `output` exists.
        ImportError: the format needs a package that is not installed.
        FileNotFoundError, OSError, ValueError: as `load`, and where an argument makes no sense.
    """
    if format not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}, not {format!r}")
    write = _write_coreml if format == "coreml" else _write_graph
    return write(
        model,
        Path(output).expanduser(),
        revision=revision,
        dtype=dtype,
        quantization=(q_bits, q_group_size, q_mode) if quantize else None,
        batches=batch,
        features=features,
        name=name or (os.path.basename(os.path.abspath(model)) if os.path.exists(model) else os.fspath(model)),
        overwrite=overwrite,
    )


_Quantization: TypeAlias = tuple[int | None, int | None, str | None]  # bits, group size and mode


def _write_graph(
    source: str | os.PathLike[str],
    output: Path,
    *,
    revision: str | None,
    dtype: str | None,
    quantization: _Quantization | None,
    overwrite: bool,
    **options: Any,
) -> Export:
    take_first_stream()
    check_target(output, overwrite, GRAPH)  # before a download
    model, processor = load(source, dtype=dtype, revision=revision)
    lines = []
    if quantization is not None:
        bits, group_size, mode = quantization
        lines.append(str(quantize_model(model, bits, group_size, mode or "affine")))
    description = export_model(model, processor, output, overwrite=overwrite, **options)
    batches = ", ".join(map(str, description["batches"]))
    size = description["bytes"] / 1e6
    lines.append(f"Wrote {printable(output)}: {size:,.1f} MB, batches of {batches}, MLX {description['mlx_version']}")
    if description["device"] == "cpu":
        lines.append(
            "There is no GPU here: this graph runs on the CPU wherever it is loaded. Export it on a Mac for Metal."
        )
    return Export(output, tuple(lines))


def _write_coreml(
    source: str | os.PathLike[str],
    output: Path,
    *,
    revision: str | None,
    dtype: str | None,
    quantization: _Quantization | None,
    overwrite: bool,
    **options: Any,
) -> Export:
    bits, group_size, mode = quantization or (None, None, None)
    if group_size is not None:
        raise ValueError("Core ML's weights are quantized without groups: leave the group size (--q-group-size) out")
    options |= {"dtype": dtype or "float16", "q_bits": 8 if quantization and bits is None else bits, "q_mode": mode}
    check_program(
        output, overwrite=overwrite, **{name: options[name] for name in ("batches", "dtype", "q_bits", "q_mode")}
    )
    folder = fetch(source, revision=revision, card=True)
    model, processor = load(folder)
    program = export_coreml(model, processor, output, licence=read_licence(folder), overwrite=overwrite, **options)
    return Export(output, (f"Wrote {printable(output)}: {program}",))
