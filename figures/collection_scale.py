"""docs/collections.md's table: runs over many small photos in a folder of results.

python figures/collection_scale.py --images 100000

Time and peak memory by the number of photos; two processes beside one; what the folder costs beside one file, and what
it costs to start a run again. The photos are links to a thousand different ones.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

DIFFERENT = 1_000
IN_A_FOLDER = 1_000


def make_photos(folder: Path, number: int) -> Path:
    """Photos of 64 x 48 pixels, in folders of a thousand."""
    pixels = np.random.default_rng(0)
    for i in range(number):
        path = folder / f"{i // IN_A_FOLDER:05}" / f"IMG_{i:08}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i < DIFFERENT:
            small = pixels.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC).save(path, quality=85)
        else:
            os.link(folder / "00000" / f"IMG_{i % DIFFERENT:08}.jpg", path)
    return folder


def classify(*arguments: object, number: int = 1, one_core: bool = False) -> tuple[float, float]:
    """Run classify in one process, or in a shard for each of several: seconds, and the largest peak memory in MB."""
    begin = time.perf_counter()
    processes = []
    for i in range(number):
        command = [sys.executable, "-m", "mlx_convnextv2.classify", "--demo", "--top-k", "1", *map(str, arguments)]
        command += ["--shard", f"{i + 1}/{number}"] if number > 1 else []
        command = ["taskset", "-c", str(i), *command] if one_core else command
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    peak = 0.0
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"a run ended with status {os.waitstatus_to_exitcode(status)}")
        peak = max(peak, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
    return time.perf_counter() - begin, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3, help="alternations of a folder and one file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = make_photos(folder / "photos", args.images)
        whole = print_runs(folder, photos, args.images)
        again, peak = classify(photos, "--output", folder / "results-0")
        start, _ = classify(photos / "00000" / "IMG_00000000.jpg", "--output", folder / "one")
        print(f"\nStarted again when all is done: {again:.1f} s, of which {start:.1f} s for one photo, {peak:.0f} MB.")
        print(f"Listing the photos and finding out what is done takes {(again - start) / whole:.2%} of the run.")
        some = first(folder, photos, args.images // 10)
        ratios = []
        for i in range(args.rounds):
            file, _ = classify(some, "--output", folder / f"{i}.jsonl")
            parts, _ = classify(some, "--output", folder / f"round-{i}")
            ratios.append(parts / file)
        print(
            f"A folder of parts takes {median(ratios):.3f} of one file's time ({min(ratios):.3f} to {max(ratios):.3f})."
        )


def print_runs(folder: Path, photos: Path, number: int) -> float:
    """Print a table of runs, and return the seconds of the first."""
    print("| photos | processes | cores of each | seconds | photos a second | peak memory, MB |")
    print("|---:|---:|---:|---:|---:|---:|")
    classify(first(folder, photos, 100), "--output", folder / "warm-up")
    cores = os.cpu_count() or 1
    runs = [(number, 1, cores), (number // 2, 1, cores), (number // 10, 1, cores), (number, 2, cores)]
    runs += [(number // 2, 1, 1), (number // 2, 2, 1)] if shutil.which("taskset") else []
    whole = 0.0
    for i, (count, processes, each) in enumerate(runs):
        images = photos if count == number else first(folder, photos, count)
        options = {"number": processes, "one_core": each == 1 and cores > 1}
        seconds, peak = classify(images, "--output", folder / f"results-{i}", **options)
        whole = whole or seconds
        print(f"| {count:,} | {processes} | {each} | {seconds:.1f} | {count / seconds:.0f} | {peak:.0f} |", flush=True)
    return whole


def first(folder: Path, photos: Path, number: int) -> str:
    """A list of the first photos, as an argument."""
    listed = folder / f"list-{number}"
    listed.write_text("".join(f"{path}\n" for path in sorted(photos.rglob("*.jpg"))[:number]))
    return f"@{listed}"


if __name__ == "__main__":
    main()
