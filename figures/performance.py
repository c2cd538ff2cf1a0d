"""Print docs/speed.md's table, each target beside the measured figure; it takes about ten minutes.

    python figures/performance.py

It needs the extras parity and onnx. Every figure is a ratio of alternating runs: the median and the range.
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
from typing import Any

import load_memory
import throughput


def benchmark(*arguments: str, **environment: str) -> dict[str, Any]:
    """Run the benchmark command, and return its results by contender."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "report.json"
        command = [sys.executable, "-m", "mlx_convnextv2.benchmark", *arguments, "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return {result["contender"]: result for result in json.loads(file.read_text())["results"]}


def spread(values: dict[str, float] | list[float]) -> str:
    if isinstance(values, list):
        values = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


def help_seconds(runs: int) -> list[float]:
    """The seconds of each whole process of `classify --help`."""
    code = (
        "import subprocess, sys, time; start = time.perf_counter();"
        "subprocess.run([sys.executable, '-m', 'mlx_convnextv2.classify', '--help'], stdout=subprocess.DEVNULL);"
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", code]
    return [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(runs)]


def rows(runs: int) -> list[tuple[str, str, str]]:
    """The table's rows: what is measured, the target, and the figure."""
    found = []
    for size in ("tiny", "atto"):
        results = benchmark(
            "compare", "--size", size, "--runs", str(runs), "--against", "transformers,torch-compile,onnxruntime"
        )
        ms = results["mlx_convnextv2"]["seconds"]["median"] * 1e3
        for peer, target in (
            ("transformers", "at most 1.2, aim 1.0"),
            ("onnxruntime", "aim 1.0"),
            ("torch-compile", ""),
        ):
            what = f"{size}, one image on the CPU ({ms:.0f} ms), time to that of {peer}"
            found.append((what, target, spread(results[peer]["ratio"])))
        # "none" leaves the stock modules on the reference BLAS; ours compute in numpy, with numpy's BLAS.
        results = benchmark("compare", "--size", size, "--runs", "3", "--against", "plain", MLX_CONVNEXTV2_BLAS="none")
        ratio = results["plain"]["ratio"]
        times = {"median": 1 / ratio["median"], "min": 1 / ratio["max"], "max": 1 / ratio["min"]}
        what = f"{size}, one image, times faster than stock modules on the reference BLAS"
        found.append((what, "at least 6", spread(times)))

    results = benchmark("cold-start", "--size", "tiny", "--runs", str(runs))
    seconds = results["mlx_convnextv2"]["seconds"]["median"]
    for peer, time_target, memory_target in (("transformers", "0.10", "0.50"), ("onnxruntime", "1.00", "1.00")):
        result = results[peer]
        what = f"cold start of `classify` with tiny ({seconds:.2f} s), time to that of a script with {peer}"
        found.append((what, f"at most {time_target}", spread(result["ratio"])))
        found.append(("its peak memory to theirs", f"at most {memory_target}", f"{result['memory_ratio']:.2f}"))
    found.append(("`classify --help`, seconds", "at most 0.15", spread(help_seconds(runs))))

    for size in ("atto", "tiny"):
        _, ratios, best = throughput.measure(size, 100, 3)
        what = f"a folder of photos with {size}, images a second to transformers' pipeline at its best batch ({best})"
        found.append((what, "at least 1, aim 1.5", spread(ratios)))
    few, many = throughput.memory(100, 10_000)
    found.append(("memory that 10,000 images take above 100, MB", "at most 100", f"{many - few:.0f}"))
    weights, _, steps = load_memory.measure("base")
    for name, taken in steps.items():
        found.append((f"base: {name}, memory to the weights' size", "at most 1.15", f"{taken / weights:.2f}"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="alternating runs (default: 7)")
    args = parser.parse_args()
    print("| what | target | measured |\n|---|---|---|")
    for row in rows(args.runs):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
