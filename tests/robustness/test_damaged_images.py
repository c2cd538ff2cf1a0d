"""Images that cannot be read: an error that names the file, whatever the damage."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from image_files import READ_ERRORS, encode, needs_avif, noise, png
from PIL import Image, features

from mlx_convnextv2.images.decode import open_image

# Pillow warns of damaged metadata and of large pictures.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", pytest.param("AVIF", marks=needs_avif), "HEIF"]


def assert_refused(path: Path | str, error: Any = READ_ERRORS, match: str = "") -> None:
    """A short line that names the file."""
    with pytest.raises(error, match=match) as raised:
        open_image(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_file_is_named_in_the_error(tmp_path, format):
    data = encode(noise(), format)
    path = tmp_path / f"photo.{format.lower()}"
    for keep in (1, 13, len(data) // 5, len(data) * 3 // 5):
        path.write_bytes(data[:keep])
        assert_refused(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "empty"),
        (b"Dear diary, this is no photo.\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    ],
)
def test_a_file_that_is_no_image_is_named_in_the_error(tmp_path, content, match):
    (tmp_path / "notes.jpg").write_bytes(content)
    assert_refused(tmp_path / "notes.jpg", ValueError, match)


@pytest.mark.usefixtures("as_everybody")
def test_what_is_no_file_or_may_not_be_read_is_named_in_the_error(tmp_path):
    assert_refused(tmp_path, IsADirectoryError, "folder")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    for name in ("gone.jpg", "gone/gone.jpg", "n" * 5_000, "nul\0byte.jpg", "link.jpg"):
        assert_refused(f"{tmp_path}/{name}", FileNotFoundError, "no such image")
    (tmp_path / "private.png").write_bytes(encode(noise(), "PNG"))
    (tmp_path / "private.png").chmod(0)
    assert_refused(tmp_path / "private.png", PermissionError)


@pytest.mark.parametrize("make", [io.BytesIO, tempfile.TemporaryFile, tempfile.SpooledTemporaryFile])
def test_a_file_object_is_named_in_the_error_or_called_the_image(make, tmp_path):
    with make() as file, pytest.raises(ValueError, match="the image cannot be read: it is empty"):
        open_image(file)
    (tmp_path / "broken.png").write_bytes(encode(noise(), "PNG")[:500])
    with (tmp_path / "broken.png").open("rb") as file, pytest.raises(READ_ERRORS, match=r"broken\.png"):
        open_image(file)


def _bomb(format: str) -> bytes:
    """A tiny file that declares more than 2 billion pixels."""
    if format == "PNG":
        return png(60_000, 60_000, 8, 2, b"")
    data = encode(Image.new("RGB", (8, 8)) if format != "HEIF" else noise(), format)
    if format == "GIF":
        return data[:6] + struct.pack("<HH", 60_000, 60_000) + data[10:]
    if format == "BMP":
        return data[:18] + struct.pack("<ii", 60_000, 60_000) + data[26:]
    if format == "HEIF":
        size = data.index(b"ispe") + 8  # the box's type and version, then width and height
        return data[:size] + struct.pack(">II", 0x7FFFFFFF, 64) + data[size + 8 :]
    frame = data.index(b"\xff\xc0") + 5  # JPEG: marker, length, precision, then height and width
    return data[:frame] + struct.pack(">HH", 60_000, 60_000) + data[frame + 4 :]


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "JPEG", "HEIF"])
def test_a_small_file_that_declares_too_many_pixels_is_refused(tmp_path, format):
    (tmp_path / "bomb.png").write_bytes(_bomb(format))
    assert_refused(tmp_path / "bomb.png", *([READ_ERRORS] if format == "HEIF" else [ValueError, "too many pixels"]))


# --- any damage at all ----------------------------------------------------------------------------------------------


def _small_files() -> dict[str, bytes]:
    y, x = np.mgrid[0:13, 0:17]
    rgb = Image.fromarray(np.stack([x * 15, y * 19, x * y % 256], axis=-1).astype(np.uint8))
    grey16 = Image.fromarray((x * 3_000).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x0132] = 6, "2020:01:01 00:00:00"
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    files = {
        "jpeg": encode(rgb, "JPEG", exif=exif),
        "jpeg-progressive": encode(rgb, "JPEG", progressive=True),
        "jpeg-cmyk": encode(rgb.convert("CMYK"), "JPEG"),
        "png": encode(rgb, "PNG", exif=exif),
        "png-palette": encode(rgb.quantize(16), "PNG", transparency=0),
        "png-16": encode(grey16, "PNG"),
        "png-animated": encode(rgb, "PNG", **frames),
        "webp": encode(rgb, "WEBP", exif=exif),
        "webp-lossless": encode(rgb, "WEBP", lossless=True),
        "webp-animated": encode(rgb, "WEBP", **frames),
        "gif": encode(rgb, "GIF"),
        "gif-animated": encode(rgb, "GIF", **frames),
        "bmp": encode(rgb, "BMP"),
        "bmp-palette": encode(rgb.quantize(4), "BMP"),
        "tiff": encode(rgb, "TIFF", exif=exif),
        "tiff-lzw": encode(rgb, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": encode(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-jpeg": encode(rgb, "TIFF", compression="jpeg"),
        "tiff-fax": encode(rgb.convert("1"), "TIFF", compression="group4"),
        "tiff-16": encode(grey16, "TIFF"),
        "tiff-float": encode(Image.fromarray((x / 17).astype(np.float32)), "TIFF"),
        "tiff-lab": encode(Image.new("LAB", (5, 4), (99, 120, 130)), "TIFF"),
    }
    if features.check("avif"):
        files["avif"] = encode(rgb, "AVIF", exif=exif)
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        return files
    return {**files, "heic": encode(rgb, "HEIF", exif=exif.tobytes())}


FILES = _small_files()


def _mend_checksums(data: bytes) -> bytes:
    """A PNG with the checksum of every chunk made right, so that damage reaches the decoder behind them."""
    mended, position = bytearray(data), 8
    while position + 12 <= len(data):
        end = position + 8 + struct.unpack_from(">I", data, position)[0]
        if end + 4 > len(data):
            break
        struct.pack_into(">I", mended, end, zlib.crc32(data[position + 4 : end]))
        position = end + 4
    return bytes(mended)


damage = given(
    name=st.sampled_from(sorted(FILES)),
    changes=st.lists(  # (position, bits to flip), in the header more often than not
        st.tuples(st.integers(0, 60) | st.integers(0, 2_100), st.integers(1, 255)), max_size=6
    ),
    cut=st.none() | st.integers(0, 2_100),
)


def check_damage(name: str, changes: list[tuple[int, int]], cut: int | None) -> None:
    damaged = bytearray(FILES[name])
    for position, bits in changes:
        damaged[position % len(damaged)] ^= bits
    data = _mend_checksums(bytes(damaged[:cut])) if name.startswith("png") else bytes(damaged[:cut])
    try:
        outcome = open_image(io.BytesIO(data), max_pixels=1_000_000).mode  # more would be legal, but slow
    except READ_ERRORS as error:
        outcome = str(error)
    assert outcome == "RGB" or ("the image" in outcome and "\n" not in outcome)


def test_the_small_files_are_whole():
    assert {open_image(io.BytesIO(file)).size for file in FILES.values()} == {(17, 13), (13, 17), (5, 4)}


@settings(max_examples=100)
@damage
def test_damage_is_a_read_error_or_an_image(name, changes, cut):
    check_damage(name, changes, cut)


@pytest.mark.slow
@settings(max_examples=5_000)
@damage
def test_much_damage_is_a_read_error_or_an_image(name, changes, cut):
    check_damage(name, changes, cut)
