"""The hot operations in MLX's own operations. Every fast path must equal them; they run where there is none."""

from __future__ import annotations

import mlx.core as mx

FLOAT32_TINY = 1.1754944e-38  # the smallest normal float32


def depthwise_layer_norm(
    x: mx.array, weight: mx.array, bias: mx.array, norm_weight: mx.array, norm_bias: mx.array, eps: float
) -> mx.array:
    """Depthwise 7x7, padding 3, plus bias, then LayerNorm over the channels with statistics in float32.

    x (N, H, W, C), weight (C, 7, 7, 1), the others (C,) -> (N, H, W, C).
    """
    x = mx.conv2d(x, weight, padding=3, groups=x.shape[-1]) + bias
    return mx.fast.layer_norm(x, norm_weight, norm_bias, eps)


def linear(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    return mx.addmm(bias, x, weight.T)


def patch_conv2d(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """A convolution without padding whose stride is the size of its kernel.

    x (N, H, W, C), weight (O, h, w, C), bias (O,) -> (N, H // h, W // w, O).
    """
    _, height, width, _ = weight.shape
    return mx.conv2d(x, weight, stride=(height, width)) + bias


def gelu(x: mx.array) -> mx.array:
    """The exact GELU, x * Phi(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415). Any shape, kept; dtype kept."""
    return x * (1 + mx.erf(x * 0.5**0.5)) * 0.5


def global_response_norm(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """GRN (section 4 of the ConvNeXt V2 paper): each channel divided by the mean of all channels' norms.

    x (N, H, W, D), weight and bias (1, 1, 1, D) -> (N, H, W, D). The sum over H and W is float32 whatever the dtype:
    float16 would overflow.
    """
    sum_of_squares = mx.square(x.astype(mx.float32)).sum(axis=(1, 2), keepdims=True)  # (N, 1, 1, D)
    # The floor keeps the gradient of a channel that is zero everywhere at 0, where sqrt alone gives a NaN.
    global_features = mx.sqrt(mx.maximum(sum_of_squares, FLOAT32_TINY))
    norm_features = global_features / (global_features.mean(axis=-1, keepdims=True) + 1e-6)
    return weight * (x * norm_features.astype(x.dtype)) + bias + x


def gelu_grn(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """GELU, then GRN: x (N, H, W, D), weight and bias (1, 1, 1, D) -> (N, H, W, D)."""
    return global_response_norm(gelu(x), weight, bias)


# nn's forms of these are compiled, for which MLX on Linux needs a C++ compiler at run time.
def gelu_tanh(x: mx.array) -> mx.array:
    """The tanh approximation of GELU (section 2 of arXiv:1606.08415). Any shape, kept; dtype kept."""
    return 0.5 * x * (1 + mx.tanh((2 / mx.pi) ** 0.5 * (x + 0.044715 * x**3)))


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x), also called swish (section 2 of arXiv:1606.08415). Any shape, kept; dtype kept."""
    return x * mx.sigmoid(x)


def selu(x: mx.array) -> mx.array:
    """Klambauer et al. 2017, arXiv:1706.02515. Any shape, kept; dtype kept."""
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return scale * mx.where(x > 0, x, alpha * (mx.exp(mx.minimum(x, 0)) - 1))
