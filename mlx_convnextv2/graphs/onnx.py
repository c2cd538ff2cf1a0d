"""A model as an ONNX file, straight from its MLX weights: pixels in, probabilities out.

The graph rescales and normalises pixels, runs the model and applies softmax. The app resizes and crops the image first;
the description says how.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..checkpoints.model_card import weights_terms
from ..files.atomic_folder import Kind, check_target, new_folder
from ..files.json_files import write_json
from ..files.names import ONNX_FILE
from ..images.processor import ImageProcessor
from ..messages import short
from ..model.convnextv2 import ConvNextV2ForImageClassification
from ..model.labels import class_labels
from .description import DESCRIPTION_FILE, input_shape, preprocessing

ONNX = Kind("an ONNX model", ((ONNX_FILE,),))
DTYPES = ("float32", "float16")
INPUTS = ("uint8", "float32")


@dataclass(frozen=True)
class ONNXModel:
    """What was written: size in bytes, type of computation, the input's type and shape, and the opset."""

    path: Path
    bytes: int
    dtype: str
    quantized: bool
    input: str
    shape: tuple[int, int, int]
    outputs: tuple[str, ...]
    opset: int

    def __str__(self) -> str:
        stored = f"{self.dtype}, linear layers in 8 bits" if self.quantized else self.dtype
        takes = f"{self.input} pixels (batch, {', '.join(map(str, self.shape))})"
        return f"{self.bytes / 1e6:,.1f} MB, {stored}, {takes} to {' and '.join(self.outputs)}, opset {self.opset}"


def export_onnx(
    model: ConvNextV2ForImageClassification,
    processor: ImageProcessor,
    path: str | os.PathLike[str],
    *,
    input: str = "uint8",
    features: bool = False,
    dtype: str = "float32",
    q_bits: int | None = None,
    name: str = "the model",
    licence: str | None = None,
    overwrite: bool = False,
) -> ONNXModel:
    """Write a folder with model.onnx and its description, model.json. The folder appears whole or not at all.

    The graph takes `pixels` of 0 to 255 (N, H, W, C), resized and cropped, for any N. It returns `probabilities`
    (N, num_labels) in float32. Weights of more than 2 GB lie in model.onnx_data beside it. The description has the
    labels, and says how to resize and crop. The file's metadata repeats it.

    Args:
        model: a model with a classification head, quantized or not. It is not changed.
        processor: its image processor. The graph includes what the processor does to pixels.
        path: the folder, which must not exist.
        input: the pixels' type, "uint8" or "float32".
        features: also return the pooled `embedding` (N, hidden_size) in float32.
        dtype: the type of computation, "float32" or "float16". On a CPU, ONNX Runtime computes float16 in float32.
        q_bits: 8 stores the linear layers' weights as integers with a scale for each output channel. On processors
            that support it, ONNX Runtime then multiplies integers, and rounds the activations to integers too.
        name: the model's name, for the metadata.
        licence: the licence of the weights, for the metadata.
        overwrite: replace an existing ONNX model.

    Raises:
        FileExistsError: the folder exists.
        ImportError: onnx is not installed.
        OSError: the folder cannot be written, for example for lack of space.
        ValueError: the model has no head, an argument makes no sense, or weights do not fit into `dtype`.
    """
    path = Path(path).expanduser()
    check_onnx(path, input=input, dtype=dtype, q_bits=q_bits, overwrite=overwrite)
    shape = input_shape(model, processor, name)
    import onnx

    from ..files import onnx_file
    from .onnx_program import classifying_graph

    options: dict[str, Any] = {"input": input, "features": features, "dtype": dtype, "quantized": q_bits is not None}
    graph = classifying_graph(model, processor, shape[:2], **options)
    doc = f"{name}: ConvNeXt V2 image classification (arXiv:2301.00808)."
    outputs = tuple(output.name for output in graph.outputs)
    description = {
        "format": "onnx",
        "model": name,
        "package_version": __version__,
        "opset": onnx_file.OPSET,
        "weights_dtype": dtype,
        "quantized": q_bits is not None,
        "input": {"name": "pixels", "dtype": input, "shape": ["batch", *shape], "layout": "NHWC"},
        "preprocessing": preprocessing(processor, shape),
        "outputs": list(outputs),
        "labels": class_labels(model.config),
        "licence": weights_terms(licence),
    }
    metadata = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in description.items()
    }
    with new_folder(path, overwrite, ONNX) as folder:
        onnx_file.write(graph, folder / ONNX_FILE, doc, metadata)
        is_one_file = len(list(folder.iterdir())) == 1
        onnx.checker.check_model(str(folder / ONNX_FILE), full_check=is_one_file)  # full_check fails on a large file
        write_json(folder / DESCRIPTION_FILE, description)
        size = sum(file.stat().st_size for file in folder.iterdir())
    return ONNXModel(path, size, dtype, q_bits is not None, input, shape, outputs, onnx_file.OPSET)


def check_onnx(
    path: Path, *, input: str = "uint8", dtype: str = "float32", q_bits: int | None = None, overwrite: bool = False
) -> None:
    """Raise the errors of `export_onnx` that can be found without a model."""
    if input not in INPUTS:
        raise ValueError(f"an ONNX model takes pixels as {' or '.join(INPUTS)}, not as {short(input)}")
    if dtype not in DTYPES:
        raise ValueError(f"an ONNX model computes in {' or '.join(DTYPES)}, not in {short(dtype)}")
    if q_bits not in (None, 8):
        raise ValueError(f"an ONNX model's weights are quantized to 8 bits, not to {q_bits}")
    check_target(path, overwrite, ONNX)
    try:
        import onnx  # noqa: F401 - whether it is there
    except ImportError:
        raise ImportError('ONNX models are written by onnx: pip install "mlx-convnextv2[onnx]"') from None
