"""A model as a file that others run: MLX's graph, Core ML's program."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this room imports MLX
