"""A heat map drawn over its picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ..images.decode import MAX_PIXELS, open_image
from . import colors
from .geometry import Box
from .legend import draw_legend

_BAND_PIXELS = 1_000_000  # coloured at a time, to save memory


def overlay(
    picture: Any, heat_map: Any, box: Box | None = None, *, legend: str | None = None, scale: float | None = None
) -> Image.Image:
    """The picture in grey, tinted orange where the map is positive and blue where it is negative.

    Args:
        picture: a path, a binary file object, a PIL image, or a uint8 array (H, W, C).
        heat_map: (h, w), the map that `explain` gives for one image.
        box: left, top, right, bottom of the part that the map covers, in the upright picture's pixels; None for the
            whole picture. The model does not see the rest, which is drawn dark.
        legend: written at the bottom, beside the colours.
        scale: the value of the strongest colour; None takes the map's largest magnitude.

    Returns:
        The upright picture in RGB, of its own size.

    Raises:
        FileNotFoundError, OSError, ValueError: the picture cannot be read (see `open_image`), or the map is invalid.
    """
    values = np.array(heat_map, np.float32)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"a heat map must be finite numbers of the shape (h, w), not of {values.shape}")
    strongest = float(np.abs(values).max()) if scale is None else float(scale)
    heat = Image.fromarray(values / (strongest or 1.0))
    limit = picture.width * picture.height if isinstance(picture, Image.Image) else MAX_PIXELS  # already decoded
    grey = open_image(picture, "L", limit)
    image = Image.new("RGB", grey.size)
    rows = max(1, _BAND_PIXELS // grey.width)
    for top in range(0, grey.height, rows):
        part = np.asarray(grey.crop((0, top, grey.width, min(top + rows, grey.height))))
        band = colors.unseen_table()[part]  # (rows, W) -> (rows, W, 3)
        _tint(band, part, heat, box or (0.0, 0.0, float(grey.width), float(grey.height)), top)
        image.paste(Image.fromarray(band), (0, top))
    if legend is not None:
        draw_legend(image, legend)
    return image


def _tint(band: np.ndarray, grey: np.ndarray, heat: Image.Image, box: Box, top: int) -> None:
    """Colour in place what the map covers of a band (rows, W, 3), which begins at row `top` of the picture."""
    left, first, right, last = (round(edge) for edge in box)
    first, last = max(first, top), min(last, top + len(band))
    left, right = max(left, 0), min(right, band.shape[1])
    if first >= last or left >= right:
        return

    def on_map(x: int, y: int) -> tuple[float, float]:
        """A point of the picture in the map's coordinates, where a position is 1 wide."""
        across, down = (x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1])
        return min(max(across, 0.0), 1.0) * heat.width, min(max(down, 0.0), 1.0) * heat.height

    part = (*on_map(left, first), *on_map(right, last))
    smooth = heat.resize((right - left, last - first), Image.Resampling.BICUBIC, box=part)
    rows = slice(first - top, last - top)
    band[rows, left:right] = colors.color(grey[rows, left:right], np.asarray(smooth))
