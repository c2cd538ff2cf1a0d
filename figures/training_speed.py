"""How fast does training all weights run beside PyTorch's own loop on the same cores, and in how much memory?

    python figures/training_speed.py [--size atto] [--side 224] [--batch 8] [--rounds 3]

Each contender runs in a process of its own, by turns, on the same random batch: forward, backward and AdamW in float32.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

CONTENDERS = ("ours", "ours, --grad-checkpoint", "pytorch")
_STEPS = 2  # timed, after one untimed step


def run_ours(size: str, side: int, batch: int, checkpoint: bool) -> float:
    """Images a second."""
    import numpy as np

    from mlx_convnextv2 import ConvNextV2Config, ConvNextV2ForImageClassification, training
    from mlx_convnextv2.training.batches import step_random
    from mlx_convnextv2.training.recipe import make_recipe
    from mlx_convnextv2.training.step import Step, first_state

    config = ConvNextV2Config.from_size(size, num_labels=10)
    model = ConvNextV2ForImageClassification(config)
    options = training.Options(full=True, batch_size=batch, drop_path=0.0, grad_checkpoint=checkpoint)
    recipe = make_recipe(options, config, 100 * batch)
    state, step = first_state(model, recipe), Step(model, recipe)
    images = np.random.RandomState(0).standard_normal((batch, side, side, 3)).astype(np.float32)
    labels = np.arange(batch, dtype=np.int32) % 10
    for number in range(_STEPS + 1):
        if number == 1:
            begun = time.perf_counter()
        state, _ = step(state, images, labels, step_random(0, number))
    return _STEPS * batch / (time.perf_counter() - begun)


def run_pytorch(size: str, side: int, batch: int) -> float:
    """Images a second of transformers' model with PyTorch's AdamW."""
    import torch
    import transformers

    from mlx_convnextv2.model.config import SIZES

    model = transformers.ConvNextV2ForImageClassification(transformers.ConvNextV2Config(**SIZES[size], num_labels=10))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.3)
    images, labels = torch.randn(batch, 3, side, side), torch.arange(batch) % 10
    for number in range(_STEPS + 1):
        if number == 1:
            begun = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images).logits, labels, label_smoothing=0.2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return _STEPS * batch / (time.perf_counter() - begun)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="atto")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        if args.contender == "pytorch":
            rate = run_pytorch(args.size, args.side, args.batch)
        else:
            rate = run_ours(args.size, args.side, args.batch, "checkpoint" in args.contender)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"rate": rate, "peak": peak}))
        return 0
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(args.rounds):
        for name in CONTENDERS:
            command = [sys.executable, __file__, "--contender", name, "--size", args.size]
            command += ["--side", str(args.side), "--batch", str(args.batch)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(json.loads(result.stdout.splitlines()[-1]))
    print(f"| {args.size}, {args.batch} images of {args.side} x {args.side} | images/s | peak memory |\n|---|---|---|")
    for name, runs in found.items():
        rate, peak = (statistics.median(run[key] for run in runs) for key in ("rate", "peak"))
        print(f"| {name} | {rate:.1f} | {peak / 1e6:,.0f} MB |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
