"""Compare a converted checkpoint with its source, which the source's own library runs.

If they are installed, transformers runs the checkpoints that it can load, and timm runs those that timm wrote. Plain
PyTorch, with its own copy of the architecture, runs any other checkpoint in PyTorch's layout. MLX runs those in MLX's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..checkpoints.checkpoint import Checkpoint
from ..files.tensors import dtype_name, is_floating
from ..ops.tolerances import CONVERTED
from .references import Forward, forward_of, who_runs, works


@dataclass(frozen=True)
class Verification:
    """Result against source: who ran the source, the outputs' largest difference, and how far the classes agree."""

    reference: str
    images: int
    difference: float  # of logits or pooled features, relative to the reference's largest magnitude
    tolerance: float | None
    top1: float | None  # share of the images whose best class is the same
    top5: float | None  # share of the five best classes that are the same, over all images

    @property
    def passed(self) -> bool:
        return math.isfinite(self.difference) and (self.tolerance is None or self.difference <= self.tolerance)

    def __str__(self) -> str:
        lines = [f"Verified against {self.reference} on {self.images} images:"]
        allowed = "quantized, so none is set" if self.tolerance is None else f"{self.tolerance:.1e}"
        if math.isfinite(self.difference):
            lines.append(f"  largest difference {self.difference:.1e} of the largest magnitude (allowed: {allowed})")
        else:
            lines.append("  some outputs are infinite or not a number")
        if self.top1 is not None:
            lines.append(f"  top-1 agreement {self.top1:.0%}, top-5 agreement {self.top5:.0%}")
        return "\n".join(lines)


def verify(source: Checkpoint, result: Checkpoint, images: int = 8) -> Verification:
    """Run a source checkpoint and its converted form on the same synthetic images.

    Args:
        source: the checkpoint before conversion.
        result: the converted checkpoint, in MLX's or PyTorch's layout. Without PyTorch, MLX runs both layouts.
        images: how many images. They are drawn from a fixed seed, at the result's size.

    Raises:
        ValueError: no installed library can run the source.
    """
    side = result.processor.size["shortest_edge"]
    pixel_values = synthetic_images(images, side, result.config.num_channels)
    name = who_runs(source)
    expected = _run(forward_of(source, name), pixel_values)
    ours = _run(forward_of(result, who_runs(result) if works("torch") else "MLX"), pixel_values)
    tensors = result.weights.tensors
    dtypes = {tensor.dtype for tensor in tensors.values()}
    floats = [dtype_name(dtype) for dtype in dtypes if is_floating(dtype)]
    quantized = len(floats) < len(dtypes)
    has_classes = "classifier.weight" in tensors
    with np.errstate(invalid="ignore"):  # infinite outputs have no difference
        difference = np.abs(ours - expected).max() / (np.abs(expected).max() or 1.0)
    return Verification(
        reference=name,
        images=images,
        difference=float(difference),
        tolerance=None if quantized else max(CONVERTED[dtype] for dtype in floats),  # quantizing changes the numbers
        top1=_agreement(ours, expected, 1) if has_classes else None,
        top5=_agreement(ours, expected, 5) if has_classes else None,
    )


def _run(forward: Forward, pixel_values: np.ndarray) -> np.ndarray:
    """The outputs (N, K) for images (N, H, W, C), run one by one."""
    return np.concatenate([forward(image[None]) for image in pixel_values])


def synthetic_images(count: int, side: int, channels: int) -> np.ndarray:
    """Smooth random pictures with some noise, normalised: (count, side, side, channels) float32."""
    random = np.random.RandomState(0)
    coarse = random.standard_normal((count, 7, 7, channels))
    positions = np.linspace(0, 6, side)
    low = np.minimum(positions.astype(int), 5)
    weight = positions - low
    rows = coarse[:, low] * (1 - weight)[None, :, None, None] + coarse[:, low + 1] * weight[None, :, None, None]
    smooth = rows[:, :, low] * (1 - weight)[None, None, :, None] + rows[:, :, low + 1] * weight[None, None, :, None]
    return (smooth + 0.1 * random.standard_normal(smooth.shape)).astype(np.float32)


def _agreement(ours: np.ndarray, expected: np.ndarray, k: int) -> float:
    """The share of the k best classes common to two sets of logits (N, num_labels). NaN logits share none."""
    k = min(k, ours.shape[1])
    shares = []
    for pair in zip(ours, expected, strict=True):
        best = [set(np.argsort(-logits, kind="stable")[:k]) for logits in pair]
        shares.append(len(best[0] & best[1]) / k if np.isfinite(pair).all() else 0.0)
    return float(np.mean(shares))
