"""Augmentation in Pillow and numpy: a random crop, a mirror image, operations on pixels, an erased rectangle."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from ..checkpoints.processor import ConvNextImageProcessor
from ..images.decode import open_image
from .operations import OPERATIONS, RANDAUGMENT, TRIVIALAUGMENT, apply
from .options import Options

Box = tuple[int, int, int, int]  # left, top, right, bottom
_RATIOS = (3 / 4, 4 / 3)  # width by height of a crop
_ERASED_AREA, _ERASED_RATIOS = (0.02, 1 / 3), (0.3, 1 / 0.3)  # Zhong et al. 2017, arXiv:1708.04896
_TRIES = 10
_RANDAUGMENT_COUNT, _RANDAUGMENT_CHANCE = 2, 0.5
_RANDAUGMENT_MAGNITUDE, _RANDAUGMENT_SPREAD = 0.9, 0.05  # the authors' m9 and mstd0.5, of 10


class Augmentation:
    """From a file and a random generator to the pixel values (H, W, C) float32 that the model trains on.

    It does not use MLX, so threads may share it. Equal generators give equal results.

    Args:
        processor: gives the size, the filter, and the scaling of pixel values.
        options: `augment`, `crop_scale`, `flip` and `erase`.
    """

    def __init__(self, processor: ConvNextImageProcessor, options: Options):
        self._side = processor.size["shortest_edge"]
        self._resample = Image.Resampling(processor.resample)
        self._options = options
        self._max_pixels = processor.max_pixels
        self._values = ConvNextImageProcessor.from_dict({**processor.to_dict(), "do_resize": False})
        grey = round(255 * float(np.mean(processor.image_mean))) if processor.do_normalize else 128
        self._fill = (min(max(grey, 0), 255),) * 3

    def __call__(self, file: Path, random: np.random.Generator) -> np.ndarray:
        """Raises the errors of `open_image` if the file cannot be read."""
        picture = self.picture(open_image(file, "RGB", self._max_pixels), random)
        pixels = self._values.preprocess(picture)
        if random.random() < self._options.erase:
            pixels = erase(pixels, random)
        return pixels

    def picture(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """The augmented image, size x size, before its pixels become values."""
        box = random_box(image.size, self._options.crop_scale, random)
        image = image.crop(box).resize((self._side, self._side), self._resample)
        if random.random() < self._options.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._options.augment == "randaugment":
            return self._rand_augment(image, random)
        if self._options.augment == "trivialaugment":
            return self._trivial_augment(image, random)
        return image

    def _rand_augment(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """Cubuk et al. 2019, arXiv:1909.13719, with the authors' m9-mstd0.5-inc1: two operations, each applied with
        probability 1/2."""
        for _ in range(_RANDAUGMENT_COUNT):
            name = OPERATIONS[random.integers(len(OPERATIONS))]
            magnitude = random.normal(_RANDAUGMENT_MAGNITUDE, _RANDAUGMENT_SPREAD)
            sign, chance = random.choice((-1, 1)), random.random()
            if chance < _RANDAUGMENT_CHANCE:
                strength = RANDAUGMENT[name].strength(min(max(magnitude, 0.0), 1.0), int(sign))
                image = apply(name, image, strength, self._fill)
        return image

    def _trivial_augment(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """Müller and Hutter 2021, arXiv:2103.10158: one operation of any strength, or none."""
        names = sorted(TRIVIALAUGMENT)
        place = random.integers(len(names) + 1)
        magnitude, sign = random.random(), int(random.choice((-1, 1)))
        if place == len(names):
            return image
        return apply(names[place], image, TRIVIALAUGMENT[names[place]].strength(magnitude, sign), self._fill)


def random_box(size: tuple[int, int], smallest: float, random: np.random.Generator) -> Box:
    """A crop of `smallest` to all of the area and 3:4 to 4:3 in shape (section 3 of arXiv:1409.4842).

    If ten tries do not fit into the image, it is the middle of the image, as close to these shapes as possible.
    """
    width, height = size
    for _ in range(_TRIES):
        area = width * height * random.uniform(smallest, 1)
        ratio = math.exp(random.uniform(math.log(_RATIOS[0]), math.log(_RATIOS[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(random.integers(width - wide + 1)), int(random.integers(height - high + 1))
            return left, top, left + wide, top + high
    wide = min(width, max(1, round(height * _RATIOS[1])))
    high = min(height, max(1, round(width / _RATIOS[0])))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def erase(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Pixel values (H, W, C) with normally distributed noise in a rectangle (arXiv:1708.04896)."""
    height, width, channels = pixels.shape
    for _ in range(_TRIES):
        area = height * width * random.uniform(*_ERASED_AREA)
        ratio = math.exp(random.uniform(math.log(_ERASED_RATIOS[0]), math.log(_ERASED_RATIOS[1])))
        high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < high < height and 0 < wide < width:
            top, left = random.integers(height - high + 1), random.integers(width - wide + 1)
            pixels = pixels.copy()
            pixels[top : top + high, left : left + wide] = random.standard_normal((high, wide, channels), np.float32)
            return pixels
    return pixels
