"""A model as one file for an app."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this room imports MLX
