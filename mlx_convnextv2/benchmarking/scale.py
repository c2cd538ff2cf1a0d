"""How the time of a pass grows with batch, image side and model size."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import cli
from ..config import SIZES
from .checkpoint import write_images, write_model
from .compare import disagreement
from .measure import agrees, alternate, contenders
from .peers import OURS, why_not

SIDES = (96, 160, 224, 320, 448)  # multiples of the stride, 32, with about twice the pixels each
SIDE = 224


def scale(args: argparse.Namespace, report: dict[str, Any], temporary: Path, failed: Callable[[str], None]) -> None:
    """Print and report the time for several batches, sides, and the sizes from atto to the one asked for."""
    dtype = args.dtype[0]
    names = [OURS, *(peer for peer in args.against if why_not(peer, dtype) is None)]
    images = write_images(temporary / "images.npy", max(args.batch_size), max(SIDES), max(SIDES), 3)
    sizes = list(SIZES)[: list(SIZES).index(args.size) + 1]
    for size in sizes:
        write_model(None, size, temporary / size)
        # Each point (batch, side) is measured once, and stands for an amount on one axis or more.
        points: dict[tuple[int, int], dict[str, int]] = {(1, SIDE): {"size": parameters(temporary / size)}}
        if size == args.size:
            for batch in args.batch_size:
                points.setdefault((batch, SIDE), {})["batch"] = batch
            for side in SIDES:
                points.setdefault((1, side), {})["pixels"] = side * side
        with contenders(names, temporary / size, images, dtype, failed) as workers:
            for (batch, side), amounts in sorted(points.items()):
                for result in alternate(workers, batch, side, args.runs, failed):
                    result |= {"size": size, "agrees": agrees(result, dtype)}
                    report["results"] += [{**result, "axis": axis, "amount": amounts[axis]} for axis in amounts]
                    ms = result["seconds"]["median"] * 1000
                    where = f"{size:<5} batch {batch:<3} side {side:<4}"
                    cli.tell(f"  {result['contender']:<16} {where} {ms:9.2f} ms")
                    if not result["agrees"]:
                        failed(disagreement(result))
    report["growth"] = growth(report["results"])
    for line in report["growth"]:
        cli.tell(f"{line['contender']}: time grows as {line['axis']}^{line['exponent']:.2f}")


def growth(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each contender and axis the exponent e of time ~ amount^e, by least squares over the logarithms."""
    lines = []
    for contender, axis in dict.fromkeys((result["contender"], result["axis"]) for result in results):
        points = [r for r in results if (r["contender"], r["axis"]) == (contender, axis)]
        amounts = np.log([point["amount"] for point in points])
        if len(set(amounts)) > 1:
            seconds = np.log([point["seconds"]["median"] for point in points])
            exponent = float(np.polyfit(amounts, seconds, 1)[0])
            lines.append({"contender": contender, "axis": axis, "exponent": exponent})
    return lines


def parameters(folder: Path) -> int:
    """The number of parameters of a checkpoint folder."""
    from safetensors import safe_open

    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            count += sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118 - it is no dict
    return count
