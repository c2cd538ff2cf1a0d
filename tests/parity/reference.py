"""The same random model twice, in transformers and here, and the measure of how far apart two results are."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
import transformers
from make_goldens import is_convolution
from PIL import Image
from transformers.activations import ACT2FN

try:
    from transformers.models.convnext import image_processing_pil_convnext as their_module

    TheirProcessor: Any = their_module.ConvNextImageProcessorPil
except ImportError:  # transformers 4, where it is the only one
    from transformers.models.convnext.image_processing_convnext import ConvNextImageProcessor

    TheirProcessor = ConvNextImageProcessor

from mlx_convnextv2 import ConvNextV2Backbone, ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2Model

# the documentation of transformers' configuration offers selu, and its table of activations lacks it
ACT2FN["selu"] = torch.nn.SELU

IMAGENET: dict[str, Any] = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
THEIRS: dict[Any, Any] = {
    ConvNextV2ForImageClassification: transformers.ConvNextV2ForImageClassification,
    ConvNextV2Model: transformers.ConvNextV2Model,
    ConvNextV2Backbone: transformers.ConvNextV2Backbone,
}


def pair(model_class: type, config: ConvNextV2Config, seed: int = 0) -> tuple[Any, Any]:
    """(theirs, ours): a model of transformers with random weights, and ours with the same. Both in inference mode."""
    theirs = THEIRS[model_class](their_config(config)).eval().requires_grad_(False)
    randomize(theirs, seed)
    ours = model_class(config).eval()
    copy_weights(theirs, ours)
    return theirs, ours


def their_config(config: ConvNextV2Config) -> transformers.ConvNextV2Config:
    return transformers.ConvNextV2Config.from_dict(config.to_dict())


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter a random value, GRN and the norms too, of a size that keeps the activations' in bounds."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        if isinstance(module, torch.nn.LayerNorm):
            mean, std = 1.0, 0.2
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            mean, std = 0.0, module.weight[0].numel() ** -0.5  # one over the root of the number of inputs
        else:
            mean, std = 0.0, 0.5  # GRN
        own["weight"].normal_(mean, std, generator=generator)
        own["bias"].normal_(0, 0.2, generator=generator)


def copy_weights(theirs: torch.nn.Module, ours: nn.Module) -> None:
    """Give ours the parameters of theirs, every one of them and no other."""
    ours.load_weights([(name, to_mlx(name, parameter)) for name, parameter in theirs.named_parameters()])
    mx.eval(ours.parameters())


def to_mlx(name: str, parameter: torch.Tensor) -> mx.array:
    array = parameter.detach().numpy()
    return mx.array(array.transpose(0, 2, 3, 1) if is_convolution(name, array.ndim) else array)


def images(*shape: int, seed: int = 1) -> np.ndarray:
    """(N, H, W, C) as an image processor gives them: of mean 0 and standard deviation 1."""
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def nchw(pixel_values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixel_values.transpose(0, 3, 1, 2)))


def relative_error(ours: mx.array | np.ndarray, theirs: torch.Tensor) -> float:
    """The largest difference, as a share of the reference's largest magnitude. Theirs is (N, C, H, W) where 4-D."""
    expected = theirs.detach().numpy()
    expected = expected.transpose(0, 2, 3, 1) if expected.ndim == 4 else expected
    actual = np.array(ours)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()  # max() of several errors would pass over a NaN
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Slopes, and noise on top of them, so that every place of the picture differs from its neighbours."""
    y, x = np.mgrid[0:height, 0:width]
    slopes = np.stack([x * 255 // width, y * 255 // height, (x + y) * 127 // (width + height)], axis=-1)
    noise = np.random.RandomState(width * 1_009 + height).randint(0, 60, slopes.shape)
    return Image.fromarray(np.minimum(slopes + noise, 255).astype(np.uint8)).convert(mode)
