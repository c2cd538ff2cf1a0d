"""The kernels on this device: are they right, and how fast is each operation?"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import cli


def self_check(
    args: argparse.Namespace, report: dict[str, Any], temporary: Path, failed: Callable[[str], None]
) -> None:
    """Every kernel against plain MLX for the shapes of the model, with a verdict for each.

    Raises:
        ValueError: MLX has no GPU here, and kernels run nowhere else.
    """
    os.environ.setdefault("MLX_ENABLE_TF32", "0")  # plain MLX in float32 is what they are compared with
    import mlx.core as mx

    from ..ops.self_check import check_kernels, check_report

    if mx.default_device().type != mx.gpu:
        raise ValueError("the kernels run on a GPU, and MLX has none here: this check is for a Mac or CUDA")
    model, side = _model(args)
    checks = list(check_kernels(model, side))
    cli.tell(
        f"Kernels on {mx.device_info()['device_name']}, for the shapes of {args.size or args.model} at {side} pixels:"
    )
    cli.tell(check_report(checks))
    report["results"] += [{**asdict(check), "passed": check.passed} for check in checks]
    for kernel in dict.fromkeys(check.kernel.strip() for check in checks if not check.passed):
        failed(f"{kernel} is wrong on this device: set MLX_CONVNEXTV2_OPS=plain, and please report it")


def time_operations(
    args: argparse.Namespace, report: dict[str, Any], temporary: Path, failed: Callable[[str], None]
) -> None:
    """Each operation of the block for each shape of the model: plain, compiled by MLX, and by our kernels on a GPU."""
    from ..ops.self_check import time_operations as timings_of, timing_report

    model, side = _model(args)
    for dtype in args.dtype:
        for batch in args.batch_size:
            timings = list(timings_of(model, side, batch, dtype, args.runs))
            cli.tell(f"Milliseconds in {dtype}, batch {batch}:\n{timing_report(timings)}")
            report["results"] += [{**asdict(timing), "dtype": dtype} for timing in timings]


def _model(args: argparse.Namespace) -> tuple[Any, int]:
    """The model whose shapes are meant, and the side of its images."""
    from ..config import ConvNextV2Config, as_pair
    from ..hub import load
    from ..model import ConvNextV2ForImageClassification

    if args.size:
        model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(args.size))
    else:
        model, _ = load(args.model, model_class=ConvNextV2ForImageClassification)
    return model, args.image_size or min(as_pair(model.config.image_size))
