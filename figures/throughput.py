"""How fast is a folder of photos classified, beside transformers' pipeline, and does memory grow with the folder?

    python figures/throughput.py

This makes a checkpoint of a published size with random weights and a folder of photo-like JPEGs. Each contender
classifies the whole folder in a process of its own, in turns; start and loading are not counted. transformers' pipeline
runs at several batch sizes, and the best one counts. Ours computes in numpy and in ONNX Runtime, which also runs alone.
Memory is the peak of a whole `classify` process with the bundled checkpoint, on few and on many images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mlx_convnextv2.benchmarking.exports import export
from mlx_convnextv2.demo import DEMO

BATCH_SIZES = (1, 4, 8)


def make_photo(path: Path, width: int, height: int, seed: int) -> None:
    """A JPEG with the smooth areas and the edges of a photo."""
    random = np.random.RandomState(seed)
    small = Image.fromarray(random.randint(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8))
    large = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    Image.fromarray(np.clip(large + random.randint(-12, 13, large.shape), 0, 255).astype(np.uint8)).save(path)


def ours(checkpoint: str, files: list[str], batch_size: int) -> float:
    from mlx_convnextv2 import ImageClassifier

    classifier = ImageClassifier(checkpoint, batch_size=batch_size)
    classifier(files[:2])
    start = time.perf_counter()
    for result in classifier.stream(files):
        if result.error is not None:
            raise result.error
    return time.perf_counter() - start


def transformers(checkpoint: str, files: list[str], batch_size: int) -> float:
    from transformers import AutoImageProcessor, pipeline

    processor = AutoImageProcessor.from_pretrained(checkpoint, use_fast=False)
    classifier = pipeline("image-classification", model=checkpoint, image_processor=processor, device="cpu")
    classifier(files[:2])
    start = time.perf_counter()
    for _ in classifier((file for file in files), batch_size=batch_size, top_k=5):
        pass
    return time.perf_counter() - start


def onnxruntime(checkpoint: str, files: list[str], batch_size: int) -> float:
    """One image after the other, each as soon as it is prepared."""
    import onnxruntime

    from mlx_convnextv2 import ConvNextImageProcessor

    processor = ConvNextImageProcessor.from_pretrained(checkpoint)
    session = onnxruntime.InferenceSession(f"{checkpoint}.onnx", providers=["CPUExecutionProvider"])

    def classify(file: str) -> int:
        pixel_values = processor.preprocess(file).transpose(2, 0, 1)[None]
        return int(session.run(None, {"pixel_values": pixel_values})[0].argmax())

    classify(files[0])
    start = time.perf_counter()
    for file in files:
        classify(file)
    return time.perf_counter() - start


# Each with the variable that says what computes ours.
CONTENDERS = {
    "ours in numpy": (ours, "numpy"),
    "ours in onnxruntime": (ours, "onnxruntime"),
    "transformers": (transformers, ""),
    "bare onnxruntime": (onnxruntime, ""),
}


def run(name: str, checkpoint: Path, folder: Path, batch_size: int) -> float:
    """Run a contender in a process of its own, and return its images a second."""
    command = [sys.executable, __file__, "--worker", name, str(checkpoint), str(folder), str(batch_size)]
    environment = {**os.environ, "MLX_CONVNEXTV2_OPS": CONTENDERS[name][1], "ORT_DISABLE_TELEMETRY": "1"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return float(json.loads(output.splitlines()[-1]))


def worker(name: str, checkpoint: str, folder: str, batch_size: str) -> None:
    files = sorted(str(path) for path in Path(folder).iterdir())
    print(json.dumps(len(files) / CONTENDERS[name][0](checkpoint, files, int(batch_size))))


def peak_memory(folder: Path) -> float:
    """The peak of `classify` on a folder with the bundled checkpoint, in MB."""
    command = [sys.executable, "-m", "mlx_convnextv2.classify", str(folder), "--model", str(DEMO), "--format", "csv"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit("classify failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def make_checkpoint(folder: Path, size: str) -> None:
    """Save it from a process of its own: on Linux the peak memory of a child is never below that of its parent."""
    code = (
        "import sys; from mlx_convnextv2 import *; config = ConvNextV2Config.from_size(sys.argv[1]);"
        "save(ConvNextV2ForImageClassification(config), sys.argv[2], ConvNextImageProcessor(size=224),"
        "format='huggingface')"
    )
    subprocess.run([sys.executable, "-c", code, size, str(folder)], check=True)


def measure(size: str, images: int, runs: int, batch_sizes: Sequence[int] = BATCH_SIZES) -> dict[str, list[float]]:
    """Images a second by contender and by round. transformers has its best batch size."""
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, photos = Path(temporary) / "checkpoint", Path(temporary) / "photos"
        make_checkpoint(checkpoint, size)
        export("onnx", checkpoint, Path(f"{checkpoint}.onnx"), "float32", (1, 224, 224))
        photos.mkdir()
        for i in range(images):
            make_photo(photos / f"{i:05}.jpg", 500, 400, i)
        best = batch_sizes[0]
        if len(batch_sizes) > 1:
            best = max(batch_sizes, key=lambda size: run("transformers", checkpoint, photos, size))
        rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
        for _ in range(runs):
            for name, own in rates.items():
                own.append(run(name, checkpoint, photos, best if name == "transformers" else 8))
    return rates


def memory(*counts: int) -> list[float]:
    """The peak of `classify` in MB, on a folder for each of the counts."""
    peaks = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in counts:
            folder = Path(temporary) / str(count)
            folder.mkdir()
            make_photo(folder / "0.jpg", 500, 400, 0)
            for i in range(1, count):
                os.link(folder / "0.jpg", folder / f"{i}.jpg")
            peaks.append(peak_memory(folder))
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="atto", help="a published size (default: atto)")
    parser.add_argument("--images", type=int, default=200, help="photos of 500 x 400 (default: 200)")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs (default: 5)")
    parser.add_argument("--many", type=int, default=10_000, help="images of the large folder (default: 10000)")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(*args.worker)

    rates = measure(args.size, args.images, args.runs)
    print(f"{args.size}, {args.images} photos of 500 x 400, images a second, and to those of transformers:")
    for name, own in rates.items():
        ratios = [rate / theirs for rate, theirs in zip(own, rates["transformers"], strict=True)]
        print(f"  {name:19} {statistics.median(own):7.1f} (from {min(own):.1f} to {max(own):.1f})", end="")
        print(f"  {statistics.median(ratios):.2f} times (from {min(ratios):.2f} to {max(ratios):.2f})")
    few, many = memory(100, args.many)
    print(f"peak memory of classify: {few:.0f} MB for 100 images, {many:.0f} MB for {args.many}")


if __name__ == "__main__":
    main()
