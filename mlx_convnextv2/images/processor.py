"""From images to the model's pixel values, as transformers' `ConvNextImageProcessor` computes them with Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..messages import short, some
from .decode import MAX_PIXELS, name_of, open_image

if TYPE_CHECKING:
    import mlx.core as mx
    from typing_extensions import Self


# From this size on, images are squeezed to a square instead of being resized and cropped.
_WARP_SIZE = 384

# A strip of one pixel by a few thousand would grow to gigabytes when its short side is resized.
_MAX_RESIZED_PIXELS = 100_000_000
_MAX_VALUES = 30_000_000  # per image, 120 MB: with more, every model would need gigabytes
_MAX_BATCH_VALUES = 1_000_000_000

_PROCESSOR_TYPES = (
    "ConvNextImageProcessor",
    "ConvNextImageProcessorFast",
    "ConvNextImageProcessorPil",
    "ConvNextFeatureExtractor",
)
_FIELDS = (
    *("do_resize", "size", "crop_pct", "crop_mode", "resample", "do_rescale", "rescale_factor", "do_normalize"),
    *("image_mean", "image_std"),
)
_SWITCHES = ("do_resize", "do_rescale", "do_normalize")

# Keys of a preprocessor_config.json that do not change a pixel.
_INERT_FIELDS = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "auto_map"),
    *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping", "default_to_square"),
    *("do_convert_rgb", "crop_size", "pad_size"),  # images are always RGB here; the sizes matter only with do_...
}


class ImageProcessor:
    """Resize, crop, rescale and normalise: image files, PIL images or arrays -> pixel_values (N, H, W, C) float32.

    Args:
        do_resize: resize and crop to `size`.
        size: {"shortest_edge": s} or s. Below 384 the short side becomes int(s / crop_pct) and the middle s x s is
            kept; from 384 on the image is squeezed to s x s.
        crop_pct: see `size`.
        crop_mode: None for the rule above, which depends on the size. At any size, timm's "center" brings the short
            side to int(s / crop_pct), and "squash" both sides; the middle s x s is kept.
        resample: Pillow's filter, a number or member of `PIL.Image.Resampling`.
        do_rescale, rescale_factor: multiply by the factor.
        do_normalize, image_mean, image_std: subtract the mean and divide by the deviation of each channel. Their
            length, 3 or 1, says whether images are converted to RGB or to grey.
        max_pixels: larger images are refused, as `open_image` says. It is not read from a file, which must not raise
            the limit.

    Raises:
        ValueError: a value makes no sense; the message names the field and what is allowed.
    """

    def __init__(
        self,
        do_resize: bool = True,
        size: int | Mapping[str, int] | None = None,
        crop_pct: float | None = None,
        crop_mode: str | None = None,
        resample: int = Image.Resampling.BICUBIC,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: float | Sequence[float] = (0.5, 0.5, 0.5),
        image_std: float | Sequence[float] = (0.5, 0.5, 0.5),
        *,
        max_pixels: int = MAX_PIXELS,
    ):
        self.max_pixels = max_pixels
        self.do_resize = _require_bool("do_resize", do_resize)
        self.size = {"shortest_edge": _shortest_edge(size)}
        self.crop_pct = 224 / 256 if crop_pct is None else _require_positive("crop_pct", crop_pct)
        if not 0.01 <= self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be from 0.01 to 1, the whole of the resized image, not {short(crop_pct)}")
        if crop_mode not in (None, "center", "squash"):
            raise ValueError(f'crop_mode must be "center", "squash" or absent, not {short(crop_mode)}')
        self.crop_mode = crop_mode
        if isinstance(resample, bool) or resample not in list(Image.Resampling):
            raise ValueError(
                f"resample must be one of Pillow's filters, 0 to {max(Image.Resampling)}, not {short(resample)}"
            )
        self.resample = int(resample)
        self.do_rescale = _require_bool("do_rescale", do_rescale)
        self.rescale_factor = _require_positive("rescale_factor", rescale_factor)
        self.do_normalize = _require_bool("do_normalize", do_normalize)
        self.image_mean = _channel_values("image_mean", image_mean)
        self.image_std = _channel_values("image_std", image_std)
        if len(self.image_mean) != len(self.image_std):
            raise ValueError(f"image_mean has {len(self.image_mean)} values and image_std {len(self.image_std)}")
        if not np.array(self.image_std, np.float32).all():
            raise ValueError(f"image_std must not contain 0, which pixels are divided by, as {self.image_std} does")
        self._check_extremes()

    def _check_extremes(self) -> None:
        """Raise a ValueError if the processor would make too many values for memory, or infinite ones."""
        side, channels = self.size["shortest_edge"], len(self.image_mean)
        if side * side * channels > _MAX_VALUES:
            raise ValueError(f"size {side} makes more than the {_MAX_VALUES:,} values that an image may have: lower it")
        if self.short_side() ** 2 > _MAX_RESIZED_PIXELS:
            raise ValueError(f"crop_pct {self.crop_pct:g} makes images too large to cut {side} pixels from: raise it")
        with np.errstate(over="ignore"):
            extremes = self._values(np.array([[[0] * channels, [255] * channels]], np.uint8))
        if not np.isfinite(extremes).all():
            raise ValueError(
                "rescale_factor, image_mean and image_std must give pixel values that a float32 can hold, which "
                f"{self.rescale_factor:g}, {self.image_mean} and {self.image_std} do not"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Read a parsed preprocessor_config.json. An unknown field that could change pixels is a ValueError.

        `overrides` are arguments of the class, and win over the file's.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"a processor configuration must be a JSON object, not {type(values).__name__}")
        for name in ("image_processor_type", "feature_extractor_type"):
            if values.get(name) not in (None, *_PROCESSOR_TYPES):
                raise ValueError(f"{name} is {short(values[name])}: only {_PROCESSOR_TYPES[0]} is read")
        max_pixels = overrides.pop("max_pixels", MAX_PIXELS)
        values = {**values, **overrides}
        # transformers reads null as false in these fields, and as the default elsewhere
        values = {**values, **{name: False for name in _SWITCHES if name in values and values[name] is None}}
        given = {name: value for name, value in values.items() if value is not None and name not in _INERT_FIELDS}
        for name in ("do_center_crop", "do_pad"):
            if given.pop(name, False) is not False:
                raise ValueError(f"{name} is not part of ConvNeXt's preprocessing: set it to false")
        unknown = sorted(set(given) - set(_FIELDS))
        if unknown:
            raise ValueError(
                f"unknown preprocessing field {some([short(name) for name in unknown])}: it could change the pixels; "
                f"remove it from preprocessor_config.json if it does not"
            )
        return cls(**given, max_pixels=max_pixels)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a preprocessor_config.json has them."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        values = {"image_processor_type": "ConvNextImageProcessor", **fields}
        if self.crop_mode is None:  # transformers does not know the field
            del values["crop_mode"]
        return values

    def __call__(self, images: Any) -> mx.array:
        """One image or a list of them -> pixel_values (N, H, W, C) float32, with N = 1 for one image.

        An image is a path, a file object, a PIL image, or a uint8 array (H, W, C).

        Raises:
            FileNotFoundError, OSError, ValueError: an image cannot be read (see `open_image`).
            ValueError: the images have more than a billion values in total, or different sizes with do_resize off.
        """
        import mlx.core as mx

        images = images if isinstance(images, list | tuple) else [images]
        if not images:
            raise ValueError("there must be at least one image")
        arrays: list[np.ndarray] = []
        for image in images:
            arrays.append(self.preprocess(image))
            if arrays[-1].size * len(images) > _MAX_BATCH_VALUES:
                raise ValueError(f"{len(images)} images of {arrays[-1].size:,} values are too many: pass fewer at once")
        if len({array.shape for array in arrays}) > 1:
            raise ValueError(
                "images of different sizes cannot form one batch: turn do_resize on or pass them one by one"
            )
        return mx.array(np.stack(arrays))

    def preprocess(self, image: Any) -> np.ndarray:
        """One image -> its pixel values (H, W, C) float32. It needs no MLX, so any thread may call it."""
        mode, channels = ("L", 1) if len(self.image_mean) == 1 else ("RGB", 3)
        picture = open_image(image, mode, self.max_pixels)
        name = name_of(image)
        try:
            if self.do_resize:
                picture = self.resize(picture)
            width, height = picture.size
            if width * height * channels > _MAX_VALUES:
                raise ValueError(
                    f"{width} x {height} pixels make more than the {_MAX_VALUES:,} values that an image may have: "
                    "scale it down, or turn do_resize on"
                )
            return self._values(np.asarray(picture).reshape(height, width, channels))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        except MemoryError:
            raise ValueError(f"{name} needs more memory than there is: scale it down") from None

    def _values(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (H, W, C) uint8 -> rescaled and normalised, float32."""
        if self.do_rescale:
            pixels = (pixels * np.float64(self.rescale_factor)).astype(np.float32)
        if self.do_normalize:
            pixels = pixels.astype(np.float32) - np.array(self.image_mean, np.float32)
            pixels /= np.array(self.image_std, np.float32)
        return pixels.astype(np.float32)

    def short_side(self) -> int:
        """The length of an image's short side before the middle is cut out."""
        return int(self.size["shortest_edge"] / self.crop_pct)

    @property
    def filter_name(self) -> str:
        """Pillow's name of the filter, such as "bicubic"."""
        return Image.Resampling(self.resample).name.lower()

    def resizes_to_square(self) -> int | None:
        """The side of the square that all images are squeezed to, or None if they keep their shape."""
        if self.crop_mode == "squash":
            return self.short_side()
        side = self.size["shortest_edge"]
        return side if self.crop_mode is None and side >= _WARP_SIZE else None

    def placement(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The width and height that an image is resized to, and the left and top of the square that is kept then."""
        side = self.size["shortest_edge"]
        if self.resizes_to_square() == side:
            return side, side, 0, 0
        narrow = self.short_side()
        wide = narrow if self.crop_mode == "squash" else int(narrow * max(width, height) / min(width, height))
        width, height = (narrow, wide) if width <= height else (wide, narrow)
        if self.crop_mode is None:
            return width, height, (width - side) // 2, (height - side) // 2
        return width, height, round((width - side) / 2), round((height - side) / 2)  # rounds halves to even

    def resize(self, image: Image.Image) -> Image.Image:
        """The image at `size` x `size` pixels: resized and cropped, or squeezed, as the class says."""
        side = self.size["shortest_edge"]
        width, height, left, top = self.placement(*image.size)
        resized = _resized(image, width, height, Image.Resampling(self.resample))
        return resized.crop((left, top, left + side, top + side))


def _resized(image: Image.Image, width: int, height: int, resample: Image.Resampling) -> Image.Image:
    """The image at width x height. Pillow changes the width first, so that intermediate must not be huge either."""
    if width * max(height, image.height) > _MAX_RESIZED_PIXELS:
        raise ValueError(
            f"an image of {image.width} x {image.height} pixels is too narrow to be resized: crop it first"
        )
    return image.resize((width, height), resample)


def _shortest_edge(size: Any) -> int:
    if size is None:
        return 384
    side = size.get("shortest_edge") if isinstance(size, Mapping) and set(size) == {"shortest_edge"} else size
    if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= 8192:
        raise ValueError(f'size must be {{"shortest_edge": s}} with a whole number s from 1 to 8192, not {short(size)}')
    return side


def _channel_values(name: str, values: Any) -> list[float]:
    if _is_finite(values):
        values = [values] * 3
    numbers = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else []
    if len(numbers) not in (1, 3) or not all(map(_is_finite, numbers)):
        raise ValueError(f"{name} must be one number for each channel, 3 for RGB or 1 for grey, not {short(values)}")
    return [float(value) for value in numbers]


def _require_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {short(value)}")
    return value


def _require_positive(name: str, value: Any) -> float:
    if not _is_finite(value) or value <= 0:
        raise ValueError(f"{name} must be a positive number, not {short(value)}")
    return float(value)


def _is_finite(value: Any) -> bool:
    """Whether a value is a number that a float32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3.4e38
