"""Train the bundled demo: a small ConvNeXt V2 on scikit-learn's handwritten digits, on a CPU, in two minutes.

    pip install "mlx-convnextv2[examples]"
    python examples/train_digits.py --output digits

writes the checkpoint and ten held-out images, and prints the accuracy on all held-out images. One seed gives one
result on one machine; another machine's arithmetic may differ in the last digit.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, save

HELD_OUT = 360  # of 1,797 images
BATCH_SIZE = 48


def digit_image(pixels: np.ndarray) -> Image.Image:
    """A digit of scikit-learn's, (8, 8) with values from 0 to 16, as a grey picture of 64 x 64 pixels."""
    small = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8))
    return small.resize((64, 64), Image.Resampling.BICUBIC)


def digits(processor: ConvNextImageProcessor, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All digits in an order drawn from the seed: 8-bit pictures, pixel values (N, H, W, 3), and classes (N,)."""
    data = load_digits()
    order = np.random.RandomState(seed).permutation(len(data.images))
    pictures = [digit_image(data.images[i]) for i in order]
    pixel_values = np.stack([processor.preprocess(picture) for picture in pictures])
    return np.stack([np.asarray(picture) for picture in pictures]), pixel_values, data.target[order]


def batches(
    pixel_values: np.ndarray, classes: np.ndarray, random: np.random.RandomState
) -> Iterator[tuple[mx.array, mx.array]]:
    """One epoch of shuffled batches, each image moved by up to three pixels."""
    height, width = pixel_values.shape[1:3]
    padded = np.pad(pixel_values, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    order = random.permutation(len(classes))
    for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        moves = random.randint(0, 7, size=(len(chosen), 2))
        moved = [padded[i, dy : dy + height, dx : dx + width] for i, (dy, dx) in zip(chosen, moves, strict=True)]
        yield mx.array(np.stack(moved)), mx.array(classes[chosen])


def accuracy(model: ConvNextV2ForImageClassification, pixel_values: np.ndarray, classes: np.ndarray) -> float:
    """The share of images whose class is the model's first answer."""
    answers = model.eval()(mx.array(pixel_values)).logits.argmax(axis=-1)
    return float((np.array(answers) == classes).mean())


def train(epochs: int, seed: int, output: str, overwrite: bool) -> float:
    """Train, save the checkpoint and the images of ten held-out digits, and return the held-out accuracy."""
    mx.random.seed(seed)
    processor = ConvNextImageProcessor(size=32, crop_pct=1.0)
    pictures, pixel_values, classes = digits(processor, seed)
    config = ConvNextV2Config(
        num_stages=3,
        hidden_sizes=[24, 48, 96],
        depths=[1, 2, 1],
        image_size=32,
        drop_path_rate=0.05,
        id2label={digit: str(digit) for digit in range(10)},
    )
    model = ConvNextV2ForImageClassification(config)
    steps = epochs * ((len(classes) - HELD_OUT) // BATCH_SIZE)
    warmup = optim.linear_schedule(1e-5, 2e-3, steps // 10)
    decay = optim.cosine_decay(2e-3, steps - steps // 10)
    optimizer = optim.AdamW(optim.join_schedules([warmup, decay], [steps // 10]), weight_decay=0.02)

    def loss(model: ConvNextV2ForImageClassification, pixel_values: mx.array, labels: mx.array) -> mx.array | None:
        return model(pixel_values, labels=labels).loss

    loss_and_gradients = nn.value_and_grad(model, loss)
    random = np.random.RandomState(seed)
    start = time.monotonic()
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        for inputs, labels in batches(pixel_values[HELD_OUT:], classes[HELD_OUT:], random):
            value, gradients = loss_and_gradients(model, inputs, labels)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            losses.append(value.item())
        elapsed = time.monotonic() - start
        print(f"epoch {epoch:2d} of {epochs}  loss {np.mean(losses):.4f}  {elapsed:4.0f} s", flush=True)

    held_out = accuracy(model, pixel_values[:HELD_OUT], classes[:HELD_OUT])
    save(model, output, processor, overwrite=overwrite, licence="apache-2.0")
    images = Path(output) / "images"
    images.mkdir()
    for digit in range(10):
        i = int(np.flatnonzero(classes[:HELD_OUT] == digit)[0])
        Image.fromarray(pictures[i]).save(images / f"digit-{digit}.png", optimize=True)
    print(f"held-out accuracy: {held_out:.2%} of {HELD_OUT} images")
    return held_out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", required=True, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it is a checkpoint")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.epochs, args.seed, args.output, args.overwrite)
    return 0


if __name__ == "__main__":
    sys.exit(main())
