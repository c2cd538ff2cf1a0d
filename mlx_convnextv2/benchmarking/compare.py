"""One checkpoint on this device, by batch size and dtype, beside its peers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import cli
from ..config import as_pair
from .checkpoint import write_images, write_model
from .measure import agrees, alternate, contenders
from .peers import OURS, why_not


def compare(args: argparse.Namespace, report: dict[str, Any], temporary: Path, failed: Callable[[str], None]) -> None:
    """Print and report each contender for each dtype and batch size."""
    config = write_model(args.model, args.size, temporary / "weights")
    height, width = as_pair(args.image_size or config.image_size)
    images = temporary / "images.npy"
    write_images(images, max(args.batch_size), height, width, config.num_channels)
    report["image_size"] = [height, width]
    for dtype in args.dtype:
        names = [OURS, *(peer for peer in args.against if why_not(peer, dtype) is None)]
        with contenders(names, temporary / "weights", images, dtype, failed) as workers:
            for worker in workers:
                facts = {"contender": worker.name, "dtype": dtype, **worker.facts}
                report["contenders"].append(facts)
                packages = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
                cli.tell(f"{worker.name} in {dtype}: {facts['device']}; loaded in {facts['load_s']:.2f} s ({packages})")
            for batch in args.batch_size:
                for result in alternate(workers, batch, None, args.runs, failed):
                    result |= {"dtype": dtype, "agrees": agrees(result, dtype)}
                    report["results"].append(result)
                    cli.tell(row(result))
                    if not result["agrees"]:
                        failed(disagreement(result))


def row(result: dict[str, Any]) -> str:
    """A result as a line."""
    ms = {key: value * 1000 for key, value in result["seconds"].items()}
    memory = f"{result['peak_bytes'] / 1e6:6.0f} MB"
    if result["gpu_peak_bytes"]:
        memory += f" + {result['gpu_peak_bytes'] / 1e6:.0f} MB of the GPU"
    line = (
        f"  {result['contender']:<16} batch {result['batch']:<3}"
        f" {ms['median']:9.2f} ms ({ms['min']:.2f}..{ms['max']:.2f})  {result['images_per_s']:7.1f} images/s  {memory}"
    )
    if result["contender"] == OURS:
        return line
    ratio = result["ratio"]
    return (
        f"{line}  ours takes {ratio['median']:.2f} ({ratio['min']:.2f}..{ratio['max']:.2f}) times its time,"
        f" logits differ by {result['difference']:.1e}"
    )


def disagreement(result: dict[str, Any]) -> str:
    """What is wrong with a result that does not agree."""
    return (
        f"{result['contender']} answers differently: its logits differ from ours by {result['difference']:.1e} "
        f"of their largest, and top-1 is the same on {result['top1_agreement']:.0%}"
    )
