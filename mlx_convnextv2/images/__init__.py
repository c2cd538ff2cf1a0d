"""From an image file to pixel values, without MLX."""
