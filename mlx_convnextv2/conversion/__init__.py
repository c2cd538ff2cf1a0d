"""A checkpoint brought to MLX or back, and compared with its source."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this room imports MLX
