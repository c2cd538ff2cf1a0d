"""A linear layer and its gradient on a CPU, in numpy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from .numpy_parts import PART, as_numpy, deal, new, slices, sum_of_rows


def linear(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    """x (..., in), weight (out, in), bias (out,) -> (..., out), in float32."""
    result, y = new((*x.shape[:-1], len(weight)))
    rows, w, b = as_numpy(x).reshape(-1, x.shape[-1]), as_numpy(weight), as_numpy(bias)
    y = y.reshape(len(rows), -1)

    def project(part: slice) -> None:
        np.matmul(rows[part], w.T, out=y[part])
        np.add(y[part], b, out=y[part])

    deal(project, _strips(len(rows), w))
    return result


def linear_gradient(x: mx.array, weight: mx.array, _: mx.array, cotangent: mx.array) -> tuple[mx.array, ...]:
    """The gradients of x, weight and bias, in float32, given the gradient of the result, (..., out)."""
    outs, ins = weight.shape
    (of_x, dx), (of_w, dw), (of_b, db) = (new(shape) for shape in (x.shape, (outs, ins), (outs,)))
    rows, w, dy = as_numpy(x).reshape(-1, ins), as_numpy(weight), as_numpy(cotangent).reshape(-1, outs)
    dx = dx.reshape(rows.shape)

    def input_part(part: slice) -> None:
        np.matmul(dy[part], w, out=dx[part])

    def weight_part(part: slice) -> None:
        """Parts run along the weight's longer side, so no partial sums remain to be added."""
        if outs >= ins:
            np.matmul(dy[:, part].T, rows, out=dw[part])
        else:
            dw[:, part] = dy.T @ rows[:, part]

    def bias_part(part: slice) -> None:
        db[part] = sum_of_rows(dy[:, part])

    deal(weight_part, slices(max(outs, ins)))
    deal(input_part, _strips(len(rows), w))
    deal(bias_part, slices(outs))
    return of_x, of_w, of_b


def _strips(rows: int, weight: np.ndarray) -> list[slice]:
    return slices(rows, -(-rows * max(weight.shape) // PART))
