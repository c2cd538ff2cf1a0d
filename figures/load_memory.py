"""How much memory does a model take, from loading to the first images, as a part of its weights?

    python figures/load_memory.py

Each figure is the peak of a process of its own, less the peak of the same imports without a model.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTS = "import sys; from mlx_convnextv2 import ImageClassifier, fuse, load; import mlx.core as mx, numpy as np\n"
REPORT = "from mlx_convnextv2.benchmarking.memory import peak_bytes; print(peak_bytes())"
LOAD = "model, processor = load(sys.argv[1], dtype=sys.argv[2] or None)\n"
STEPS = {
    "load, weights evaluated": f"{LOAD}mx.eval(model.parameters())",
    "load and fuse": f"{LOAD}predict = fuse(model)",
    "classify one image": "ImageClassifier(sys.argv[1], dtype=sys.argv[2] or None)(np.zeros((300, 400, 3), np.uint8))",
    "classify a batch of 8": (
        "ImageClassifier(sys.argv[1], dtype=sys.argv[2] or None)([np.zeros((300, 400, 3), np.uint8)] * 8)"
    ),
}
IN_ONNX_RUNTIME = {
    "classify one image in ONNX Runtime": (
        "import os; os.environ['MLX_CONVNEXTV2_OPS'] = 'onnxruntime'\n" + STEPS["classify one image"]
    )
}


def peak(code: str, *arguments: str) -> float:
    """The peak memory of a Python process in MB."""
    command = [sys.executable, "-c", f"{IMPORTS}{code}\n{REPORT}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit("a step failed")
    return int(done.stdout) / 1e6


def measure(size: str, dtype: str = "", steps: dict[str, str] = STEPS) -> tuple[float, float, dict[str, float]]:
    """In MB: the weights in float32, the peak of the imports alone, and what each step takes above that."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        make = (
            "from mlx_convnextv2 import *; save(ConvNextV2ForImageClassification(ConvNextV2Config.from_size("
            "sys.argv[1])), sys.argv[2], ConvNextImageProcessor(size=224), format='huggingface')"
        )
        peak(make, size, str(folder))
        weights = (folder / "model.safetensors").stat().st_size / 1e6
        bare = peak("")
        return weights, bare, {name: peak(code, str(folder), dtype) - bare for name, code in steps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="base", help="a published size (default: base)")
    parser.add_argument("--dtype", default="", help="cast to this at loading (default: float32, as stored)")
    args = parser.parse_args()
    weights, bare, steps = measure(args.size, args.dtype)
    print(f"{args.size}, weights of {weights:.0f} MB in float32; imports alone take {bare:.0f} MB")
    for name, taken in steps.items():
        print(f"  {name:24} {taken:6.0f} MB more, {taken / weights:.2f} of the weights")


if __name__ == "__main__":
    main()
