"""Export a model to a file that other programs run: MLX's graph, Core ML's program, an ONNX model."""

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this folder imports MLX
