"""Measure the tables of speed in README and docs/speed.md, on a quiet and on a loaded machine, in about 20 minutes.

    python figures/performance.py                   # measure all, write docs/speed.json and both tables
    python figures/performance.py --load loaded --only image
    python figures/performance.py --render          # write the tables from docs/speed.json

It needs the extras parity, onnx and onnxruntime. A figure is a ratio of alternating runs: the median and the range.
"Loaded" means beside processes that compute without a pause at the same priority, one for each core.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import load_memory
import speed_tables
import throughput
import training_step

from mlx_convnextv2.runtime.threads import available_cpus

SIZES = ("tiny", "atto")
LOADS = ("quiet", "loaded")
Figures = dict[str, Any]  # a number, or the [median, least, most] of alternating runs

# It ends with its parent: PR_SET_PDEATHSIG is Linux's.
_BUSY = "import ctypes, sys\nif sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 9)\nwhile True: pass"


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that compute without a pause, at the priority of this one."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def spread(values: Sequence[float]) -> list[float]:
    return [statistics.median(values), min(values), max(values)]


def benchmark(*arguments: str, **environment: str) -> dict[str, Any]:
    """Run the benchmark command, and return its results by contender."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "report.json"
        command = [sys.executable, "-m", "mlx_convnextv2.benchmark", *arguments, "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        if not file.exists():
            raise OSError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return {result["contender"]: result for result in json.loads(file.read_text())["results"]}


def ratios(results: dict[str, Any], peer: str) -> list[float]:
    return [results[peer]["ratio"][which] for which in ("median", "min", "max")]


def image(load: str, runs: int) -> Iterator[Figures]:
    """One image, in numpy and in ONNX Runtime."""
    for size in SIZES:
        for engine in ("numpy", "onnxruntime"):
            peers = ["transformers", "onnxruntime"]
            if engine == "numpy" and load == "quiet":
                peers.append("torch-compile")
            arguments = ["compare", "--size", size, "--runs", str(runs), "--against", ",".join(peers)]
            results = benchmark(*arguments, MLX_CONVNEXTV2_OPS=engine)
            yield {f"{size} image {engine} ms": results["mlx_convnextv2"]["seconds"]["median"] * 1e3}
            yield {f"{size} image {engine} {peer}": ratios(results, peer) for peer in peers if peer in results}


def cold(load: str, runs: int) -> Iterator[Figures]:
    """A whole process of `classify`, and of a script with a peer."""
    for size in SIZES:
        results = benchmark("cold-start", "--size", size, "--runs", str(runs))
        yield {f"{size} cold ms": results["mlx_convnextv2"]["seconds"]["median"] * 1e3}
        for peer in ("transformers", "onnxruntime"):
            yield {
                f"{size} cold {peer}": ratios(results, peer),
                f"{size} cold memory {peer}": results[peer]["memory_ratio"],
            }


def folder(load: str, runs: int) -> Iterator[Figures]:
    """A folder of photos, in images a second."""
    # Beside a load PyTorch takes seconds for an image, and is fastest with few at once.
    images, batch_sizes = (60, throughput.BATCH_SIZES) if load == "quiet" else (12, (1,))
    for size in SIZES:
        rates = throughput.measure(size, images, min(runs, 3), batch_sizes)
        for engine, peers in (("numpy", ["transformers"]), ("onnxruntime", ["transformers", "bare onnxruntime"])):
            for peer in peers:
                pairs = zip(rates[f"ours in {engine}"], rates[peer], strict=True)
                yield {f"{size} folder {engine} {peer}": spread([ours / theirs for ours, theirs in pairs])}


def others(load: str, runs: int) -> Iterator[Figures]:
    """What is measured on a quiet machine alone."""
    if load == "loaded":
        return
    for size in SIZES:
        # Stock modules get the reference BLAS; ours compute in numpy, with numpy's BLAS.
        environment = {"MLX_CONVNEXTV2_BLAS": "none", "MLX_CONVNEXTV2_OPS": "numpy"}
        results = benchmark("compare", "--size", size, "--runs", "3", "--against", "plain", **environment)
        median, least, most = ratios(results, "plain")
        yield {f"{size} image stock": [1 / median, 1 / most, 1 / least]}
    times = training_step.times(["mlx_convnextv2", "pytorch"], "atto", min(runs, 3))
    pairs = zip(times["mlx_convnextv2"], times["pytorch"], strict=True)
    yield {"training step pytorch": spread([ours / theirs for ours, theirs in pairs])}
    yield {"help seconds": spread([help_seconds() for _ in range(runs)])}
    few, many = throughput.memory(100, 10_000)
    yield {"memory of 10,000 images": many - few}
    weights, _, steps = load_memory.measure("base", steps={**load_memory.STEPS, **load_memory.IN_ONNX_RUNTIME})
    yield {f"base memory {name}": taken / weights for name, taken in steps.items()}


def help_seconds() -> float:
    """The seconds of a whole process of `classify --help`."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "mlx_convnextv2.classify", "--help"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


STEPS = {"image": image, "cold": cold, "folder": folder, "others": others}


def measure(loads: Sequence[str], steps: Sequence[str], runs: int) -> None:
    """Measure, and write docs/speed.json after each step, so that an interruption loses little."""
    found = speed_tables.read()
    found |= {"machine": speed_tables.machine(), "runs": runs}
    for load in loads:
        figures = found.setdefault(load, {})
        with busy_processes(available_cpus()) if load == "loaded" else nullcontext():
            for step in steps:
                start = time.perf_counter()
                for more in STEPS[step](load, runs):
                    figures.update(more)
                    speed_tables.write(found)
                print(f"{load}, {step}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="alternating runs (default: 5)")
    parser.add_argument("--load", choices=LOADS, help="measure under this alone (default: both)")
    parser.add_argument("--only", choices=STEPS, help="measure this alone (default: all)")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if not args.render:
        measure([args.load] if args.load else LOADS, [args.only] if args.only else list(STEPS), args.runs)
    print(speed_tables.render())


if __name__ == "__main__":
    main()
