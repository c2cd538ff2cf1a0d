"""Did the numbers survive? A converted checkpoint against its source, run by the source's own library.

transformers runs what it can load and timm what timm wrote, where they are installed; plain PyTorch, with the
architecture written out below a second time, runs what else is in PyTorch's layout, and MLX what is in its own.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .config import ConvNextV2Config
from .hub import load
from .leftovers import WRAPPERS
from .messages import short, some
from .model import ConvNextV2ForImageClassification, ConvNextV2Model
from .sources import read_config, read_processor
from .tensor_files import dtype_name, is_floating, read_tensors
from .weights import HUGGING_FACE, TIMM, Checkpoint

# The largest difference that is allowed, as a part of the reference's largest magnitude: twenty roundings for the half
# types. Quantization changes the numbers on purpose, so it has none.
TOLERANCES = {"float32": 1e-5, "float16": 20 * 2.0**-11, "bfloat16": 20 * 2.0**-8}

Forward = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Verification:
    """Result against source: who ran the source, the largest difference of the outputs, and how the classes agree."""

    reference: str
    images: int
    difference: float  # of logits or pooled features, as a part of the reference's largest magnitude
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


def verify(source: Path, result: Path, images: int = 8) -> Verification:
    """Run a source checkpoint and its converted form on the same synthetic images.

    Args:
        source: a folder or a weights file.
        result: the folder that it was converted to, in MLX's layout or PyTorch's. MLX runs the latter, too, where
            PyTorch is not installed.
        images: how many images; they are drawn from a fixed seed, at the result's size.

    Raises:
        ValueError: the source is in PyTorch's layout, and PyTorch is not installed.
    """
    checkpoint = Checkpoint.open(result)
    config = read_config(checkpoint)
    side = read_processor(checkpoint, config).size["shortest_edge"]
    pixel_values = synthetic_images(images, side, config.num_channels)
    name, forward = reference(Checkpoint.open(source))
    expected = np.concatenate([forward(pixel_values[i : i + 1]) for i in range(images)])
    _, forward = reference(checkpoint) if _works("torch") else ("MLX", _mlx(result))
    ours = np.concatenate([forward(pixel_values[i : i + 1]) for i in range(images)])
    dtypes = {tensor.dtype for tensor in checkpoint.tensors.values()}
    floats = [dtype_name(dtype) for dtype in dtypes if is_floating(dtype)]
    quantized = len(floats) < len(dtypes)
    has_classes = "classifier.weight" in checkpoint.tensors
    with np.errstate(invalid="ignore"):  # infinite outputs have no difference
        difference = np.abs(ours - expected).max() / (np.abs(expected).max() or 1.0)
    return Verification(
        reference=name,
        images=images,
        difference=float(difference),
        tolerance=None if quantized else max(TOLERANCES[dtype] for dtype in floats),
        top1=_agreement(ours, expected, 1) if has_classes else None,
        top5=_agreement(ours, expected, 5) if has_classes else None,
    )


def check_verifiable(checkpoint: Checkpoint, model: object) -> None:
    """Raise a ValueError if `verify` could not compare a source with what this model will be saved as."""
    if not isinstance(model, ConvNextV2ForImageClassification | ConvNextV2Model):
        raise ValueError("a backbone has no single output to verify: verify the classifier that it comes from")
    reference(checkpoint)


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


def reference(checkpoint: Checkpoint) -> tuple[str, Forward]:
    """Who runs a checkpoint, and a function from pixel values (N, H, W, C) to its logits or pooled features (N, K)."""
    if checkpoint.is_mlx:
        return "MLX", _mlx(checkpoint.path)
    if not _works("torch"):
        raise ValueError('to verify, the source has to be run by PyTorch: pip install "mlx-convnextv2[torch]"')
    config = read_config(checkpoint)
    folder = checkpoint.path
    # transformers and timm find the weights by their own names alone, without what a wrapper puts before them
    own_names = all(WRAPPERS.sub("", tensor.key) == tensor.key for tensor in checkpoint.tensors.values())
    from_transformers = checkpoint.scheme is HUGGING_FACE and folder.is_dir() and own_names
    if from_transformers and _works("transformers", "ConvNextV2Model"):
        return "transformers", _transformers(folder)
    architecture = config.extra.get("architecture")
    if checkpoint.scheme is TIMM and architecture and _works("timm"):
        return "timm", _timm(checkpoint, config)
    return "plain PyTorch", _plain_pytorch(checkpoint, config)


def _works(module: str, name: str | None = None) -> bool:
    """Whether a library is installed and can be imported: transformers and timm fail beside a torchvision of another
    build."""
    try:
        imported = importlib.import_module(module)
        return name is None or getattr(imported, name) is not None
    except Exception:
        return False


def _mlx(path: Path) -> Forward:
    model, _ = load(path)

    def forward(pixel_values: np.ndarray) -> np.ndarray:
        outputs = model(mx.array(pixel_values))
        output = outputs.logits if isinstance(model, ConvNextV2ForImageClassification) else outputs.pooler_output
        return np.array(output.astype(mx.float32))

    return forward


def _transformers(folder: Path) -> Forward:
    import torch
    from transformers import ConvNextV2ForImageClassification as Classifier, ConvNextV2Model as Model
    from transformers.utils import logging

    has_classifier = any(name.startswith("convnextv2.") for name in Checkpoint.open(folder).tensors)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report at length what training left, which is known and listed already
    try:
        model: Any = (Classifier if has_classifier else Model).from_pretrained(folder).float().eval()
    finally:
        logging.set_verbosity(verbosity)

    def forward(pixel_values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs = model(torch.tensor(pixel_values.transpose(0, 3, 1, 2)))  # (N, H, W, C) -> (N, C, H, W)
        return (outputs.logits if has_classifier else outputs.pooler_output).numpy()

    return forward


def _timm(checkpoint: Checkpoint, config: ConvNextV2Config) -> Forward:
    import timm
    import torch

    model = timm.create_model(
        config.extra["architecture"], num_classes=config.num_labels, in_chans=config.num_channels, **_timm_args(config)
    )
    state = {WRAPPERS.sub("", tensor.key): torch.tensor(array) for tensor, array in _raw_tensors(checkpoint).values()}
    absent = model.load_state_dict(state, strict=False).missing_keys
    if any(not key.startswith("head.norm.") for key in absent):  # which pre-training leaves out
        raise ValueError(
            f"timm's {short(config.extra['architecture'])} does not fit the weights: {some(absent[:1])} is missing"
        )
    model.eval()

    def forward(pixel_values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor(pixel_values.transpose(0, 3, 1, 2))).numpy()  # (N, H, W, C) -> (N, C, H, W)

    return forward


def _timm_args(config: ConvNextV2Config) -> dict[str, Any]:
    model_args = config.extra.get("model_args") or {}
    return {name: value for name, value in model_args.items() if name not in ("num_classes", "in_chans", "global_pool")}


def _plain_pytorch(checkpoint: Checkpoint, config: ConvNextV2Config) -> Forward:
    """ConvNeXt V2 on NCHW tensors, straight from the source's file: nothing is shared with the model under test."""
    if config.hidden_act != "gelu":
        raise ValueError(f'only transformers runs {config.hidden_act}: pip install "mlx-convnextv2[parity]" to verify')
    import torch
    import torch.nn.functional as F

    weights = {
        name.removeprefix("convnextv2."): torch.tensor(array) for name, (_, array) in _raw_tensors(checkpoint).items()
    }

    def norm(x: torch.Tensor, name: str, eps: float = 1e-6) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def norm_channels(x: torch.Tensor, name: str) -> torch.Tensor:
        return norm(x.permute(0, 2, 3, 1), name).permute(0, 3, 1, 2)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"].flatten(1), weights[f"{name}.bias"])

    def convolve(x: torch.Tensor, name: str, **options: Any) -> torch.Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        h = convolve(x, f"{name}.dwconv", padding=3, groups=x.shape[1]).permute(0, 2, 3, 1)
        h = F.gelu(linear(norm(h, f"{name}.layernorm"), f"{name}.pwconv1"))
        norms = h.square().sum(dim=(1, 2), keepdim=True).sqrt()
        h = h + weights[f"{name}.grn.bias"] + weights[f"{name}.grn.weight"] * h * norms / (norms.mean(-1, True) + 1e-6)
        return x + linear(h, f"{name}.pwconv2").permute(0, 3, 1, 2)

    def forward(pixel_values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.tensor(pixel_values.transpose(0, 3, 1, 2))  # (N, H, W, C) -> (N, C, H, W)
            x = convolve(x, "embeddings.patch_embeddings", stride=config.patch_shape)
            x = norm_channels(x, "embeddings.layernorm")
            for i, depth in enumerate(config.depths):
                stage = f"encoder.stages.{i}"
                if i > 0:
                    x = norm_channels(x, f"{stage}.downsampling_layer.0")
                    x = convolve(x, f"{stage}.downsampling_layer.1", stride=2)
                for j in range(depth):
                    x = block(x, f"{stage}.layers.{j}")
            x = x.mean(dim=(2, 3))  # (N, C, H, W) -> (N, C)
            if "layernorm.weight" in weights:
                x = norm(x, "layernorm", config.layer_norm_eps)
            else:
                x = F.layer_norm(x, x.shape[-1:], eps=config.layer_norm_eps)
            return (linear(x, "classifier") if "classifier.weight" in weights else x).numpy()

    return forward


def _raw_tensors(checkpoint: Checkpoint) -> dict[str, tuple[Any, np.ndarray]]:
    """Each tensor by name, with its array as it stands in the file, in float32."""
    files = {tensor.file: read_tensors(tensor.file) for tensor in checkpoint.tensors.values()}
    return {
        name: (tensor, np.array(files[tensor.file][tensor.key].astype(mx.float32)))
        for name, tensor in checkpoint.tensors.items()
    }


def _agreement(ours: np.ndarray, expected: np.ndarray, k: int) -> float:
    """The share of the k best classes that two sets of logits (N, num_labels) have in common; none where one is NaN."""
    k = min(k, ours.shape[1])
    shares = []
    for pair in zip(ours, expected, strict=True):
        best = [set(np.argsort(-logits, kind="stable")[:k]) for logits in pair]
        shares.append(len(best[0] & best[1]) / k if np.isfinite(pair).all() else 0.0)
    return float(np.mean(shares))
