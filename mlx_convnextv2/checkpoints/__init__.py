"""Checkpoints: finding them by name, reading their configuration, loading and saving."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this folder imports MLX
