"""ConvNeXt V2, its configuration, outputs, loss and labels."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this folder imports MLX
