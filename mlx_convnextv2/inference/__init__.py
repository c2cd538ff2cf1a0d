"""A model in the fastest form that the device has, and images through it."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this room imports MLX
