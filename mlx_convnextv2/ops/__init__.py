"""The operations that take the time. They know no model."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this folder imports MLX
