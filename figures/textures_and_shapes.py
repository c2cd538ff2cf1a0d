"""How well training does: the head alone and all weights, on thousands of generated textures and shapes.

    python figures/textures_and_shapes.py [--count 400] [--epochs 6] [--keep DIR]

This draws eight classes of pictures of three sizes, trains the bundled digits checkpoint on them both ways, and prints
docs/training.md's table. The checkpoint's knowledge of digits helps with shapes; all weights learn the textures too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.training import train

SIZES = ((48, 48), (64, 48), (80, 96))  # (width, height) of the pictures
TEXTURES = ("stripes", "checks", "dots", "rings")
SHAPES = ("circle", "square", "triangle", "cross")
# The recipe for photos would change pictures of 32 pixels beyond recognition.
GENTLE = {"augment": "none", "erase": 0.0, "crop_scale": 0.7, "label_smoothing": 0.1, "batch_size": 16, "lr": 1e-3}


def texture(name: str, size: tuple[int, int], random: np.random.RandomState) -> np.ndarray:
    """A pattern from -1 to 1, (H, W), slightly rotated, of random wavelength and place."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]] - np.array(size[::-1])[:, None, None] * random.uniform(
        0.2, 0.8, (2, 1, 1)
    )
    angle, wave = random.uniform(-0.3, 0.3), 2 * np.pi / random.uniform(9, 14)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    if name == "stripes":
        return np.sin(wave * u)
    if name == "checks":
        return np.sign(np.sin(wave * u) * np.sin(wave * v))
    if name == "dots":
        return np.where(np.cos(wave * u) + np.cos(wave * v) > 0.9, 1.0, -1.0)
    return np.sin(wave * np.hypot(u, v))


def shape(name: str, size: tuple[int, int], random: np.random.RandomState) -> np.ndarray:
    """One filled shape from -1 to 1, (H, W), slightly rotated, of random size and place."""
    canvas = Image.new("L", size, 0)
    draw = ImageDraw.Draw(canvas)
    radius = min(size) * random.uniform(0.28, 0.42)
    x, y = (random.uniform(radius, side - radius) for side in size)
    if name == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        arm = 0.3
        corners = {
            "square": [(1, 1), (-1, 1), (-1, -1), (1, -1)],
            "triangle": [(0, 1.2), (-1.04, -0.6), (1.04, -0.6)],
            "cross": [
                *((arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)),
                *((-arm, -1), (-arm, -arm), (-1, -arm), (-1, arm), (-arm, arm), (-arm, 1)),
            ],
        }[name]
        angle = random.uniform(-0.3, 0.3)
        turned = [(np.cos(angle) * a - np.sin(angle) * b, np.sin(angle) * a + np.cos(angle) * b) for a, b in corners]
        draw.polygon([(x + radius * a * 0.8, y + radius * b * 0.8) for a, b in turned], fill=255)
    return np.asarray(canvas) / 127.5 - 1


def picture(name: str, size: tuple[int, int], random: np.random.RandomState) -> Image.Image:
    """A texture or a shape in random colours, with noise."""
    pattern = (texture if name in TEXTURES else shape)(name, size, random)
    middle, strength = random.uniform(90, 165, 3), random.uniform(40, 90, 3)
    pixels = middle + pattern[..., None] * strength + random.normal(0, random.uniform(4, 10), (*pattern.shape, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """Write `count` pictures of each class, in the three sizes by turns, and return the folder."""
    random = np.random.RandomState(seed)
    for name in (*TEXTURES, *SHAPES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(name, SIZES[i % len(SIZES)], random).save(folder / name / f"{i:04d}.png")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=400, help="pictures of each of the eight classes")
    parser.add_argument("--epochs", type=int, default=6, help="of the training of all weights")
    parser.add_argument("--keep", metavar="DIR", help="leave pictures and checkpoints there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.keep or temporary)
        data = write_pictures(root / "pictures", args.count)
        print("| trained | top-1 | validation loss | seconds |\n|---|---|---|---|")
        for name, options in (("the head alone", {}), ("all weights", {"full": True, "epochs": args.epochs, **GENTLE})):
            begun = time.monotonic()
            best = train(data, DEMO, root / name.replace(" ", "-"), **options).best
            print(
                f"| {name} | {best.val_top1:.1%} | {best.val_loss:.3f} | {time.monotonic() - begun:.0f} |", flush=True
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
