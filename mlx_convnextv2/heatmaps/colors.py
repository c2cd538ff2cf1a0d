"""The colours of heat maps: lightness is the picture's, orange speaks for a label, blue against it.

The table is computed here rather than copied. It is linear in OKLab (Ottosson 2020, "A perceptual color space for image
processing"), so equal steps of a value look equal at any lightness. People who cannot tell red from green, or blue from
yellow, can still tell orange from blue.
"""

from __future__ import annotations

from functools import cache

import numpy as np

STEPS = 127  # values on each side of zero

# Lightness of black and of white, from 0 to 1. Between them sRGB can show both colours in full.
_LIGHTNESS = 0.45, 0.80
_CHROMA = 0.104
_ORANGE, _BLUE = 60.0, 250.0  # hues in degrees
UNSEEN_LIGHTNESS = 0.25, 0.45  # of black and white outside what the model sees

# OKLab to the cube roots of cone responses, and those cubed to linear sRGB: the inverses of Ottosson's two matrices.
_TO_CONES = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_LINEAR_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@cache
def table() -> np.ndarray:
    """(256, 255, 3) uint8: the colour of each grey of the picture and of each value from -1 to 1."""
    lightness = np.linspace(*_LIGHTNESS, 256)[:, None]
    values = np.linspace(-1, 1, 2 * STEPS + 1)[None]
    hue = np.radians(np.where(values < 0, _BLUE, _ORANGE))
    chroma = _CHROMA * np.abs(values)
    lab = np.stack(np.broadcast_arrays(lightness, chroma * np.cos(hue), chroma * np.sin(hue)), axis=-1)
    return _read_only(to_srgb(lab))


@cache
def unseen_table() -> np.ndarray:
    """(256, 3) uint8: the colour of each grey of the picture where the model does not look."""
    lightness = np.linspace(*UNSEEN_LIGHTNESS, 256)
    return _read_only(to_srgb(np.stack([lightness, 0 * lightness, 0 * lightness], axis=-1)))


def color(grey: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Grey uint8 and values from -1 to 1, both (...) -> their colours (..., 3) uint8."""
    return table()[grey, np.rint(np.clip(values, -1, 1) * STEPS).astype(np.int16) + STEPS]


def to_srgb(oklab: np.ndarray) -> np.ndarray:
    """OKLab (..., 3) -> sRGB (..., 3) uint8."""
    linear = ((oklab @ _TO_CONES.T) ** 3 @ _TO_LINEAR_RGB.T).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
