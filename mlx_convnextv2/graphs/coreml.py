"""A model as a Core ML program, straight from its MLX weights: an image in, a label and probabilities out.

The way of the data through the program: an image's pixels -> rescaled and normalised -> the model -> softmax. What
comes before, resizing and cropping, is the app's or Vision's, and the program's description says how.
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
_NOT_WRITTEN = ("FileWriter", "filesystem error")  # what coremltools says where a disk is full


@dataclass(frozen=True)
class CoreMLProgram:
    """What was written: size in bytes, the type that is computed in, how weights are stored, and the system needed."""

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
    """Write a .mlpackage, which appears whole or not at all: drop it into Xcode, or give it to `VNCoreMLRequest`.

    For one image at a time the program is a classifier: it takes an image and returns the label and each label's
    probability. For others it takes pixels, 0 to 255, as a MultiArray (N, C, H, W), and returns probabilities
    (N, num_labels).

    Args:
        model: with a classification head, quantized or not, which is not changed.
        processor: its image processor; what it does to pixels becomes part of the program.
        path: the folder, whose name ends in .mlpackage; it must not exist.
        batches: the numbers of images that the program takes at once.
        features: return the pooled embedding (N, hidden_size), too.
        dtype: what is computed in: "float16", or "float32", which keeps the program from the Neural Engine.
        q_bits: store the linear layers' weights in 8, 6 or 4 bits.
        q_mode: "affine", integers with a scale for each output channel, for 8 bits; "palette", a table of 2**q_bits
            values for each layer, for all. None takes affine for 8 bits and palette for fewer.
        name: of the model, for the description.
        licence: of the weights, which goes into the description.
        overwrite: replace a program that is there.

    Raises:
        FileExistsError: the folder exists.
        ImportError: coremltools is not installed.
        OSError: it cannot be written, for lack of space say.
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
    """How weights are to be stored; raises where `export_coreml` would, as far as no model is needed to tell."""
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
    """Write a .mlpackage from `pixel_values`, normalised and of this shape (N, C, H, W), to `logits`.

    It is what a benchmark compares: the model alone, without images and labels.
    """
    ct = coremltools()
    from . import coreml_program

    program = coreml_program.logits_program(model, shape, dtype)
    _write(ct, program, Path(file), Path(file), ct.TensorType("pixel_values", shape=tuple(shape)), None)


def coremltools() -> Any:
    """The package, without what it says of others that it knows."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        import coremltools as ct
    except ImportError:
        raise ImportError('Core ML programs are written by coremltools: pip install "mlx-convnextv2[coreml]"') from None
    return ct


def _input(ct: Any, batches: Sequence[int], channels: int, shape: tuple[int, int]) -> Any:
    """An image; for other batches than one image, which Core ML does not know, numbers."""
    if list(batches) == [1]:
        layout = ct.colorlayout.RGB if channels == 3 else ct.colorlayout.GRAYSCALE
        return ct.ImageType("image", shape=(1, channels, *shape), color_layout=layout)
    shapes = [(batch, channels, *shape) for batch in batches]
    return ct.TensorType("pixels", shape=shapes[0] if len(shapes) == 1 else ct.EnumeratedShapes(shapes))


def _write(ct: Any, program: Any, package: Path, target: Path, takes: Any, classifier_config: Any) -> Any:
    """Write the package, and return its specification; errors speak of the target."""
    from .coreml_program import TARGET

    try:
        with redirect_stderr(io.StringIO()):  # progress bars of the smallest steps
            written = ct.convert(
                program,
                source="milinternal",
                convert_to="mlprogram",
                inputs=[takes],
                classifier_config=classifier_config,
                compute_precision=ct.precision.FLOAT32,  # the types are chosen already
                pass_pipeline=ct.PassPipeline.EMPTY,  # and so are the operations
                minimum_deployment_target=TARGET,
                skip_model_load=True,
                package_dir=str(package),
            )
    except RuntimeError as error:
        if any(word in str(error) for word in _NOT_WRITTEN):  # not why; weights go to the temporary folder first
            places = f"there or in {tempfile.gettempdir()}"
            raise OSError(f"{target} cannot be written, most likely for lack of space {places} ({error})") from None
        if "BlobWriter" in str(error):
            raise ImportError("this coremltools cannot write weights: use a Python that it has a wheel for") from None
        raise
    return written.get_spec()
