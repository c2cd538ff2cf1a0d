"""Run a source checkpoint by its own library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.load import load_unread
from ..checkpoints.schemes import HUGGING_FACE, TIMM
from ..files.leftovers import WRAPPERS
from ..files.weight_files import read_tensors
from ..messages import short, some
from ..model.config import ConvNextV2Config
from ..model.convnextv2 import ConvNextV2ForImageClassification

Forward = Callable[[np.ndarray], np.ndarray]


def who_runs(checkpoint: Checkpoint) -> str:
    """The library that runs a checkpoint: "MLX", "transformers", "timm" or "plain PyTorch". No model is built.

    Raises:
        ValueError: no installed library can run it. The message says what to install.
    """
    weights = checkpoint.weights
    if weights.is_mlx:
        return "MLX"
    if not works("torch"):
        raise ValueError('to verify, the source has to be run by PyTorch: pip install "mlx-convnextv2[torch]"')
    # transformers and timm know only their own names, without the prefix that a wrapper adds
    own_names = all(WRAPPERS.sub("", tensor.key) == tensor.key for tensor in weights.tensors.values())
    from_transformers = weights.scheme is HUGGING_FACE and checkpoint.path.is_dir() and own_names
    if from_transformers and works("transformers", "ConvNextV2Model"):
        return "transformers"
    if weights.scheme is TIMM and checkpoint.config.extra.get("architecture") and works("timm"):
        return "timm"
    if checkpoint.config.hidden_act != "gelu":
        raise ValueError(
            f'only transformers runs {checkpoint.config.hidden_act}: pip install "mlx-convnextv2[parity]" to verify'
        )
    return "plain PyTorch"


def forward_of(checkpoint: Checkpoint, name: str) -> Forward:
    """A function from pixel values (N, H, W, C) to logits or pooled features (N, K). `name` comes from `who_runs`."""
    runners = {"MLX": _mlx, "transformers": _transformers, "timm": _timm, "plain PyTorch": _plain_pytorch}
    return runners[name](checkpoint)


def works(module: str, name: str | None = None) -> bool:
    """Whether a library can be imported. transformers and timm fail beside a torchvision of another build."""
    try:
        imported = importlib.import_module(module)
        return name is None or getattr(imported, name) is not None
    except Exception:
        return False


def _mlx(checkpoint: Checkpoint) -> Forward:
    model = load_unread(checkpoint)

    def forward(pixel_values: np.ndarray) -> np.ndarray:
        outputs = model(mx.array(pixel_values))
        output = outputs.logits if isinstance(model, ConvNextV2ForImageClassification) else outputs.pooler_output
        return np.array(output.astype(mx.float32))

    return forward


def _transformers(checkpoint: Checkpoint) -> Forward:
    import torch
    from transformers import ConvNextV2ForImageClassification as Classifier, ConvNextV2Model as Model
    from transformers.utils import logging

    has_classifier = any(name.startswith("convnextv2.") for name in checkpoint.weights.tensors)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would list the leftovers of training at length, which we report ourselves
    try:
        model: Any = (Classifier if has_classifier else Model).from_pretrained(checkpoint.path).float().eval()
    finally:
        logging.set_verbosity(verbosity)

    def forward(pixel_values: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs = model(torch.tensor(pixel_values.transpose(0, 3, 1, 2)))  # (N, H, W, C) -> (N, C, H, W)
        return (outputs.logits if has_classifier else outputs.pooler_output).numpy()

    return forward


def _timm(checkpoint: Checkpoint) -> Forward:
    import timm
    import torch

    config = checkpoint.config

    model = timm.create_model(
        config.extra["architecture"], num_classes=config.num_labels, in_chans=config.num_channels, **_timm_args(config)
    )
    state = {WRAPPERS.sub("", tensor.key): torch.tensor(array) for tensor, array in _raw_tensors(checkpoint).values()}
    absent = model.load_state_dict(state, strict=False).missing_keys
    if any(not key.startswith("head.norm.") for key in absent):  # pre-training leaves out head.norm
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


def _plain_pytorch(checkpoint: Checkpoint) -> Forward:
    """ConvNeXt V2 on NCHW tensors, straight from the source's file. It shares no code with the model under test."""
    import torch
    import torch.nn.functional as F

    config = checkpoint.config

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
    """Each tensor by name, with its array in the file's layout, in float32."""
    files = {tensor.file: read_tensors(tensor.file) for tensor in checkpoint.weights.tensors.values()}
    return {
        name: (tensor, np.array(files[tensor.file][tensor.key].astype(mx.float32)))
        for name, tensor in checkpoint.weights.tensors.items()
    }
