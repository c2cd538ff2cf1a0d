"""How long does a search take in a library of a million pictures, and finding near-duplicates among some of them?

    python figures/search.py

This makes a library of random unit vectors, and searches in it in turns with plain numpy: one product of the same
features as a float32 matrix in memory, and of blocks of float16 that numpy converts. All files are in the system's
cache. Where usearch is installed, its index of random vectors is built and asked too.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mlx_convnextv2 import Library
from mlx_convnextv2.collections import Shard
from mlx_convnextv2.collections.library.files import Made, ShardFiles
from mlx_convnextv2.collections.library.writer import Entry, Writer

BLOCK = 100_000


def random_rows(count: int, width: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_library(folder: Path, count: int, width: int) -> None:
    made = Made("random", None, None, "random", {}, width, "random")
    writer = Writer(ShardFiles(folder, Shard()), made)
    for first in range(0, count, BLOCK):
        for place, row in enumerate(random_rows(min(BLOCK, count - first), width, first), start=first):
            path = f"/photos/{place:09}.jpg".encode()
            writer.add(Entry(path, 1, 1, hashlib.sha256(path).digest(), 640, 480, None, 30.0, -1), row)
        writer.commit()
    writer.close()


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def by_product(features: np.ndarray, query: np.ndarray) -> np.ndarray:
    scores = features @ query
    best = np.argpartition(-scores, 20)[:20]
    return best[np.argsort(-scores[best])]


def by_blocks(features: np.ndarray, query: np.ndarray) -> np.ndarray:
    scores = np.concatenate(
        [features[first : first + 4096].astype(np.float32) @ query for first in range(0, len(features), 4096)]
    )
    best = np.argpartition(-scores, 20)[:20]
    return best[np.argsort(-scores[best])]


def print_rounding(width: int) -> None:
    """How far float16 moves a cosine."""
    rows, query = random_rows(10_000, width, 0), random_rows(1, width, 1)[0]
    moved = np.abs(rows.astype("<f2").astype(np.float64) @ query - rows.astype(np.float64) @ query)
    print(f"float16 moves a cosine by {np.median(moved):.1e}, at most {moved.max():.1e}, among 10,000")


def print_index(count: int, width: int, queries: int = 100) -> None:
    """What usearch's HNSW index costs and finds with its defaults."""
    try:
        from usearch.index import Index
    except ImportError:
        return
    rows, asked = random_rows(count, width, 0), random_rows(queries, width, 1)
    index = Index(ndim=width, metric="cos")
    start = time.process_time()
    index.add(np.arange(count), rows)
    rate = count / (time.process_time() - start)
    start = time.perf_counter()
    found = [{*index.search(query, 20).keys.tolist()} for query in asked]
    milliseconds = (time.perf_counter() - start) / queries * 1e3
    true = [{*by_product(rows, query).tolist()} for query in asked]
    recall = sum(len(a & b) for a, b in zip(found, true, strict=True)) / (20 * queries)
    print(f"usearch, {count:,} random vectors: {rate:.0f} indexed in a second of a core")
    print(f"  a search takes {milliseconds:.1f} ms and finds {recall:.0%} of the 20 nearest")


def spread(values: list[float], unit: str = "") -> str:
    return f"{statistics.median(values):.3f}{unit} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="pictures (default: a million)")
    parser.add_argument("--width", type=int, default=768, help="features of each (default: 768, tiny's)")
    parser.add_argument("--runs", type=int, default=7, help="alternating runs (default: 7)")
    parser.add_argument("--duplicates", type=int, default=100_000, help="pictures to group (default: 100000)")
    parser.add_argument("--index", type=int, default=8_000, help="vectors for usearch's index (default: 8000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        make_library(Path(temporary), args.count, args.width)
        library = Library(temporary)
        rounded = np.fromfile(Path(temporary) / "1-of-1.0.features", "<f2").reshape(args.count, args.width)
        query = random_rows(1, args.width, 1)[0]
        library.search_features(query)
        floats = rounded.astype(np.float32)
        ours, product, blocks = [], [], []
        for run in range(args.runs):
            query = random_rows(1, args.width, run)[0]
            ours.append(seconds(lambda q=query: library.search_features(q)))
            product.append(seconds(lambda q=query: by_product(floats, q)))
            blocks.append(seconds(lambda q=query: by_blocks(rounded, q)))
    print(f"{args.count:,} pictures of {args.width} features, the 20 nearest:")
    print(f"  Library.search_features: {spread(ours, ' s')}")
    for name, theirs in (("float32 in memory, one product", product), ("float16, converted by numpy", blocks)):
        ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
        print(f"  plain numpy, {name}: {spread(theirs, ' s')}; ours to it {spread(ratios)}")
    print_rounding(args.width)
    print_index(args.index, args.width)
    if args.duplicates:
        del floats, rounded
        with tempfile.TemporaryDirectory() as temporary:
            make_library(Path(temporary), args.duplicates, args.width)
            print(f"near-duplicates among {args.duplicates:,}: {seconds(Library(temporary).duplicates):.1f} s")


if __name__ == "__main__":
    main()
