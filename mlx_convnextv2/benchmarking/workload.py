"""The workload of all contenders: a checkpoint, and different smooth images with edges."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image

from ..checkpoints.load import load
from ..checkpoints.processor import ConvNextImageProcessor
from ..checkpoints.save import save
from ..files.output_files import temporary_files
from ..model.config import ConvNextV2Config
from ..model.convnextv2 import ConvNextV2ForImageClassification

_DIGITS = Path(__file__).parent.parent / "demo" / "images"


def subject(model: str | None, size: str | None) -> tuple[ConvNextV2ForImageClassification, ConvNextImageProcessor]:
    """The measured model: a Hub id or folder, or random weights of a published size.

    Raises:
        ValueError: both or neither of model and size are given, or the size does not exist.
        FileNotFoundError, OSError, ValueError: as `load`.
    """
    if model is not None and size is None:
        return load(model, model_class=ConvNextV2ForImageClassification)
    if size is None or model is not None:
        raise ValueError("give either a model, a Hub id or a folder, or the size of one with random weights")
    mx.random.seed(0)
    network = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
    # GRN's weights start at zero, which would hide an error in it.
    parameters: Any = tree_flatten(network.parameters())
    grn = [(name, mx.random.normal(p.shape)) for name, p in parameters if ".grn." in name]
    network.load_weights(grn, strict=False)
    return network, ConvNextImageProcessor(size=224)


def write_model(model: str | None, size: str | None, folder: Path) -> ConvNextV2Config:
    """Write the checkpoint in PyTorch's layout, which every contender can read. Returns its config."""
    network, processor = subject(model, size)
    with temporary_files():
        save(network, folder, processor, format="huggingface")
    return network.config


def write_images(file: Path, count: int, height: int, width: int, channels: int) -> Path:
    """Write the images that the workers read, as an .npy file."""
    return _write(file, lambda buffer: np.save(buffer, pixel_values(count, height, width, channels)))


def write_picture(file: Path) -> Path:
    """Write a picture as a JPEG."""
    return _write(file, lambda buffer: picture(0, 480, 640).save(buffer, "JPEG"))


def _write(file: Path, encode: Callable[[io.BytesIO], None]) -> Path:
    """Write via memory, because numpy and Pillow do not report that the disk failed."""
    buffer = io.BytesIO()
    encode(buffer)
    with temporary_files():
        file.write_bytes(buffer.getbuffer())
    return file


def picture(index: int, height: int, width: int) -> Image.Image:
    """A handwritten digit of the demo, enlarged, over a coloured gradient. `index` chooses digit and colours."""
    random = np.random.RandomState(index)
    with Image.open(_DIGITS / f"digit-{index % 10}.png") as file:
        digit = np.asarray(file.convert("L").resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    light = (x * random.uniform(-1, 1) + y * random.uniform(-1, 1) + 2) / 4
    ink, paper = random.uniform(0, 255, (2, 3))
    pixels = digit[..., None] * ink + (1 - digit[..., None]) * light[..., None] * paper
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def pixel_values(count: int, height: int, width: int, channels: int) -> np.ndarray:
    """`count` pictures as model input: (count, height, width, channels) float32, normalised."""
    process = ConvNextImageProcessor(do_resize=False).preprocess
    images = np.stack([process(picture(i, height, width)) for i in range(count)])
    return np.ascontiguousarray(images[..., np.arange(channels) % 3], np.float32)
