"""The images that everybody is given: smooth, with edges, each different, and nothing to download."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..classify import DEMO
from ..image_processor import ConvNextImageProcessor


def picture(index: int, height: int, width: int) -> Image.Image:
    """A handwritten digit of the demo, enlarged over a slanting coloured light; `index` chooses digit and colours."""
    random = np.random.RandomState(index)
    with Image.open(DEMO / "images" / f"digit-{index % 10}.png") as file:
        digit = np.asarray(file.convert("L").resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    light = (x * random.uniform(-1, 1) + y * random.uniform(-1, 1) + 2) / 4
    ink, paper = random.uniform(0, 255, (2, 3))
    pixels = digit[..., None] * ink + (1 - digit[..., None]) * light[..., None] * paper
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def pixel_values(count: int, height: int, width: int, channels: int) -> np.ndarray:
    """`count` pictures as the model takes them: (count, height, width, channels) float32, normalised."""
    process = ConvNextImageProcessor(do_resize=False).preprocess
    images = np.stack([process(picture(i, height, width)) for i in range(count)])
    return np.ascontiguousarray(images[..., np.arange(channels) % 3], np.float32)
