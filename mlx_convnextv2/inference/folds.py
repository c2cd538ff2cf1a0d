"""The algebra of inference: what of a block is known before any image, for every path that folds weights.

A block is x + pwconv2(GRN(GELU(pwconv1(LayerNorm(dwconv(x)))))). Of GRN, h * (1 + weight * norms) + bias, only the
norms depend on the image: it is a constant and a factor for each channel of h, as right on pwconv2's weight as on h. A
constant before a linear layer is one behind it, so that LayerNorm's and GRN's biases can join pwconv1's and pwconv2's.
"""

from __future__ import annotations

from typing import TypeVar

import mlx.core as mx
import numpy as np

Array = TypeVar("Array", mx.array, np.ndarray)


def bias_behind(weight: Array, bias: Array, constant: Array) -> Array:
    """The bias of a linear layer that saves adding a constant before it: weight (out, in), constant (in,) -> (out,).

    weight @ (x + constant) + bias = weight @ x + (weight @ constant + bias).
    """
    return weight @ constant + bias


def scale_weight(batch: int, pixels: int, channels: int) -> bool:
    """Whether GRN's factors cost a GPU fewer bytes on pwconv2's weight than on its input.

    The weight (C, 4C) is read once and written for each image; scaling the input (pixels, 4C) where GELU is computed
    reads it once more than GELU alone.
    """
    return (1 + batch) * channels < batch * pixels
