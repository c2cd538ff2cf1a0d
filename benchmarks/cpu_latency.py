"""How long does one image take on this CPU, beside the plain modules and other programs?

    python benchmarks/cpu_latency.py --size tiny

Each contender loads the same random checkpoint in a process of its own, where no other's threads disturb it, and the
processes take turns. Times are ratios to the first contender's in the same round: their median, and from the lowest to
the highest. Contenders that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

NEEDS = {
    "transformers": ["torch", "transformers"],
    "fused": [],
    "plain": [],
    "onnxruntime": ["torch", "transformers", "onnx", "onnxruntime"],
}
Predict = Callable[[], np.ndarray]


def mlx_contender(folder: str, pixel_values: np.ndarray, ops: str) -> Predict:
    os.environ["MLX_CONVNEXTV2_OPS"] = ops
    import mlx.core as mx

    from mlx_convnextv2 import fuse, load

    model, _ = load(folder)
    predict, images = fuse(model), mx.array(pixel_values)
    return lambda: np.array(predict(images))


def transformers_contender(folder: str, pixel_values: np.ndarray) -> Predict:
    import torch
    from transformers import ConvNextV2ForImageClassification

    model = ConvNextV2ForImageClassification.from_pretrained(folder).eval()
    images = torch.from_numpy(pixel_values.transpose(0, 3, 1, 2).copy())

    def predict() -> np.ndarray:
        with torch.inference_mode():
            return model(images).logits.numpy()

    return predict


def onnxruntime_contender(folder: str, pixel_values: np.ndarray) -> Predict:
    import onnxruntime
    import torch
    from transformers import ConvNextV2ForImageClassification

    model = ConvNextV2ForImageClassification.from_pretrained(folder).eval()
    images = pixel_values.transpose(0, 3, 1, 2).copy()
    file = str(Path(folder) / "model.onnx")

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images).logits

    torch.onnx.export(Logits().eval(), (torch.from_numpy(images),), file, input_names=["images"], dynamo=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})[0]


def serve(name: str, folder: str, side: int, batch: int) -> None:
    """Load a contender; for each line on standard input print the median time of that many calls in seconds."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to standard error
    os.dup2(2, 1)
    pixel_values = np.random.RandomState(0).standard_normal((batch, side, side, 3)).astype(np.float32)
    if name in ("fused", "plain"):
        predict = mlx_contender(folder, pixel_values, "auto" if name == "fused" else "plain")
    else:
        predict = {"transformers": transformers_contender, "onnxruntime": onnxruntime_contender}[name](
            folder, pixel_values
        )
    np.save(Path(folder) / f"{name}.npy", predict())
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            predict()
            times.append(time.perf_counter() - start)
        print(statistics.median(times), file=answers, flush=True)


def make_checkpoint(folder: str, size: str) -> None:
    """A published size with random weights, GRN's too, in transformers' layout."""
    import mlx.core as mx

    from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, save

    model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
    for stage in model.convnextv2.encoder.stages:
        for layer in stage.layers:
            layer.grn.weight = mx.random.normal(layer.grn.weight.shape)
            layer.grn.bias = mx.random.normal(layer.grn.bias.shape)
    save(model, Path(folder) / "checkpoint", ConvNextImageProcessor(size=224), format="huggingface")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="tiny", help="a published size (default: tiny)")
    parser.add_argument("--side", type=int, default=224, help="side of the images in pixels (default: 224)")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default: 1)")
    parser.add_argument("--rounds", type=int, default=15, help="alternating rounds (default: 15)")
    parser.add_argument("--contenders", default=",".join(NEEDS), help="separated by commas; the first is the measure")
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(*args.serve, args.side, args.batch)
        return
    names = [name.strip() for name in args.contenders.split(",")]
    for name in names:
        if name not in NEEDS:
            parser.error(f"{name!r} is no contender: choose from {', '.join(NEEDS)}")
    names = [name for name in names if all(importlib.util.find_spec(module) for module in NEEDS[name])]

    with tempfile.TemporaryDirectory() as temporary:
        make_checkpoint(temporary, args.size)
        folder = str(Path(temporary) / "checkpoint")
        options = [f"--side={args.side}", f"--batch={args.batch}"]
        processes = {}
        for name in names:
            command = [sys.executable, __file__, *options, "--serve", name, folder]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes[name] = process
            if ask(process) != "ready":
                raise SystemExit(f"{name} did not start")
        times: dict[str, list[float]] = {name: [] for name in names}
        for round_ in range(-1, args.rounds):  # the first is to warm up
            for name, process in processes.items():
                calls = 1 if name == "plain" else 5
                seconds = float(ask(process, calls))
                if round_ >= 0:
                    times[name].append(seconds)
        answers = {name: np.load(Path(folder) / f"{name}.npy") for name in names}
        for process in processes.values():
            process.communicate()

    print(f"{args.size}, {args.batch} x {args.side} x {args.side}, ratios to {names[0]} over {args.rounds} rounds")
    for name in names:
        ratios = [ours / theirs for ours, theirs in zip(times[name], times[names[0]], strict=True)]
        error = np.abs(answers[name] - answers[names[0]]).max() / np.abs(answers[names[0]]).max()
        print(
            f"{name:13} {statistics.median(ratios):6.2f} (from {min(ratios):.2f} to {max(ratios):.2f})"
            f"  {1000 * statistics.median(times[name]):8.1f} ms  differs by {error:.0e}"
        )


def ask(process: subprocess.Popen, calls: int | None = None) -> str:
    """The next line of a contender's standard output, after telling it how many calls to make."""
    if calls is not None:
        print(calls, file=process.stdin, flush=True)
    return process.stdout.readline().strip() if process.stdout else ""


if __name__ == "__main__":
    main()
