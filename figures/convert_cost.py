"""What does converting the largest model cost in time and memory?

    python figures/convert_cost.py

This makes a huge checkpoint with random weights (660 M parameters, 2.6 GB in float32), converts it to float16 in a
process of its own, and alternates that with the bare work: copying the source file and writing a file of the result's
size.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, save

CHUNK = bytes(16 * 2**20)


def make_source(folder: Path, size: str) -> None:
    """A checkpoint of a published size with random weights, as transformers writes it.

    It is made in a process of its own, because on Linux the peak memory of a child is never below that of its parent.
    """
    process = multiprocessing.get_context("spawn").Process(target=_make_source, args=(folder, size))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit("the source could not be made")


def _make_source(folder: Path, size: str) -> None:
    model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
    save(model, folder, ConvNextImageProcessor(size=224), format="huggingface")


def timed(work: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """The seconds that a call takes, and what it returns."""
    start = time.monotonic()
    result = work(*arguments)
    return time.monotonic() - start, result


def write(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, len(CHUNK)):
            file.write(CHUNK[: min(len(CHUNK), size - start)])


def convert(source: Path, target: Path) -> int:
    """Convert in a process of its own, and return its peak memory in bytes."""
    command = [sys.executable, "-m", "mlx_convnextv2.convert", "--hf-path", source, "--mlx-path", target]
    process = subprocess.Popen([*map(str, command), "--dtype", "float16"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit("the conversion failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="huge", help="a published size (default: huge)")
    parser.add_argument("--runs", type=int, default=3, help="alternating runs (default: 3)")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as temporary:
        work = Path(temporary)
        make_source(work / "source", args.size)
        source = work / "source" / "model.safetensors"
        source_bytes = source.stat().st_size
        ratios, peaks = [], []
        for run in range(1, args.runs + 1):
            converting, peak = timed(convert, work / "source", work / "result")
            result_bytes = (work / "result" / "model.safetensors").stat().st_size
            shutil.rmtree(work / "result")
            copying, _ = timed(shutil.copyfile, source, work / "copy")
            (work / "copy").unlink()
            writing, _ = timed(write, work / "written", result_bytes)
            (work / "written").unlink()
            ratios.append(converting / (copying + writing))
            peaks.append(peak)
            print(f"run {run}: convert {converting:.1f} s, copy {copying:.1f} s, write {writing:.1f} s")
        ratio = statistics.median(ratios)
        print(f"time: {ratio:.2f} of copying and writing (from {min(ratios):.2f} to {max(ratios):.2f})")
        print(f"peak memory: {max(peaks) / 1e9:.2f} GB, {max(peaks) / source_bytes:.2f} of {source_bytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
