"""The hot operations as GPU kernels of our own: one source for Metal and CUDA, in `kernels/`, launched here.

Inputs and outputs are float32, float16 or bfloat16; sums, statistics and factors are float32 whatever the inputs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import plain

LANES = 32  # per simdgroup (Metal) or warp (CUDA)
MOST_THREADS = 256  # per threadgroup: with all its registers it fits on every GPU
MOST_CHANNELS = 4096  # of the depthwise kernel, whose threads hold their channels in registers
MOST_ELEMENTS = 2**31 - 1  # per image in the depthwise kernel, whose offsets have 32 bits
_TILES = ((4, 4), (2, 4), (1, 4), (1, 2))  # rows and columns of the depthwise kernel's tiles, the largest first
_SMALLEST_TILE = (1, 1)  # chosen only by measurement
_MOST_SUMS = 16  # that a thread of the depthwise kernel holds in registers, except in the smallest tile
_ENOUGH_THREADGROUPS = 64  # to keep a GPU busy
ENOUGH_STRIPS = 128  # threadgroups of a pass over the activations, to keep a GPU busy
MANY_STRIPS = 512  # chosen only by measurement
_LEAST_PIXELS = 32  # per strip: four for each of its simdgroups

DEPTHWISE_HEADERS = ("lanes.h", "reduce.h", "depthwise_layer_norm.h")
GELU_HEADERS = ("lanes.h", "gelu.h", "strips.h", "gelu_grn.h")
GELU_SCALED_HEADERS = ("lanes.h", "gelu.h", "strips.h", "gelu_scaled.h")
GRN_HEADERS = ("lanes.h", "reduce.h", "grn_scale.h")
POSITIONS = {
    "metal": {
        "thread_index": "uint thread_index = thread_position_in_threadgroup.x",
        "threads": "uint threads = threads_per_threadgroup.x",
        "group": "uint3 group = threadgroup_position_in_grid",
        "groups": "uint3 groups = threadgroups_per_grid",
    },
    "cuda": {
        "thread_index": "uint thread_index = threadIdx.x",
        "threads": "uint threads = blockDim.x",
        "group": "uint3 group = blockIdx",
        "groups": "dim3 groups = gridDim",
    },
}


@dataclass(frozen=True)
class Kernel:
    """A kernel: its inputs, outputs and body. The body calls a function from the headers, which are in `kernels/`."""

    name: str
    headers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    body: str

    def __call__(
        self,
        *inputs: mx.array,
        template: dict[str, Any],
        groups: tuple[int, int, int],
        threads: int,
        outputs: Sequence[tuple[tuple[int, ...], mx.Dtype]],
    ) -> list[mx.array]:
        """Launch `groups` threadgroups of `threads` threads; `outputs` are the shapes and dtypes of the results.

        Raises:
            ValueError: MLX has no GPU here, and no graph is being traced.
        """
        launch = _build(self, "cuda" if mx.cuda.is_available() else "metal")
        try:
            return launch(
                inputs=list(inputs),
                template=list(template.items()),
                grid=(groups[0] * threads, groups[1], groups[2]),
                threadgroup=(threads, 1, 1),
                output_shapes=[shape for shape, _ in outputs],
                output_dtypes=[dtype for _, dtype in outputs],
            )
        except RuntimeError as error:
            if "back-end" not in str(error):
                raise
            raise ValueError(
                'the path "kernel" needs a GPU that MLX can use: take another, here or in MLX_CONVNEXTV2_OPS'
            ) from None


@cache
def source(dialect: str, headers: tuple[str, ...]) -> str:
    """The text before a kernel's body: files of `kernels/` for "metal" or "cuda".

    It has no comments or indentation, because an exported graph holds the text of every launch.
    """
    folder = Path(__file__).parent / "kernels"
    texts = ((folder / name).read_text("utf-8") for name in (f"dialect_{dialect}.h", *headers))
    lines = (re.sub(r"//.*", "", line).strip() for text in texts for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line)


def _positions(dialect: str, body: str) -> str:
    """Definitions of the `POSITIONS` that the body names: MLX passes only the attributes that it finds in the text."""
    return "".join(
        f"  const {value};\n" for name, value in POSITIONS[dialect].items() if re.search(rf"\b{name}\b", body)
    )


@cache
def _build(kernel: Kernel, dialect: str) -> Any:
    build = mx.fast.cuda_kernel if dialect == "cuda" else mx.fast.metal_kernel
    return build(
        name=f"convnextv2_{kernel.name}",
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        header=source(dialect, kernel.headers),
        source=_positions(dialect, kernel.body) + kernel.body,
    )


def _depthwise_kernel(normalise: bool, residual: bool) -> Kernel:
    """Without the LayerNorm or the residual sum, other arrays stand in for their arguments and are not read."""
    norm = ("norm_weight", "norm_bias", "epsilon") if normalise else ()
    norm_weight, norm_bias, epsilon = norm or ("bias", "bias", "bias")
    residual_bias = "residual_bias" if residual else "bias"
    return Kernel(
        name="depthwise" + "_layer_norm" * normalise + "_residual" * residual,
        headers=DEPTHWISE_HEADERS,
        inputs=("pixels", "taps", "bias", *norm, *(["residual_bias"] if residual else [])),
        outputs=("output", "residual") if residual else ("output",),
        body=f"""\
  SHARED(float, sums, ROWS * COLUMNS * MOST_SIMDGROUPS);
  SHARED(float, square_sums, ROWS * COLUMNS * MOST_SIMDGROUPS);
  depthwise_layer_norm<T, CHANNELS_PER_THREAD, ROWS, COLUMNS, {str(normalise).lower()}, {str(residual).lower()}>(
      pixels, pixels_shape[1], pixels_shape[2], pixels_shape[3], taps, bias, {norm_weight}, {norm_bias}, {epsilon},
      {residual_bias}, output, {"residual" if residual else "output"}, sums, square_sums, thread_index, threads,
      group.x, group.y);
""",
    )


_DEPTHWISE = {(n, r): _depthwise_kernel(n, r) for n, r in ((False, False), (True, False), (True, True))}


def _sums_kernel(name: str, outputs: tuple[str, ...]) -> Kernel:
    return Kernel(
        name=name,
        headers=GELU_HEADERS,
        inputs=("hidden",),
        outputs=outputs,
        body=f"""\
  SHARED(float, parts, MOST_SIMDGROUPS * LANES * VECTOR);
  gelu_sum_of_squares<T, VECTOR>(
      hidden, hidden_shape[1], hidden_shape[2], {outputs[0] if len(outputs) == 2 else 0}, sums, parts, thread_index,
      threads, group.x, group.y, groups.y, group.z);
""",
    )


_GELU_SUM_OF_SQUARES = _sums_kernel("gelu_sum_of_squares", ("output", "sums"))
_SUM_OF_SQUARES_OF_GELU = _sums_kernel("sum_of_squares_of_gelu", ("sums",))
_GRN_SCALE = Kernel(
    name="grn_scale",
    headers=GRN_HEADERS,
    inputs=("sums", "weight"),
    outputs=("scale",),
    body="""\
  SHARED(float, totals, MOST_SIMDGROUPS);
  grn_scale(sums, sums_shape[1], sums_shape[2], weight, scale, totals, thread_index, threads, group.x);
""",
)
_GELU_SCALED = Kernel(
    name="gelu_scaled",
    headers=GELU_SCALED_HEADERS,
    inputs=("hidden", "scale"),
    outputs=("output",),
    body="""\
  gelu_scaled<T, VECTOR>(
      hidden, hidden_shape[1], hidden_shape[2], scale, output, thread_index, threads, group.x, group.y, groups.y,
      group.z);
""",
)


def tap_major(weight: mx.array) -> mx.array:
    """A depthwise convolution's weight (C, 7, 7, 1) -> (7, 7, C): neighbouring lanes read neighbouring values."""
    return weight.squeeze(-1).transpose(1, 2, 0)


def depthwise_conv2d(x: mx.array, taps: mx.array, bias: mx.array) -> mx.array:
    """Depthwise 7x7, padding 3, plus bias: x (N, H, W, C), taps (7, 7, C), bias (C,) -> (N, H, W, C).

    For images of more than `MOST_ELEMENTS`, this function and the next two use plain MLX.
    """
    if prod(x.shape[1:]) > MOST_ELEMENTS:
        return mx.conv2d(x, channel_major(taps), padding=3, groups=x.shape[-1]) + bias
    return _depthwise(_DEPTHWISE[False, False], x, taps, bias)[0]


def depthwise_layer_norm(
    x: mx.array, taps: mx.array, bias: mx.array, norm_weight: mx.array, norm_bias: mx.array, eps: float
) -> mx.array:
    """`depthwise_conv2d`, then LayerNorm over the channels: (N, H, W, C) -> (N, H, W, C)."""
    if prod(x.shape[1:]) > MOST_ELEMENTS:
        return plain.depthwise_layer_norm(x, channel_major(taps), bias, norm_weight, norm_bias, eps)
    return _depthwise(_DEPTHWISE[True, False], x, taps, bias, norm_weight, norm_bias, mx.array([eps]))[0]


def depthwise_layer_norm_residual(
    x: mx.array,
    taps: mx.array,
    bias: mx.array,
    norm_weight: mx.array,
    norm_bias: mx.array,
    eps: float,
    residual_bias: mx.array,
    tile: tuple[int, int] | None = None,
) -> tuple[mx.array, mx.array]:
    """`depthwise_layer_norm`, and x + residual_bias (C,), to which the block's last product is added.

    `tile` is one of `tiles`; the default is the tile of `tile_of`.
    """
    if prod(x.shape[1:]) > MOST_ELEMENTS:
        output = plain.depthwise_layer_norm(x, channel_major(taps), bias, norm_weight, norm_bias, eps)
        return output, (x + residual_bias).astype(x.dtype)
    output, residual = _depthwise(
        _DEPTHWISE[True, True], x, taps, bias, norm_weight, norm_bias, mx.array([eps]), residual_bias, tile=tile
    )
    return output, residual


def tile_of(batch: int, height: int, width: int, channels: int) -> tuple[int, int, int, int]:
    """How the depthwise kernel divides x (N, H, W, C): channels per thread, threads, and rows and columns of a tile.

    Large tiles read fewer pixels twice; small tiles make more threadgroups. The choice is the largest of `_TILES` whose
    sums fit in registers and which leaves enough threadgroups, or else the smallest.
    """
    channels_per_thread, threads = _threads_of(channels)
    for rows, columns in _TILES:
        fits = channels_per_thread * rows * columns <= _MOST_SUMS
        if fits and batch * -(-width // columns) * -(-height // rows) >= _ENOUGH_THREADGROUPS:
            break
    return channels_per_thread, threads, rows, columns


def tiles(channels: int) -> list[tuple[int, int]]:
    """Rows and columns of every tile that may be launched for this number of channels."""
    channels_per_thread, _ = _threads_of(channels)
    fitting = [tile for tile in _TILES[:-1] if channels_per_thread * prod(tile) <= _MOST_SUMS]
    return [*fitting, _TILES[-1], _SMALLEST_TILE]


def _threads_of(channels: int) -> tuple[int, int]:
    """Channels per thread, and threads of a threadgroup."""
    channels_per_thread = -(-channels // MOST_THREADS)
    return channels_per_thread, _round_up(-(-channels // channels_per_thread), LANES)


def _depthwise(kernel: Kernel, x: mx.array, *others: mx.array, tile: tuple[int, int] | None = None) -> list[mx.array]:
    batch, height, width, channels = x.shape
    channels_per_thread, threads, rows, columns = tile_of(batch, height, width, channels)
    rows, columns = tile or (rows, columns)
    return kernel(
        x,
        *others,
        template={"T": x.dtype, "CHANNELS_PER_THREAD": channels_per_thread, "ROWS": rows, "COLUMNS": columns},
        groups=(-(-height // rows) * -(-width // columns), batch, 1),
        threads=threads,
        outputs=[(tuple(x.shape), x.dtype)] * len(kernel.outputs),
    )


def gelu_sum_of_squares(hidden: mx.array, enough: int = ENOUGH_STRIPS) -> tuple[mx.array, mx.array]:
    """hidden (N, P, D) -> GELU(hidden) and the sums of its squares over strips of pixels, (N, strips, D) in float32.

    There are enough strips for `enough` threadgroups, as far as the pixels allow.
    """
    output, sums = _strips(_GELU_SUM_OF_SQUARES, hidden, enough=enough)
    return output, sums


def sum_of_squares_of_gelu(hidden: mx.array, enough: int = ENOUGH_STRIPS) -> mx.array:
    """Only the sums of `gelu_sum_of_squares`. `gelu_scaled` computes GELU again, which costs less than keeping it."""
    return _strips(_SUM_OF_SQUARES_OF_GELU, hidden, enough=enough)[0]


def grn_scale(sums: mx.array, weight: mx.array) -> mx.array:
    """GRN as a factor for each channel: sums of squares (N, strips, D), GRN's weight (D,) -> (N, D) in float32."""
    batch, _, channels = sums.shape
    threads = min(MOST_THREADS, _round_up(channels, LANES))
    outputs = [((batch, channels), mx.float32)]
    return _GRN_SCALE(sums, weight, template={}, groups=(batch, 1, 1), threads=threads, outputs=outputs)[0]


def gelu_scaled(hidden: mx.array, scale: mx.array, enough: int = ENOUGH_STRIPS) -> mx.array:
    """GELU(hidden) times the channels' factors: (N, P, D) and (N, D) in float32 -> (N, P, D)."""
    return _strips(_GELU_SCALED, hidden, scale, enough=enough)[0]


def strips_of(batch: int, pixels: int, channels: int, enough: int = ENOUGH_STRIPS) -> int:
    """The number of strips that an image's pixels are divided into, for hidden (N, P, D)."""
    _, across = _vectors_of(channels)
    return min(-(-enough // (across * batch)), -(-pixels // _LEAST_PIXELS))


def _vectors_of(channels: int) -> tuple[int, int]:
    """Neighbouring channels of a thread, and threadgroups across the channels."""
    vector = 4 if channels % 4 == 0 else 1
    return vector, -(-channels // (vector * LANES))


def _strips(kernel: Kernel, hidden: mx.array, *others: mx.array, enough: int) -> list[mx.array]:
    """A pass over hidden (N, P, D). Its grid of threadgroups is groups of channels x strips of pixels x images.

    There are no more strips than it takes, because one threadgroup per image reads all their sums again.
    """
    batch, pixels, channels = hidden.shape
    vector, across = _vectors_of(channels)
    strips = strips_of(batch, pixels, channels, enough)
    shapes = {"output": (tuple(hidden.shape), hidden.dtype), "sums": ((batch, strips, channels), mx.float32)}
    return kernel(
        hidden,
        *others,
        template={"T": hidden.dtype, "VECTOR": vector},
        groups=(across, strips, batch),
        threads=MOST_THREADS,
        outputs=[shapes[name] for name in kernel.outputs],
    )


def channel_major(taps: mx.array) -> mx.array:
    """The inverse of `tap_major`: (7, 7, C) -> (C, 7, 7, 1)."""
    return taps.transpose(2, 0, 1)[..., None]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
