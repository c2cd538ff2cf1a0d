"""How long does a training step take on this CPU, beside transformers' model in PyTorch?

    pip install "mlx-convnextv2[parity]"
    python figures/training_step.py

A step is the forward pass, the gradients and AdamW, in float32, on a random batch. Ours keeps freed memory, as
`train` does. Each contender runs in a process of its own, in turns, and the median step of each process counts.
`--plain` adds MLX's own operations, whose steps take minutes on the larger sizes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

WARM_UP = 2  # steps


def ours(size: str, batch: int, side: int) -> Callable[[], object]:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim

    from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification  # before mlx, for its BLAS
    from mlx_convnextv2.runtime.heap import keep_freed_memory

    keep_freed_memory()
    model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size)).train()
    optimizer = optim.AdamW(learning_rate=1e-4)
    pixel_values = mx.random.normal((batch, side, side, 3))
    labels = mx.random.randint(0, model.config.num_labels, (batch,))
    loss_and_gradients = nn.value_and_grad(model, lambda model: model(pixel_values, labels=labels).loss)

    def step() -> None:
        loss, gradients = loss_and_gradients(model)
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)

    return step


def pytorch(size: str, batch: int, side: int) -> Callable[[], object]:
    import torch
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    from mlx_convnextv2 import ConvNextV2Config as OurConfig

    published = OurConfig.from_size(size)
    sizes = {"depths": published.depths, "hidden_sizes": published.hidden_sizes}
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**sizes, num_labels=published.num_labels)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pixel_values = torch.randn(batch, 3, side, side)
    labels = torch.randint(0, published.num_labels, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        model(pixel_values=pixel_values, labels=labels).loss.backward()
        optimizer.step()

    return step


CONTENDERS = {"mlx_convnextv2": ours, "plain": ours, "pytorch": pytorch}


def seconds_of_a_step(contender: str, size: str, batch: int, side: int, steps: int) -> float:
    """The seconds of a step, measured in a process of its own."""
    command = [sys.executable, __file__, "--run", contender, "--size", size, "--steps", str(steps)]
    command += ["--batch", str(batch), "--side", str(side)]
    environment = dict(os.environ)
    if contender == "plain":
        environment["MLX_CONVNEXTV2_OPS"] = "plain"
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def measure(step: Callable[[], object], steps: int) -> float:
    times = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


def times(
    contenders: list[str], size: str, runs: int, batch: int = 8, side: int = 224, steps: int = 5
) -> dict[str, list[float]]:
    """The seconds of a step in alternating processes, by contender."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, own in found.items():
            own.append(seconds_of_a_step(name, size, batch, side, steps))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="atto")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224, help="pixels (default: 224)")
    parser.add_argument("--steps", type=int, default=5, help="of each process, after a warm-up (default: 5)")
    parser.add_argument("--runs", type=int, default=5, help="alternating processes of each contender (default: 5)")
    parser.add_argument("--plain", action="store_true", help="MLX's own operations too")
    parser.add_argument("--run", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(measure(CONTENDERS[args.run](args.size, args.batch, args.side), args.steps))
        return
    names = [name for name in CONTENDERS if name != "plain" or args.plain]
    found = times(names, args.size, args.runs, args.batch, args.side, args.steps)
    print(f"A training step of {args.size}, {args.batch} images of {args.side} x {args.side}, float32.\n")
    print("| contender | ms | to pytorch, median (range) |\n|---|---:|---|")
    for name in names:
        ratios = [own / theirs for own, theirs in zip(found[name], found["pytorch"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {statistics.median(found[name]) * 1e3:.0f} | {spread} |")


if __name__ == "__main__":
    main()
