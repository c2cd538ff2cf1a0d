"""How near is ONNX Runtime as our engine to a bare session, and after how many images does its start pay?

    python figures/engine.py

Needs the extras parity and onnxruntime. The bare session runs transformers' model, exported by PyTorch. Its folder is
read by a script that opens, resizes and classifies one photo after the other. Each contender has a process of its own;
ratios are of alternating runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import load_memory
import throughput

from mlx_convnextv2.benchmarking import compare
from mlx_convnextv2.benchmarking.exports import export

OURS = """
import os, sys, time
from mlx_convnextv2 import ImageClassifier
from mlx_convnextv2.inference.fuse import make_ready
checkpoint, photos, _ = sys.argv[1:]
files = sorted(entry.path for entry in os.scandir(photos))
classifier = ImageClassifier(checkpoint)
make_ready(classifier.predict)
classifier(files[:2])
start = time.perf_counter()
classifier(files)
print(time.perf_counter() - start)
"""
BARE = """
import os, sys, time
import numpy as np, onnxruntime
from PIL import Image
_, photos, model = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
def classify(file):
    image = Image.open(file).convert("RGB")
    width, height = (int(256 * length / min(image.size)) for length in image.size)
    left, top = (width - 224) // 2, (height - 224) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    pixels = (np.asarray(image, np.float32) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    return session.run(None, {"pixel_values": pixels.astype(np.float32).transpose(2, 0, 1)[None]})[0].argmax()
files = sorted(entry.path for entry in os.scandir(photos))
[classify(file) for file in files[:2]]
start = time.perf_counter()
[classify(file) for file in files]
print(time.perf_counter() - start)
"""
START = """
import json, sys, time
import mlx_convnextv2, mlx.core as mx, numpy as np
from mlx_convnextv2.inference.fuse import fuse
model, _ = mlx_convnextv2.load(sys.argv[1])
image = mx.array(np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32))
def seconds(predict):
    predict(image)
    start = time.perf_counter()
    for _ in range(3):
        predict(image)
    return (time.perf_counter() - start) / 3
in_numpy = seconds(fuse(model, "numpy"))
start = time.perf_counter()
predict = fuse(model, "onnxruntime")
print(json.dumps([time.perf_counter() - start, in_numpy, seconds(predict)]))
"""


def run(code: str, *arguments: object) -> list[float]:
    """What a script prints, as JSON."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}  # as ours
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    return answer if isinstance(answer, list) else [answer]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def rows(size: str, runs: int, photos: int) -> list[tuple[str, str, str]]:
    (ratio,) = (
        result.ratio
        for result in compare(size=size, against=["onnxruntime"], runs=runs).results
        if result.contender == "onnxruntime"
    )
    one_image = f"{ratio.median:.2f} ({ratio.min:.2f} to {ratio.max:.2f})"
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, folder, graph = (Path(temporary) / name for name in ("checkpoint", "photos", "model.onnx"))
        throughput.make_checkpoint(checkpoint, size)
        export("onnx", checkpoint, graph, "float32", (1, 224, 224))
        folder.mkdir()
        for i in range(photos):
            throughput.make_photo(folder / f"{i:05}.jpg", 500, 400, i)
        work = (checkpoint, folder, graph)
        folders = [run(OURS, *work)[0] / run(BARE, *work)[0] for _ in range(runs)]
        starts = [run(START, checkpoint) for _ in range(min(runs, 3))]
    seconds, in_numpy, in_session = (statistics.median(values) for values in zip(*starts, strict=True))
    pays = seconds / (in_numpy - in_session) if in_numpy > in_session else float("inf")
    start = f"{seconds:.2f} s, {in_numpy * 1e3:.0f} and {in_session * 1e3:.0f} ms: {pays:.0f} images"
    return [
        (f"{size}: one image, time to that of a bare session", "at most 1.05", one_image),
        (f"{size}: a folder of {photos} photos, time to that of a bare session", "at most 1.05", spread(folders)),
        (f"{size}: the start, an image in numpy and after it, and what it pays for", "", start),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="atto,tiny,base", help="published sizes (default: atto,tiny,base)")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs (default: 5)")
    parser.add_argument("--photos", type=int, default=40, help="photos of 500 x 400 (default: 40)")
    args = parser.parse_args()
    print("| what | target | measured |\n|---|---|---|")
    for size in args.sizes.split(","):
        for row in rows(size, args.runs, args.photos):
            print(f"| {' | '.join(row)} |", flush=True)
    weights, _, steps = load_memory.measure("base", steps=load_memory.IN_ONNX_RUNTIME)
    for name, taken in steps.items():
        print(f"| base: {name}, memory to the weights' size | at most 1.3 | {taken / weights:.2f} |", flush=True)


if __name__ == "__main__":
    main()
