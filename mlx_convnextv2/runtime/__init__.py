"""Threads, forks, and the BLAS of numpy and of MLX."""
