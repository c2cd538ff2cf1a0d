"""The operations of RandAugment and TrivialAugment on RGB images, each one call of Pillow, and their ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageEnhance, ImageOps

Fill = tuple[int, int, int]
OPERATIONS = (
    *("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast"),
    *("brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
)


@dataclass(frozen=True)
class Range:
    """The strengths of an operation at magnitudes 0 and 1. A `signed` strength can be negative too."""

    none: float = 0.0
    most: float = 0.0
    signed: bool = False

    def strength(self, magnitude: float, sign: int = 1) -> float:
        value = self.none + (self.most - self.none) * magnitude
        return value * sign if self.signed else value


_ENHANCED = {name: Range(0, 0.9, True) for name in ("color", "contrast", "brightness", "sharpness")}

# "Increasing": every operation does more as its magnitude grows, as in the authors' rand-m9-mstd0.5-inc1.
RANDAUGMENT = {
    **_ENHANCED,
    **{"autocontrast": Range(), "equalize": Range(), "invert": Range()},
    "rotate": Range(0, 30, True),
    "posterize": Range(4, 0),
    "solarize": Range(256, 0),
    "solarize_add": Range(0, 110),
    **{name: Range(0, 0.3, True) for name in ("shear_x", "shear_y")},
    **{name: Range(0, 0.45, True) for name in ("translate_x", "translate_y")},
}

# The "wide" space of TrivialAugment's paper, which has no `invert` and no `solarize_add`.
TRIVIALAUGMENT = {
    **{name: Range(0, 0.99, True) for name in _ENHANCED},
    **{"autocontrast": Range(), "equalize": Range()},
    "rotate": Range(0, 135, True),
    "posterize": Range(8, 2),
    "solarize": Range(256, 0),
    **{name: Range(0, 0.99, True) for name in ("shear_x", "shear_y")},
    **{name: Range(0, 32 / 224, True) for name in ("translate_x", "translate_y")},
}


def apply(name: str, image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    """The image after an operation.

    Args:
        name: one of `OPERATIONS`.
        image: RGB.
        strength: degrees for `rotate`; bits kept by `posterize`; the level from which `solarize` inverts; the amount
            that `solarize_add` adds to levels below 128; a change for the enhancers, where 0 is none; the slope for a
            shear; a share of the side for a translation. The other operations ignore it.
        fill: the colour of empty areas.
    """
    if name in _ENHANCERS:
        return _ENHANCERS[name](image).enhance(1 + strength)
    if name == "rotate":
        return image.rotate(strength, Image.Resampling.BILINEAR, fillcolor=fill)
    if name in ("shear_x", "shear_y", "translate_x", "translate_y"):
        return _moved(name, image, strength, fill)
    if name == "posterize":
        bits = max(1, round(strength))
        return ImageOps.posterize(image, bits) if bits < 8 else image
    if name == "solarize":
        return ImageOps.solarize(image, round(strength))
    if name == "solarize_add":
        added = [min(255, level + round(strength)) if level < 128 else level for level in range(256)]
        return image.point(added * len(image.getbands()))
    return _PLAIN[name](image)


_ENHANCERS: dict[str, Callable[[Image.Image], Any]] = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}
_PLAIN: dict[str, Callable[[Image.Image], Image.Image]] = {
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "invert": ImageOps.invert,
}


def _moved(name: str, image: Image.Image, strength: float, fill: Fill) -> Image.Image:
    matrix = {
        "shear_x": (1, strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, strength, 1, 0),
        "translate_x": (1, 0, strength * image.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, strength * image.height),
    }[name]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)
