"""Small labelled pictures for the tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("checks", "dots", "stripes")


def texture(name: str, random: np.random.RandomState, side: int = 40) -> Image.Image:
    """A noisy picture of stripes, checks or dots, of a colour, a width and a place of its own."""
    y, x = np.mgrid[0:side, 0:side] + random.uniform(0, 10, size=(2, 1, 1))
    wave = 2 * np.pi / random.uniform(6, 12)
    if name == "stripes":
        pattern = np.sin(wave * x)
    elif name == "checks":
        pattern = np.sign(np.sin(wave * x) * np.sin(wave * y))
    else:
        pattern = np.where(np.sin(wave * x) * np.sin(wave * y) > 0.6, 1, -1)
    colour = random.uniform(30, 90, size=3)
    pixels = 128 + pattern[..., None] * colour + random.normal(0, 10, size=(side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_pictures(folder: Path, count: int, classes=CLASSES, seed: int = 0) -> Path:
    """A folder with `count` pictures a class, and returns it."""
    random = np.random.RandomState(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            texture(name, random).save(folder / name / f"{i}.png")
    return folder
