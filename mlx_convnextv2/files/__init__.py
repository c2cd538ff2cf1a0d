"""The files of a checkpoint, whatever they hold."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this folder imports MLX
