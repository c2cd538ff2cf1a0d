"""Checkpoints by name: the Hub, what they say of themselves, loading and saving."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this room imports MLX
