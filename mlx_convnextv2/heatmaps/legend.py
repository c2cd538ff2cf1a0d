"""A heat map's legend: the label, its score, and the meaning of the colours."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..images.fonts import label_font
from ..messages import printable
from . import colors

_SMALLEST, _LARGEST = 10, 200  # of the text, in pixels
_PAPER, _INK = (24, 24, 24), (245, 245, 245)


def draw_legend(image: Image.Image, text: str) -> None:
    """Write at the bottom of an RGB image, in place: the text, cut to fit, and a colour scale if there is room."""
    size = min(max(min(image.size) // 22, _SMALLEST), _LARGEST)
    font = label_font(size)
    padding = size // 3
    height = min(size + 2 * padding, image.height)
    strip = Image.new("RGB", (image.width, height), _PAPER)
    draw = ImageDraw.Draw(strip)
    middle = height / 2
    scale = _scale(draw, font, size)
    text = printable(text)
    room = image.width - 2 * padding
    if scale is not None and draw.textlength(text, font) + scale.width + size <= room:
        strip.paste(scale, (image.width - padding - scale.width, (height - scale.height) // 2))
    draw.text((padding, middle), _fitted(draw, font, text, room), _INK, font, anchor="lm")
    image.paste(strip, (0, image.height - height))


def _scale(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, size: int) -> Image.Image | None:
    """The colour scale: the word `against`, the colours from -1 to 1, the word `for`."""
    words = ("against", "for")
    widths = [round(draw.textlength(word, font)) for word in words]
    gap, bar = size // 3, 4 * size
    scale = Image.new("RGB", (sum(widths) + bar + 2 * gap, size + 2), _PAPER)
    values = np.broadcast_to(np.linspace(-1, 1, bar), (max(size // 2, 1), bar))
    swatch = Image.fromarray(colors.color(np.full(values.shape, 160, np.uint8), values))
    scale.paste(swatch, (widths[0] + gap, (scale.height - swatch.height) // 2))
    pen = ImageDraw.Draw(scale)
    pen.text((0, scale.height / 2), words[0], _INK, font, anchor="lm")
    pen.text((scale.width, scale.height / 2), words[1], _INK, font, anchor="rm")
    return scale


def _fitted(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, text: str, room: int) -> str:
    """The text, cut to fit. The score at its end stays whole."""
    label, gap, score = text.rpartition("  ")
    while label and draw.textlength(f"{label}{gap}{score}", font) > room:
        label = label.rstrip("…")[:-1].rstrip()
        label = f"{label}…" if label else ""
    return f"{label}{gap}{score}" if label else score
