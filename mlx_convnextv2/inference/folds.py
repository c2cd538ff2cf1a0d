"""The algebra of folding a block's weights before any image is known.

A block is x + pwconv2(GRN(GELU(pwconv1(LayerNorm(dwconv(x)))))). In GRN, h * (1 + weight * norms) + bias, only the
norms depend on the image. GRN is therefore a factor and a constant for each channel of h. The factor can scale
pwconv2's weight instead of h. A constant added before a linear layer equals another constant added after it, so
LayerNorm's bias can be folded into pwconv1's, and GRN's into pwconv2's.
"""

from __future__ import annotations

from typing import TypeVar

import mlx.core as mx
import numpy as np

Array = TypeVar("Array", mx.array, np.ndarray)


def bias_behind(weight: Array, bias: Array, constant: Array) -> Array:
    """A linear layer's bias with a constant before the layer folded in: weight (out, in), constant (in,) -> (out,).

    weight @ (x + constant) + bias = weight @ x + (weight @ constant + bias).
    """
    return weight @ constant + bias


def scale_weight(batch: int, pixels: int, channels: int) -> bool:
    """Whether GRN's factors cost a GPU fewer bytes on pwconv2's weight than on its input.

    The weight (C, 4C) is read once and written for each image. Scaling the input (pixels, 4C) where GELU is computed
    reads the input once more than GELU alone.
    """
    return (1 + batch) * channels < batch * pixels
