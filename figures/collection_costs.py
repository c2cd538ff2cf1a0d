"""What docs/collections.md plans with: the cost of a photo on this machine's CPU.

python figures/collection_costs.py

Seconds of one core to read, decode and resize a photo; photos a second that the model classifies, decoding aside; and
the processor time of making a library of photos, to that of classifying them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from throughput import make_photo

from mlx_convnextv2 import (
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ImageClassifier,
    ImageEmbedder,
    embed_folder,
)


def main() -> None:
    processor = ConvNextImageProcessor(size=224)
    with tempfile.TemporaryDirectory() as folder:
        for width, height, times in ((4032, 3024, 5), (500, 375, 50)):
            path = Path(folder) / f"{width}.jpg"
            make_photo(path, width, height, seed=0)
            processor.preprocess(path)
            begin = time.thread_time()
            for _ in range(times):
                processor.preprocess(path)
            cost = (time.thread_time() - begin) / times
            print(f"{width} x {height}, {path.stat().st_size / 1e6:.1f} MB: {cost * 1000:.1f} ms of a core")
    photos = [np.full((256, 256, 3), i, np.uint8) for i in range(16)]
    for size in ("atto", "tiny"):
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size)).eval()
        classifier = ImageClassifier(model, processor)
        rates = []
        for _ in range(4):
            begin = time.perf_counter()
            list(classifier.stream(photos))
            rates.append(len(photos) / (time.perf_counter() - begin))
        print(f"{size}: {median(rates[1:]):.1f} photos a second")
    print_embedding(processor)


def print_embedding(processor: ConvNextImageProcessor, photos: int = 40, runs: int = 5) -> None:
    model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size("atto"))
    classifier, embedder = ImageClassifier(model, processor), ImageEmbedder(model, processor)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "photos" / f"{i}.jpg" for i in range(photos)]
        paths[0].parent.mkdir()
        for i, path in enumerate(paths):
            make_photo(path, 500, 375, seed=i)
        for run in range(runs + 1):
            begin = time.process_time()
            list(classifier.stream(paths))
            between = time.process_time()
            embed_folder(paths[0].parent, Path(folder) / f"library-{run}", embedder)
            ratios.append((time.process_time() - between) / (between - begin))
    ratios = ratios[1:]  # without the start
    print(f"embed, processor time to that of classify: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
