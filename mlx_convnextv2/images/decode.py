"""Image files of every common kind, converted to RGB: decoding, orientation, transparency, bit depth."""

from __future__ import annotations

import importlib
import io
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from ..messages import one_line
from ..runtime.forks import check_not_forked

# The formats that Pillow may open, each with its plugin, which is imported when no format before it fits. Some of the
# other formats, such as EPS, start external programs. pillow_heif registers HEIF by itself.
_PLUGINS = {
    **{"JPEG": "Jpeg", "PNG": "Png", "WEBP": "WebP", "GIF": "Gif", "TIFF": "Tiff", "BMP": "Bmp", "PPM": "Ppm"},
    **{"JPEG2000": "Jpeg2K", "AVIF": "Avif", "HEIF": None},
}

# Pixels of an image, unless the caller says otherwise: phones take 200 million.
MAX_PIXELS = 300_000_000
_MAX_SIDE = 1_000_000  # because Pillow stores the address of each row, and resizes all rows at once
_BAND_PIXELS = 1_000_000  # converted to another mode at a time

# The most that is read of a stream, which may have no end.
NAMELESS = "the image"  # the name of an image in memory in messages
MAX_STREAM_BYTES = 2**29
_CHUNK_BYTES = 2**20
_MAX_SILENCE = 30.0  # seconds without data from a named pipe

# Brands of the ISO base media container that hold HEIC (ISO/IEC 23008-12, annex B), and of those, AVIF's signs.
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = (b"avif", b"avis")

# ImageOps.exif_transpose also writes the EXIF data anew, which fails where another part of it is damaged.
ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # the inverse of each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class MissingExtraError(ValueError):
    """A file that cannot be read without an extra of this package.

    Attributes:
        problem: the message without the advice.
        extra: the extra's name.
        advice: how to install it.
    """

    def __init__(self, problem: str, extra: str):
        self.problem, self.extra = problem, extra
        self.advice = f'pip install "mlx-convnextv2[{extra}]"'
        super().__init__(f"{problem}: {self.advice}")


def open_image(
    source: str | os.PathLike[str] | BinaryIO | Image.Image | np.ndarray,
    mode: str = "RGB",
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Open an image, turn it upright, and convert it to 8-bit RGB (or grey, with mode="L").

    Args:
        source: a path, a binary file object, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        mode: "RGB" or "L".
        max_pixels: a larger image is refused before it is decoded. A decoded pixel takes 4 bytes, or up to 8 if the
            image is turned or converted to another mode.

    EXIF orientation is applied, the first frame of an animation is taken, transparent pixels are laid over white, and
    16-bit samples are scaled to 8 bits. At most half a gigabyte of a file object is read. A named pipe that is silent
    for half a minute is given up.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file cannot be read, or ends before the image does.
        ValueError: not an image, an image that cannot be converted to RGB, or one that is too large.
    """
    name = name_of(source)
    with explained(name):
        if isinstance(source, Image.Image):
            _check_size(source, max_pixels)
            image = _upright(source)
            return _to_mode(image.copy() if image is source else image, mode)
        if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
            with _open_file(source, name) as file:
                image = open_header(file)
                _check_size(image, max_pixels)
                return _to_mode(_upright(image), mode)
        image = _from_array(source)
        _check_size(image, max_pixels)
        return _to_mode(image, mode)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Give what fails while an image of this name is read the types and the sentences of `open_image`'s errors."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image, or of a format that is not read") from None
    except MemoryError:
        raise ValueError(f"{name} needs more memory than there is: scale it down") from None
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except MissingExtraError as error:
        raise MissingExtraError(f"{name} cannot be read: {error.problem}", error.extra) from None
    except OSError as error:
        raise OSError(f"{name} cannot be read: {one_line(error)}") from None
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged files
        raise ValueError(f"{name} cannot be read: {one_line(error)}") from None


def name_of(source: Any) -> str:
    """What to call an image in a message."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None) or getattr(source, "filename", None)
    return name if isinstance(name, str) else NAMELESS


def read_stream(stream: BinaryIO) -> bytes:
    """The whole stream, or one byte more than an image may have."""
    content = io.BytesIO()
    read = getattr(stream, "read1", stream.read)  # one read at a time: a Ctrl-C just before it is noticed behind it
    while content.tell() <= MAX_STREAM_BYTES:
        chunk = read(min(_CHUNK_BYTES, MAX_STREAM_BYTES + 1 - content.tell()))
        if not isinstance(chunk, bytes):
            raise ValueError('it is opened as text: open it with mode "rb"')
        if not chunk:
            break
        content.write(chunk)
    return content.getvalue()


def is_pipe(path: str | os.PathLike[str]) -> bool:
    """Whether there is a named pipe of this name."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _open_file(source: Any, name: str) -> BinaryIO:
    """The file in a form in which Pillow can seek."""
    if isinstance(source, str | os.PathLike):
        check_exists(source, name)
        if not is_pipe(source):
            return open(source, "rb")
        content = _read_pipe(source)
    else:
        content = read_stream(source)
    if len(content) > MAX_STREAM_BYTES:
        raise ValueError(f"it has more than {MAX_STREAM_BYTES // 10**6} MB, which no image should take")
    return io.BytesIO(content)


def check_exists(path: Any, name: str) -> None:
    """Raise an error that says what is wrong if there is no file of this name."""
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            os.scandir(path).close()  # raises an error if the folder may not be read
            raise IsADirectoryError(f"{name} is a folder, not an image")
    except (IsADirectoryError, PermissionError):
        raise
    except (OSError, ValueError) as error:
        why = f" (it is a link to {os.readlink(path)})" if os.path.islink(path) else ""
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            why += f" ({error.strerror})"
        raise FileNotFoundError(f"no such image: {name}{why}") from None


def _read_pipe(path: str | os.PathLike[str]) -> bytes:
    """The content of a named pipe. The wait has a limit, since nobody can interrupt a waiting thread."""
    content = io.BytesIO()
    heard = time.monotonic()
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as pipe:
        while content.tell() <= MAX_STREAM_BYTES:
            chunk = pipe.read(_CHUNK_BYTES)  # None: nothing yet; empty: no writer yet, or the end
            if chunk:
                content.write(chunk)
                heard = time.monotonic()
            elif chunk is not None and content.tell():
                break
            elif time.monotonic() - heard > _MAX_SILENCE:
                raise ValueError(f"nothing came through this named pipe for {_MAX_SILENCE:g} seconds")
            else:
                time.sleep(0.01)
    return content.getvalue()


def open_header(file: BinaryIO) -> Image.Image:
    """The image, not decoded yet: `Image.open` without its limit on pixels, which is global to the program."""
    head = file.read(64)
    if not head:
        raise ValueError("it is empty")
    _check_brands(head)
    for format, plugin in _PLUGINS.items():
        if plugin is not None:
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
        if format not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[format]
        accepted = accept is None or accept(head[:16])
        if not accepted or isinstance(accepted, str):  # a string says what this Pillow lacks
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # how plugins reject a file
            continue
    raise UnidentifiedImageError


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if 0 in image.size:
        raise ValueError(f"it has {width} x {height} pixels")
    if width * height > max_pixels:
        raise ValueError(
            f"it has too many pixels, {width} x {height}: scale it down to at most {max_pixels:,}, or raise max_pixels "
            "(--max-pixels)"
        )
    if max(width, height) > _MAX_SIDE:
        raise ValueError(f"it has {width} x {height} pixels, more than {_MAX_SIDE:,} on a side: crop it first")


def _check_brands(head: bytes) -> None:
    """Let Pillow read HEIC if the file is HEIC, and say what is missing if it cannot read HEIC or AVIF."""
    if head[4:8] != b"ftyp":
        return
    brands = head[8:12], head[16 : int.from_bytes(head[:4], "big")]
    if brands[0] in _AVIF_BRANDS or any(brand in brands[1] for brand in _AVIF_BRANDS):
        if not features.check("avif"):
            raise ValueError(
                f"it is an AVIF image, which Pillow {PIL.__version__} cannot read here: install a newer one"
            )
    elif brands[0] in _HEIC_BRANDS:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise MissingExtraError("it is a HEIC image, which needs the extra heic", "heic") from None
        register_heif_opener()


def _upright(image: Image.Image) -> Image.Image:
    """The decoded image, turned as its EXIF orientation says. Damaged EXIF is ignored."""
    image.load()
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:
        orientation = None
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info = {key: value for key, value in image.info.items() if key == "transparency"}  # no orientation any more
    return turned


def _from_array(array: Any) -> Image.Image:
    if type(array).__module__.startswith("mlx."):  # it may be lazy
        check_not_forked()
    array = np.asarray(array)
    channels_last = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not channels_last or array.size == 0:
        raise ValueError(
            "an image array must be uint8 of the shape (height, width), (height, width, 1), (height, width, 3) or "
            f"(height, width, 4), not {array.dtype} {array.shape}"
        )
    return Image.fromarray(array.squeeze(2) if array.ndim == 3 and array.shape[2] == 1 else array)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to "RGB" or "L", in bands of rows: only the result is as large as the image."""
    if image.mode == mode and not image.has_transparency_data:
        return image
    result = Image.new(mode, image.size)
    for top, band in _bands(image):
        result.paste(_band_to_mode(band, mode), (0, top))
    return result


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in bands of rows, each with the index of its first row."""
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _band_to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert a band to a mode. Pillow's `convert` alone would clip 16 bits and show what transparency hides."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB").convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (Pillow's I;16, or I from a 16-bit file) and float grey in 0..1 -> 8-bit grey, or LA with a key."""
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
