"""A library of pictures: their features on disk, and the search among them.

from mlx_convnextv2 import Library, embed_folder

embed_folder("photos", "library")
Library("library").search("cat.jpg")
"""

from ...runtime import mlx_blas

mlx_blas.load()  # before a module of this folder imports MLX
