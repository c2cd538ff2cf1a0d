"""Convert a checkpoint to MLX or back, and compare it with its source."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this folder imports MLX
