"""Train a small ConvNeXt V2 from nothing on scikit-learn's handwritten digits, on a CPU, in minutes.

    pip install "mlx-convnextv2[examples]"
    python examples/train_digits.py --output digits

This writes the digits as folders of pictures, trains on them as on any others, and adds ten held-out images, one of
each class. A seed always gives the same result on the same machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, training
from mlx_convnextv2.training.bars import Bars

HELD_OUT = 360  # of 1,797 images


def digit_image(pixels: np.ndarray) -> Image.Image:
    """One of scikit-learn's digits, (8, 8) with values from 0 to 16, as a grey picture of 64 x 64 pixels."""
    small = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8))
    return small.resize((64, 64), Image.Resampling.BICUBIC)


def digits(processor: ConvNextImageProcessor, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All digits in an order drawn from the seed: 8-bit pictures, pixel values (N, H, W, 3), and classes (N,)."""
    data = load_digits()
    order = np.random.RandomState(seed).permutation(len(data.images))
    pictures = [digit_image(data.images[i]) for i in order]
    pixel_values = np.stack([processor.preprocess(picture) for picture in pictures])
    return np.stack([np.asarray(picture) for picture in pictures]), pixel_values, data.target[order]


def write_folders(folder: Path, pictures: np.ndarray, classes: np.ndarray) -> None:
    """Write the held-out pictures to val/DIGIT/ and the others to train/DIGIT/."""
    for i, (picture, digit) in enumerate(zip(pictures, classes, strict=True)):
        file = folder / ("val" if i < HELD_OUT else "train") / str(digit) / f"{i:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)


def train(epochs: int, seed: int, output: str, overwrite: bool) -> float:
    """Train, save the checkpoint and the images of ten held-out digits, and return the held-out accuracy."""
    mx.random.seed(seed)
    processor = ConvNextImageProcessor(size=32, crop_pct=1.0)
    config = ConvNextV2Config(num_stages=3, hidden_sizes=[24, 48, 96], depths=[1, 2, 1], image_size=32)
    model = ConvNextV2ForImageClassification(config)
    pictures, _, classes = digits(processor, seed)
    with tempfile.TemporaryDirectory() as folder:
        write_folders(Path(folder), pictures, classes)
        trained = training.train(
            folder, (model, processor), output, overwrite=overwrite, progress=Bars(), seed=seed, epochs=epochs,
            full=True, head="scaled", lr=2e-3, batch_size=48, warmup_epochs=epochs / 10, layer_decay=1.0,
            weight_decay=0.02, drop_path=0.05, label_smoothing=0.0, augment="none", crop_scale=0.7, flip=0.0, erase=0.0,
        )  # fmt: skip
    images = Path(output) / "images"
    images.mkdir()
    for digit in range(10):
        i = int(np.flatnonzero(classes[:HELD_OUT] == digit)[0])
        Image.fromarray(pictures[i]).save(images / f"digit-{digit}.png", optimize=True)
    print(f"held-out accuracy: {trained.best.val_top1:.2%} of {HELD_OUT} images")
    return trained.best.val_top1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it is a checkpoint")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.epochs, args.seed, args.output, args.overwrite)
    return 0


if __name__ == "__main__":
    sys.exit(main())
