"""The gradients of the hot operations as GPU kernels, in the manner of `gpu`: one source, the same dtypes and sums.

No kernel uses atomics. The threadgroups' partial sums are added in a fixed order, so the same input gives the same
bits.
"""

from __future__ import annotations

from functools import partial
from math import prod

import mlx.core as mx

from . import gpu, plain
from .gpu import Kernel

KERNEL = 7  # rows and columns of the depthwise convolution's kernel
_MOST_SUMS = 8  # that a thread of the LayerNorm's gradient holds twice in registers, except in the smallest tile
_COLUMNS = 7  # pixels per step of the weight's gradient: 7 divides the sides of all stages at 224 pixels
_WEIGHT_THREADS = 64  # per threadgroup of the weight's gradient, at most
_WEIGHT_THREADGROUPS = 512  # to keep a GPU busy with threads that each hold few sums

NORM_GRADIENT_HEADERS = (*gpu.DEPTHWISE_HEADERS, "depthwise_norm_gradient.h")
WEIGHT_GRADIENT_HEADERS = (*gpu.DEPTHWISE_HEADERS, "depthwise_weight_gradient.h")
GELU_GRN_GRADIENT_HEADERS = (
    *("lanes.h", "reduce.h", "gelu.h", "strips.h"),
    *("gelu_gradient.h", "gelu_grn_gradient.h"),
)

_NORM_GRADIENT = Kernel(
    name="depthwise_norm_gradient",
    headers=NORM_GRADIENT_HEADERS,
    inputs=("pixels", "taps", "bias", "norm_weight", "epsilon", "cotangent"),
    outputs=("output", "vector_sums"),
    body="""\
  SHARED(float, sums, ROWS * COLUMNS * MOST_SIMDGROUPS);
  SHARED(float, square_sums, ROWS * COLUMNS * MOST_SIMDGROUPS);
  depthwise_norm_gradient<T, CHANNELS_PER_THREAD, ROWS, COLUMNS>(
      pixels, pixels_shape[1], pixels_shape[2], pixels_shape[3], taps, bias, norm_weight, epsilon, cotangent, output,
      vector_sums, sums, square_sums, thread_index, threads, group.x, groups.x, group.y);
""",
)
_WEIGHT_GRADIENT = Kernel(
    name="depthwise_weight_gradient",
    headers=WEIGHT_GRADIENT_HEADERS,
    inputs=("pixels", "cotangent"),
    outputs=("sums",),
    body="""\
  depthwise_weight_gradient<COLUMNS>(
      pixels, pixels_shape[0], pixels_shape[1], pixels_shape[2], pixels_shape[3], cotangent, sums,
      group.x * threads + thread_index, int(group.y), group.z, groups.z);
""",
)
_GELU_GRN_SUMS = Kernel(
    name="gelu_grn_sums",
    headers=GELU_GRN_GRADIENT_HEADERS,
    inputs=("hidden", "cotangent"),
    outputs=("products", "sums"),
    body="""\
  SHARED(float, parts, MOST_SIMDGROUPS * LANES * VECTOR);
  SHARED(float, other_parts, MOST_SIMDGROUPS * LANES * VECTOR);
  gelu_grn_sums<VECTOR>(
      hidden, hidden_shape[1], hidden_shape[2], cotangent, products, sums, parts, other_parts, thread_index, threads,
      group.x, group.y, groups.y, group.z);
""",
)
_GRN_GRADIENT = Kernel(
    name="grn_gradient",
    headers=GELU_GRN_GRADIENT_HEADERS,
    inputs=("squares", "products", "weight"),
    outputs=("scale", "through", "of_weight"),
    body="""\
  SHARED(float, totals, 2 * MOST_SIMDGROUPS);
  grn_gradient(
      squares, squares_shape[1], squares_shape[2], products, weight, scale, through, of_weight, totals, thread_index,
      threads, group.x);
""",
)
_GELU_GRN_GRADIENT = Kernel(
    name="gelu_grn_gradient",
    headers=GELU_GRN_GRADIENT_HEADERS,
    inputs=("hidden", "cotangent", "scale", "through"),
    outputs=("output",),
    body="""\
  gelu_grn_gradient<T, VECTOR>(
      hidden, hidden_shape[1], hidden_shape[2], cotangent, scale, through, output, thread_index, threads, group.x,
      group.y, groups.y, group.z);
""",
)


def depthwise_layer_norm_gradient(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    norm_weight: mx.array,
    norm_bias: mx.array,
    cotangent: mx.array,
    eps: float,
) -> tuple[mx.array, ...]:
    """The gradients of `plain.depthwise_layer_norm`'s five arguments, given the gradient of its result, (N, H, W, C).

    The convolution is computed again rather than kept. The gradient of x has x's dtype, the others are float32.
    """
    if prod(x.shape[1:]) > gpu.MOST_ELEMENTS:
        plain_form = partial(plain.depthwise_layer_norm, eps=eps)
        return tuple(mx.vjp(plain_form, [x, weight, bias, norm_weight, norm_bias], [cotangent])[1])
    taps = gpu.tap_major(weight)  # (C, 7, 7, 1) -> (7, 7, C)
    convolved, of_norm_weight, of_norm_bias = depthwise_norm_gradient(x, taps, bias, norm_weight, cotangent, eps)
    of_taps, of_bias = depthwise_weight_gradient(x, convolved)
    of_x = gpu.depthwise_conv2d(convolved, taps[::-1, ::-1], mx.zeros_like(bias))
    return of_x, of_taps.transpose(2, 0, 1)[..., None], of_bias, of_norm_weight, of_norm_bias


def depthwise_norm_gradient(
    x: mx.array, taps: mx.array, bias: mx.array, norm_weight: mx.array, cotangent: mx.array, eps: float
) -> tuple[mx.array, mx.array, mx.array]:
    """Backwards through the LayerNorm: the gradient of the convolution (N, H, W, C) and of the norm's weights (C,)."""
    batch, height, width, channels = x.shape
    channels_per_thread, threads, rows, columns = tile_of(batch, height, width, channels)
    tiles = -(-height // rows) * -(-width // columns)
    gradient, sums = _NORM_GRADIENT(
        *(x, taps, bias, norm_weight, mx.array([eps]), cotangent),
        template={"T": x.dtype, "CHANNELS_PER_THREAD": channels_per_thread, "ROWS": rows, "COLUMNS": columns},
        groups=(tiles, batch, 1),
        threads=threads,
        outputs=[(tuple(x.shape), x.dtype), ((batch, tiles, 2, channels), mx.float32)],
    )
    of_norm_weight, of_norm_bias = sums.sum(axis=(0, 1))  # (N, tiles, 2, C) -> (2, C)
    return gradient, of_norm_weight, of_norm_bias


def tile_of(batch: int, height: int, width: int, channels: int) -> tuple[int, int, int, int]:
    """As `gpu.tile_of`, for a tile whose sums each thread can hold twice."""
    channels_per_thread, threads, rows, columns = gpu.tile_of(batch, height, width, channels)
    while rows > 1 and channels_per_thread * rows * columns > _MOST_SUMS:
        rows //= 2
    return channels_per_thread, threads, rows, columns


def depthwise_weight_gradient(x: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    """x and the convolution's gradient, (N, H, W, C) each -> the gradients of taps (7, 7, C) and bias (C,)."""
    batch, height, _, channels = x.shape
    threads = min(_WEIGHT_THREADS, -(-channels // gpu.LANES) * gpu.LANES)
    across = -(-channels // threads)
    parts = min(-(-_WEIGHT_THREADGROUPS // (across * KERNEL)), batch * height)
    (sums,) = _WEIGHT_GRADIENT(
        *(x, cotangent),
        template={"COLUMNS": _COLUMNS},
        groups=(across, KERNEL, parts),
        threads=threads,
        outputs=[((parts, KERNEL * KERNEL + 1, channels), mx.float32)],
    )
    total = sums.sum(axis=0)  # (parts, 50, C) -> (50, C)
    return total[:-1].reshape(KERNEL, KERNEL, channels), total[-1]


def gelu_grn_gradient(
    x: mx.array, weight: mx.array, squares: mx.array, cotangent: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """The gradients of `plain.gelu_grn`'s arguments, given the gradient of its result, (N, H, W, D).

    `squares` (N, strips, D) come from `gpu.sum_of_squares_of_gelu`. The gradient of x has x's dtype, the others are
    float32.
    """
    hidden = x.reshape(x.shape[0], -1, x.shape[-1])  # (N, H, W, D) -> (N, H * W, D)
    gradient = cotangent.reshape(hidden.shape)
    batch, strips, channels = squares.shape
    vector = 4 if channels % 4 == 0 else 1  # neighbouring channels per thread
    groups = -(-channels // (vector * gpu.LANES)), strips, batch
    products, sums = _GELU_GRN_SUMS(
        *(hidden, gradient),
        template={"VECTOR": vector},
        groups=groups,
        threads=gpu.MOST_THREADS,
        outputs=[(tuple(squares.shape), mx.float32)] * 2,
    )
    scale, through, of_weight = _GRN_GRADIENT(
        *(squares, products, weight.reshape(-1)),
        template={},
        groups=(batch, 1, 1),
        threads=min(gpu.MOST_THREADS, -(-channels // gpu.LANES) * gpu.LANES),
        outputs=[((batch, channels), mx.float32)] * 3,
    )
    (of_hidden,) = _GELU_GRN_GRADIENT(
        *(hidden, gradient, scale, through),
        template={"T": hidden.dtype, "VECTOR": vector},
        groups=groups,
        threads=gpu.MOST_THREADS,
        outputs=[(tuple(hidden.shape), hidden.dtype)],
    )
    of_weight, of_bias = of_weight.sum(axis=0), sums.sum(axis=(0, 1))  # (D,)
    return of_hidden.reshape(x.shape), of_weight.reshape(weight.shape), of_bias.reshape(weight.shape)
