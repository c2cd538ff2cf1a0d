"""Image files as people have them, brought to RGB: decoding, orientation, transparency, bit depth."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    *(".heic", ".heif", ".avif"),
}

# What Pillow may open. Others of its formats, such as EPS, start programs of their own.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "HEIF")

# Brands of the ISO base media container that hold HEIC (ISO/IEC 23008-12, annex B), and of those, AVIF's sign.
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRAND = b"avif"

_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # where Pillow stops with a DecompressionBombError

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # what undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: str | os.PathLike[str] | BinaryIO | Image.Image | np.ndarray, mode: str = "RGB") -> Image.Image:
    """Open an image, turn it upright, and bring it to 8-bit RGB (or grey, with mode="L").

    Args:
        source: a path, a binary file object, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        mode: "RGB" or "L".

    EXIF orientation is applied; of an animation the first frame is taken; transparent pixels are laid over white;
    16-bit samples are scaled to 8 bits.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file cannot be read, or ends before the image does.
        ValueError: not an image, or of a kind that cannot be brought to RGB.
    """
    name = _name(source)
    try:
        if isinstance(source, Image.Image):
            return _to_mode(_upright(source), mode)
        if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
            with _open_file(source, name) as file:
                _register_heic(file)
                with Image.open(file, formats=_formats()) as image:
                    return _to_mode(_upright(image), mode)
        return _to_mode(_from_array(source), mode)
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image, or of a format that is not read") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has too many pixels: scale it down to at most {_MAX_PIXELS:,}") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError, MemoryError):
        raise
    except OSError as error:
        raise OSError(f"{name} cannot be read: {_one_line(error)}") from None
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged files
        raise ValueError(f"{name} cannot be read: {_one_line(error)}") from None


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Files below a folder whose suffix is one of `SUFFIXES`, hidden ones left out, sorted by path."""
    root = Path(folder)
    found = []
    for path in root.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not hidden and path.suffix.lower() in SUFFIXES and path.is_file():
            found.append(path)
    return sorted(found)


def _name(source: Any) -> str:
    """What to call an image in a message."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None) or getattr(source, "filename", None)
    return name if isinstance(name, str) else "the image"


def _open_file(source: Any, name: str) -> BinaryIO:
    """The file, where `Image.open` can seek."""
    if not isinstance(source, str | os.PathLike):
        content = source.read()
        if not isinstance(content, bytes):
            raise ValueError('it is opened as text: open it with mode "rb"')
        return io.BytesIO(content)
    if os.path.isdir(source):
        raise IsADirectoryError(f"{name} is a folder, not an image")
    if not os.path.exists(source):
        raise FileNotFoundError(f"no such image: {name}")
    file: BinaryIO = open(source, "rb")  # noqa: SIM115 - the caller closes it
    if file.seekable():
        return file
    with file:  # a named pipe
        return io.BytesIO(file.read())


def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _register_heic(file: BinaryIO) -> None:
    """Let Pillow read HEIC, where this file is one."""
    head = file.read(64)
    file.seek(0)
    if not head:
        raise ValueError("it is empty")
    brands = head[: int.from_bytes(head[:4], "big")][8:]
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIC_BRANDS or _AVIF_BRAND in brands:
        return
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ValueError('it is a HEIC image, which needs the extra heic: pip install "mlx-convnextv2[heic]"') from None
    register_heif_opener()


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; damaged EXIF says nothing."""
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    image.load()
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:
        orientation = None
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image.copy() if method is None else image.transpose(method)


def _from_array(array: Any) -> Image.Image:
    array = np.asarray(array)
    channels_last = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not channels_last or array.size == 0:
        raise ValueError(
            "an image array must be uint8 of the shape (height, width), (height, width, 1), (height, width, 3) or "
            f"(height, width, 4), not {array.dtype} {array.shape}"
        )
    return Image.fromarray(array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Bring an image to "RGB" or "L"; Pillow's own `convert` would clip 16 bits and show what transparency hides."""
    if image.mode == mode and not image.has_transparency_data:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB").convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (Pillow's I;16, or I from a 16-bit file) and float grey in 0..1 -> 8-bit grey, LA if it has a key."""
    values = np.asarray(image)
    top = 1.0 if image.mode == "F" else 65_535
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= top):
        raise ValueError(
            f"a grey image of mode {image.mode} must have values from 0 to {top:g}, not {low:g} to {high:g}: "
            "save it with 8 or 16 bits"
        )
    grey = Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the value that stands for transparency
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
