"""A model as a Core ML program, straight from its MLX weights: an image in, a label and probabilities out.

The program rescales and normalises an image's pixels, runs the model and applies softmax. The app or Vision resizes and
crops the image first; the program's description says how.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.atomic_folder import Kind, check_target, new_folder
from ..files.names import PROGRAM_FILE
from ..images.processor import ImageProcessor
from ..messages import short
from ..model.convnextv2 import ConvNextV2ForImageClassification
from ..model.labels import class_labels
from .compression import Compression, compression
from .coreml_metadata import describe, distinct
from .description import input_shape

SUFFIX = ".mlpackage"
PROGRAM = Kind("a Core ML program", (("Manifest.json",), (PROGRAM_FILE,)))
DTYPES = ("float16", "float32")
MAX_BATCH = 4096
_NOT_WRITTEN = ("FileWriter", "filesystem error")  # what coremltools says when the disk is full


@dataclass(frozen=True)
class CoreMLProgram:
    """What was written: size in bytes, type of computation, how weights are stored, and the system it needs."""

    path: Path
    bytes: int
    dtype: str
    batches: tuple[int, ...]
    input: str
    outputs: tuple[str, ...]
    systems: str

    def __str__(self) -> str:
        return f"{self.bytes / 1e6:,.1f} MB, {self.dtype}, {self.input} to {' and '.join(self.outputs)}, {self.systems}"


def export_coreml(
    model: ConvNextV2ForImageClassification,
    processor: ImageProcessor,
    path: str | os.PathLike[str],
    *,
    batches: Sequence[int] = (1,),
    features: bool = False,
    dtype: str = "float16",
    q_bits: int | None = None,
    q_mode: str | None = None,
    name: str = "the model",
    licence: str | None = None,
    overwrite: bool = False,
) -> CoreMLProgram:
    """Write a .mlpackage for Xcode or `VNCoreMLRequest`. It appears whole or not at all.

    For one image at a time the program is a classifier: it takes an image and returns the label and each label's
    probability. For other batches it takes pixels, 0 to 255, as a MultiArray (N, C, H, W), and returns probabilities
    (N, num_labels).

    Args:
        model: a model with a classification head, quantized or not. It is not changed.
        processor: its image processor. The program includes what the processor does to pixels.
        path: the folder, whose name ends in .mlpackage. It must not exist.
        batches: the numbers of images that the program takes at once.
        features: also return the pooled embedding (N, hidden_size).
        dtype: the type of computation: "float16", or "float32", which cannot run on the Neural Engine.
        q_bits: store the linear layers' weights in 8, 6 or 4 bits.
        q_mode: "affine", integers with a scale for each output channel, for 8 bits only; or "palette", a table of
            2**q_bits values for each layer, for any q_bits. None takes affine for 8 bits and palette for fewer.
        name: the model's name, for the description.
        licence: the licence of the weights, for the description.
        overwrite: replace an existing program.

    Raises:
        FileExistsError: the folder exists.
        ImportError: coremltools is not installed.
        OSError: the folder cannot be written, for example for lack of space.
        ValueError: the model has no head, an argument makes no sense, or weights do not fit into `dtype`.
    """
    path = Path(path).expanduser()
    compress = check_program(path, batches=batches, dtype=dtype, q_bits=q_bits, q_mode=q_mode, overwrite=overwrite)
    height, width, channels = input_shape(model, processor, name)
    ct = coremltools()
    from . import coreml_program

    batches, shape = sorted(set(batches)), (height, width)
    takes = _input(ct, batches, channels, shape)
    options: dict[str, Any] = {"features": features, "dtype": dtype, "compress": compress}
    program = coreml_program.classifying_program(model, processor, takes.name, batches, shape, **options)
    labels = distinct(class_labels(model.config))
    config = ct.ClassifierConfig(labels, predicted_probabilities_output="probabilities") if batches == [1] else None
    with new_folder(path, overwrite, PROGRAM) as folder:
        package = folder / f"program{SUFFIX}"
        spec = _write(ct, program, package, path, takes, config)
        describe(spec, processor, shape, name, licence, "" if config else json.dumps(labels, ensure_ascii=False))
        for child in package.iterdir():
            child.rename(folder / child.name)
        package.rmdir()
        (folder / PROGRAM_FILE).write_bytes(spec.SerializeToString())
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return CoreMLProgram(
        path,
        size,
        dtype,
        tuple(batches),
        takes.name,
        tuple(output.name for output in spec.description.output),
        "macOS 14, iOS 17 or later",
    )


def check_program(
    path: Path,
    *,
    batches: Sequence[int] = (1,),
    dtype: str = "float16",
    q_bits: int | None = None,
    q_mode: str | None = None,
    overwrite: bool = False,
) -> Compression | None:
    """How to store the weights. Raises the errors of `export_coreml` that can be found without a model."""
    if dtype not in DTYPES:
        raise ValueError(f"Core ML computes in {' or '.join(DTYPES)}, not in {short(dtype)}")
    if not batches or not all(isinstance(batch, int) and 1 <= batch <= MAX_BATCH for batch in batches):
        raise ValueError(f"batches must be whole numbers of at least 1 and at most {MAX_BATCH}, not {list(batches)!r}")
    compress = None if q_bits is None and q_mode is None else compression(8 if q_bits is None else q_bits, q_mode)
    if path.suffix != SUFFIX:
        raise ValueError(f"Core ML wants a folder whose name ends in {SUFFIX}: call it {path.name}{SUFFIX}")
    check_target(path, overwrite, PROGRAM)
    coremltools()
    return compress


def write_logits_program(
    model: ConvNextV2ForImageClassification, file: str | os.PathLike[str], shape: Sequence[int], dtype: str
) -> None:
    """Write a .mlpackage that takes normalised `pixel_values` of this shape (N, C, H, W) and returns `logits`.

    A benchmark compares this: the model alone, without images and labels.
    """
    ct = coremltools()
    from . import coreml_program

    program = coreml_program.logits_program(model, shape, dtype)
    _write(ct, program, Path(file), Path(file), ct.TensorType("pixel_values", shape=tuple(shape)), None)


def coremltools() -> Any:
    """The package, without its messages about the versions of other packages."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        import coremltools as ct
    except ImportError:
        raise ImportError('Core ML programs are written by coremltools: pip install "mlx-convnextv2[coreml]"') from None
    return ct


def _input(ct: Any, batches: Sequence[int], channels: int, shape: tuple[int, int]) -> Any:
    """The input: an image, or numbers for other batches, because Core ML has no batches of images."""
    if list(batches) == [1]:
        layout = ct.colorlayout.RGB if channels == 3 else ct.colorlayout.GRAYSCALE
        return ct.ImageType("image", shape=(1, channels, *shape), color_layout=layout)
    shapes = [(batch, channels, *shape) for batch in batches]
    return ct.TensorType("pixels", shape=shapes[0] if len(shapes) == 1 else ct.EnumeratedShapes(shapes))


def _write(ct: Any, program: Any, package: Path, target: Path, takes: Any, classifier_config: Any) -> Any:
    """Write the package and return its specification. Errors name the target."""
    from .coreml_program import TARGET

    try:
        with redirect_stderr(io.StringIO()):  # it shows a progress bar for every small step
            written = ct.convert(
                program,
                source="milinternal",
                convert_to="mlprogram",
                inputs=[takes],
                classifier_config=classifier_config,
                compute_precision=ct.precision.FLOAT32,  # the types are already chosen
                pass_pipeline=ct.PassPipeline.EMPTY,  # and so are the operations
                minimum_deployment_target=TARGET,
                skip_model_load=True,
                package_dir=str(package),
            )
    except RuntimeError as error:
        if any(word in str(error) for word in _NOT_WRITTEN):  # the message does not say which disk is full
            places = f"there or in {tempfile.gettempdir()}"
            raise OSError(f"{target} cannot be written, most likely for lack of space {places} ({error})") from None
        if "BlobWriter" in str(error):
            raise ImportError("this coremltools cannot write weights: use a Python that it has a wheel for") from None
        raise
    return written.get_spec()
