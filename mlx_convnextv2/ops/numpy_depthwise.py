"""The depthwise convolution with its LayerNorm, and their gradient, on a CPU, in numpy."""

from __future__ import annotations

from math import ceil

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..runtime.threads import scratch
from .numpy_parts import Part, as_numpy, deal, new, parts_of, sum_of_rows

RADIUS = 3  # of the depthwise convolution
KERNEL = 2 * RADIUS + 1
LOOP = 512  # elements that make an inner loop worth starting


def repeat_kernel(kernel: np.ndarray) -> np.ndarray:
    """(7, 7, C) -> (7, 7, columns * C): the kernel for each of some neighbouring positions, so that loops are long."""
    return np.tile(kernel, ceil(LOOP / kernel.shape[2]))


def depthwise_conv2d(padded: np.ndarray, repeated: np.ndarray, out: np.ndarray) -> None:
    """The image in a border of zeros (H + 6, W + 6, C), `repeat_kernel` of the kernel -> (H, W, C)."""
    height, width, channels = out.shape
    # A loop runs over the channels of `columns` neighbouring positions.
    columns = min(width, repeated.shape[2] // channels)
    whole = width - width % columns
    row, column, element = padded.strides
    for first, last, step in ((0, whole, columns), (whole, width, width - whole)):
        if first == last:
            continue
        # The axes: rows and columns of the kernel, rows of the image, steps along a row, step * C elements.
        shape = (height, (last - first) // step, step * channels)
        windows = as_strided(padded[:, first:], (KERNEL, KERNEL, *shape), (row, column, row, step * column, element))
        part = as_strided(out[:, first:], shape, (out.strides[0], step * out.strides[1], element))
        np.einsum("yxhwc,yxc->hwc", windows, repeated[:, :, : step * channels], out=part)


def depthwise_layer_norm(
    x: mx.array, weight: mx.array, bias: mx.array, norm_weight: mx.array, norm_bias: mx.array, eps: float
) -> tuple[mx.array, mx.array, mx.array]:
    """x (N, H, W, C), weight (C, 7, 7, 1), the others (C,) -> the result (N, H, W, C), in float32.

    It also returns what the gradient needs: the normalised convolution (N, H, W, C) and its scales (N, H, W).
    """
    (result, y), (saved, normed), (saved_scales, scales) = (new(shape) for shape in (x.shape, x.shape, x.shape[:3]))
    image, taps, b, w, shift = (as_numpy(array) for array in (x, weight, bias, norm_weight, norm_bias))
    taps = np.ascontiguousarray(taps[..., 0].transpose(1, 2, 0))  # (C, 7, 7, 1) -> (7, 7, C)
    channels = len(w)
    average = np.full(channels, 1 / channels, np.float32)

    def compute(part: Part) -> None:
        _convolve(image, part, taps, out=normed[part])
        flat, out = normed[part].reshape(-1, channels), y[part].reshape(-1, channels)
        np.add(flat, b, out=flat)
        np.subtract(flat, (flat @ average)[:, None], out=flat)
        variance = np.einsum("pc,pc->p", flat, flat) / np.float32(channels)
        scale = 1 / np.sqrt(variance + np.float32(eps))
        scales[part] = scale.reshape(scales[part].shape)
        np.multiply(flat, scale[:, None], out=flat)
        np.multiply(flat, w, out=out)
        np.add(out, shift, out=out)

    deal(compute, parts_of(x.shape))
    return result, saved, saved_scales


def depthwise_layer_norm_gradient(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    norm_weight: mx.array,
    norm_bias: mx.array,
    saved: mx.array,
    saved_scales: mx.array,
    cotangent: mx.array,
) -> tuple[mx.array, ...]:
    """The gradients of the five arguments, in float32, given the gradient of the result, (N, H, W, C).

    The input's gradient is the convolution of the result's gradient with the flipped taps.
    """
    gradient, dx = new(x.shape)
    convolved = scratch("through norm", *x.shape)  # the gradient of the convolution's result
    image, taps, w, normed, scales, dy = map(as_numpy, (x, weight, norm_weight, saved, saved_scales, cotangent))
    flipped = np.ascontiguousarray(taps[:, ::-1, ::-1, 0].transpose(1, 2, 0))  # (C, 7, 7, 1) -> (7, 7, C)
    channels = len(w)
    mean_weight = w / np.float32(channels)
    parts = parts_of(x.shape)
    vectors = np.empty((len(parts), 3, channels), np.float32)  # of bias, norm_weight and norm_bias
    of_taps = np.empty((len(parts), KERNEL, KERNEL, channels), np.float32)

    def through_norm(i: int) -> None:
        n, d, out = (array[parts[i]].reshape(-1, channels) for array in (normed, dy, convolved))
        product = scratch("product", *n.shape)
        np.multiply(d, n, out=product)
        vectors[i, 1:] = sum_of_rows(product), sum_of_rows(d)
        np.multiply(n, (product @ mean_weight)[:, None], out=product)
        np.multiply(d, w, out=out)
        np.subtract(out, (d @ mean_weight)[:, None], out=out)
        np.subtract(out, product, out=out)
        np.multiply(out, scales[parts[i]].reshape(-1, 1), out=out)
        vectors[i, 0] = sum_of_rows(out)

    def through_convolution(i: int) -> None:
        _convolve(convolved, parts[i], flipped, out=dx[parts[i]])
        of_taps[i] = _correlate(_padded(image, parts[i]), convolved[parts[i]])

    deal(through_norm, range(len(parts)))
    deal(through_convolution, range(len(parts)))
    of_weight = np.ascontiguousarray(of_taps.sum(axis=0).transpose(2, 0, 1)[..., None])  # (7, 7, C) -> (C, 7, 7, 1)
    return gradient, mx.array(of_weight), *(mx.array(vector) for vector in vectors.sum(axis=0))


def _convolve(x: np.ndarray, part: Part, taps: np.ndarray, out: np.ndarray) -> None:
    """One part of x (N, H, W, C), taps (7, 7, C) -> (n, rows, W, C)."""
    repeated = repeat_kernel(taps)
    for source, target in zip(_padded(x, part), out, strict=True):
        depthwise_conv2d(source, repeated, out=target)


def _correlate(padded: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The padded input (n, rows + 6, W + 6, C) and the gradient (n, rows, W, C) -> the taps' gradient (7, 7, C)."""
    image, row, column, element = padded.strides
    shape = KERNEL, KERNEL, *gradient.shape
    windows = as_strided(padded, shape, (row, column, image, row, column, element))
    return np.einsum("yxnhwc,nhwc->yxc", windows, gradient)


def _padded(x: np.ndarray, part: Part) -> np.ndarray:
    """A part with a border of three pixels, zeros outside the image: (n, rows + 6, W + 6, C)."""
    images, rows = part
    height, width, channels = x.shape[1:]
    first, last = max(rows.start - RADIUS, 0), min(rows.stop + RADIUS, height)
    above = first - (rows.start - RADIUS)
    shape = len(x[images]), rows.stop - rows.start + 2 * RADIUS, width + 2 * RADIUS, channels
    padded = scratch("padded", *shape)
    padded[:, :above] = padded[:, above + last - first :] = 0
    padded[:, :, :RADIUS] = padded[:, :, -RADIUS:] = 0
    padded[:, above : above + last - first, RADIUS:-RADIUS] = x[images, first:last]
    return padded
