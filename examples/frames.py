"""Classify frames from memory, one array at a time, as a camera or a video decoder delivers them.

python examples/frames.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from mlx_convnextv2 import ImageClassifier


def frames(count: int = 8, height: int = 120, width: int = 160) -> Iterator[np.ndarray]:
    """A stand-in for a camera, (H, W, 3) uint8: a bright ball moves from left to right on dark ground."""
    y, x = np.mgrid[0:height, 0:width]
    for i in range(count):
        center = width * (i + 0.5) / count
        ball = ((x - center) ** 2 + (y - height / 2) ** 2 < 30**2) * 220
        yield np.stack([ball, ball, ball // 2], axis=-1).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="facebook/convnextv2-tiny-1k-224", help="a Hub id or a folder")
    args = parser.parse_args()

    classifier = ImageClassifier(args.model)
    for number, result in enumerate(classifier.stream(frames(), top_k=1)):  # each is answered before the next is taken
        if result.error:
            print(f"frame {number}: {result.error}")
        for best in result.predictions or []:
            print(f"frame {number}: {best['label']} ({best['score']:.1%})")


if __name__ == "__main__":
    main()
