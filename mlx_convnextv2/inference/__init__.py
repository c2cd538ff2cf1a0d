"""Run a model in the fastest form for the device, and classify images with it."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this folder imports MLX
