"""The part of a picture that a heat map covers."""

from __future__ import annotations

from ..images.processor import ImageProcessor
from ..model.config import ConvNextV2Config

Box = tuple[float, float, float, float]  # left, top, right, bottom


def seen_box(processor: ImageProcessor, size: tuple[int, int]) -> Box:
    """The part of an upright picture of `size` (width, height) that the processor keeps, in the picture's pixels."""
    width, height = size
    if not processor.do_resize:
        return 0.0, 0.0, float(width), float(height)
    side = processor.size["shortest_edge"]
    resized_width, resized_height, left, top = processor.placement(width, height)
    across, down = width / resized_width, height / resized_height  # pixels of the picture for one resized pixel
    return left * across, top * down, (left + side) * across, (top + side) * down


def covered_box(config: ConvNextV2Config, map_shape: tuple[int, ...], input_shape: tuple[int, ...], seen: Box) -> Box:
    """The part of `seen` that a map (h, w) of pixel values (H, W) covers: all but incomplete patches at the edges."""
    left, top, right, bottom = seen
    (height, width), (patch_height, patch_width) = input_shape, config.patch_shape
    halvings = next(n for n in range(config.num_stages) if height // patch_height >> n == map_shape[0])
    covered_height = map_shape[0] * patch_height << halvings
    covered_width = map_shape[1] * patch_width << halvings
    return left, top, left + (right - left) * covered_width / width, top + (bottom - top) * covered_height / height
