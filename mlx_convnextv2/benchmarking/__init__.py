"""What `python -m mlx_convnextv2.benchmark` is made of."""
