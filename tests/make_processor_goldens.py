"""Writes goldens/processor.json: pixel values of transformers' PIL processor on pictures that a formula defines.

Run it with the extra `parity` installed: python tests/make_processor_goldens.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

GOLDENS = Path(__file__).parent / "goldens" / "processor.json"

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
PUBLISHED = {"crop_pct": 0.875, "resample": 3, **IMAGENET}

# (width, height) of the picture, and the processor's configuration
CASES: list[tuple[tuple[int, int], dict]] = [
    ((640, 480), {"size": {"shortest_edge": 224}, **PUBLISHED}),
    ((375, 500), {"size": {"shortest_edge": 224}, **PUBLISHED}),
    ((101, 37), {"size": {"shortest_edge": 224}, **PUBLISHED}),
    ((500, 375), {"size": {"shortest_edge": 384}, **PUBLISHED}),
    ((97, 130), {"size": {"shortest_edge": 64}, "crop_pct": 1.0, "resample": 0, **HALF}),
    ((97, 130), {"size": {"shortest_edge": 64}, "crop_pct": 0.9, "resample": 1, **HALF}),
    ((97, 130), {"size": {"shortest_edge": 63}, "crop_pct": 0.95, "resample": 2, **HALF}),
    ((97, 130), {"size": {"shortest_edge": 64}, "crop_pct": 0.875, "resample": 4, **HALF}),
    ((97, 130), {"size": {"shortest_edge": 64}, "crop_pct": 0.875, "resample": 5, **HALF}),
    ((41, 41), {"size": {"shortest_edge": 48}, "resample": 3, "rescale_factor": 1 / 127.5, "do_normalize": False}),
    ((41, 30), {"size": {"shortest_edge": 48}, "resample": 3, "do_rescale": False, **HALF}),
    ((33, 20), {"do_resize": False, **IMAGENET}),
]


def picture(width: int, height: int) -> Image.Image:
    """An RGB picture of integer arithmetic alone, the same on every machine: slopes with an edge in each channel."""
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = x * 7 + y * 3, x * y // 5 + 40, (x // 9 + y // 6) % 2 * 200 + x % 50
    return Image.fromarray((np.stack([red, green, blue], axis=-1) % 256).astype(np.uint8))


def sample(pixels: np.ndarray) -> list[list[float]]:
    """All channels at twelve places of (H, W, C) pixels: the corners, and others spread by two coprime strides."""
    height, width, _ = pixels.shape
    places = [(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1)]
    places += [(i * 37 % height, i * 53 % width) for i in range(1, 9)]
    return [pixels[place].tolist() for place in places]


def main() -> None:
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

    goldens = []
    for size, config in CASES:
        pixels = ConvNextImageProcessorPil(**config)(picture(*size), return_tensors="np")["pixel_values"]
        pixels = pixels[0].transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
        means = pixels.mean(axis=(0, 1), dtype=np.float64).tolist()
        goldens.append({"shape": list(pixels.shape), "means": means, "samples": sample(pixels)})
    GOLDENS.parent.mkdir(exist_ok=True)
    GOLDENS.write_text("[\n" + ",\n".join(map(json.dumps, goldens)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
