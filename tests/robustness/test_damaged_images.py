"""Images that cannot be read: an error that names the file, whatever the damage."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from image_files import READ_ERRORS, encode, needs_avif, noise, overwrite, png
from PIL import Image, features

from mlx_convnextv2.images.decode import open_image

# Pillow warns of damaged metadata and of large pictures.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


def assert_names_the_file(error: BaseException, path: Path | str) -> None:
    message = str(error)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300


FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", pytest.param("AVIF", marks=needs_avif), "HEIF"]


@pytest.mark.parametrize("keep", [1, 13, 0.2, 0.6])
@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_file_is_named_in_the_error(tmp_path, format, keep):
    data = encode(noise(), format)
    path = tmp_path / f"photo.{format.lower()}"
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(READ_ERRORS) as error:
        open_image(path)
    assert_names_the_file(error.value, path)


@pytest.mark.parametrize("filler", [0x00, 0xFF])
@pytest.mark.parametrize(
    ("format", "marker"),
    [
        ("PNG", b"IDAT"),
        ("JPEG", b"\xff\xc0"),
        ("WEBP", b"VP8 "),
        ("TIFF", b"II*\0"),
        pytest.param("AVIF", b"mdat", marks=needs_avif),
        ("HEIF", b"mdat"),
    ],
)
def test_a_file_overwritten_from_a_marker_on_is_named_in_the_error(tmp_path, format, marker, filler):
    path = tmp_path / f"photo.{format.lower()}"
    path.write_bytes(overwrite(encode(noise(), format), marker, filler))
    with pytest.raises(READ_ERRORS) as error:
        open_image(path)
    assert_names_the_file(error.value, path)


def test_an_empty_file_is_named_in_the_error(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(ValueError, match="empty") as error:
        open_image(path)
    assert_names_the_file(error.value, path)


@pytest.mark.parametrize("content", [b"Dear diary, this is no photo.\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_a_text_file_called_jpg_is_named_in_the_error(tmp_path, content):
    path = tmp_path / "notes.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not an image") as error:
        open_image(path)
    assert_names_the_file(error.value, path)


def test_a_folder_is_named_in_the_error(tmp_path):
    with pytest.raises(IsADirectoryError, match="folder") as error:
        open_image(tmp_path)
    assert_names_the_file(error.value, tmp_path)


@pytest.mark.parametrize("name", ["gone.jpg", "gone/gone.jpg", "n" * 5_000, "nul\0byte.jpg"])
def test_a_missing_file_is_named_in_the_error(tmp_path, name):
    path = f"{tmp_path}/{name}"
    with pytest.raises(FileNotFoundError, match="no such image") as error:
        open_image(path)
    assert_names_the_file(error.value, path)


def test_a_link_to_nothing_is_a_missing_file(tmp_path):
    path = tmp_path / "link.jpg"
    path.symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError, match=r"link\.jpg"):
        open_image(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything may be read")
def test_a_file_that_may_not_be_read_is_named_in_the_error(tmp_path, photo):
    path = tmp_path / "private.png"
    photo.save(path)
    path.chmod(0)
    with pytest.raises(PermissionError) as error:
        open_image(path)
    assert_names_the_file(error.value, path)


@pytest.mark.parametrize("make", [io.BytesIO, tempfile.TemporaryFile, tempfile.SpooledTemporaryFile])
def test_a_file_object_without_a_name_is_called_the_image(make):
    with make() as file, pytest.raises(ValueError, match="the image cannot be read: it is empty"):
        open_image(file)


def test_a_file_object_is_named_in_the_error(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(encode(noise(), "PNG")[:500])
    with path.open("rb") as file, pytest.raises(READ_ERRORS) as error:
        open_image(file)
    assert_names_the_file(error.value, path)


def _bomb(format: str) -> bytes:
    """A tiny file that declares more than 2 billion pixels."""
    if format == "PNG":
        return png(60_000, 60_000, 8, 2, b"")
    data = encode(Image.new("RGB", (8, 8)), format)
    if format == "GIF":
        return data[:6] + struct.pack("<HH", 60_000, 60_000) + data[10:]
    if format == "BMP":
        return data[:18] + struct.pack("<ii", 60_000, 60_000) + data[26:]
    frame = data.index(b"\xff\xc0") + 5  # JPEG: marker, length, precision, then height and width
    return data[:frame] + struct.pack(">HH", 60_000, 60_000) + data[frame + 4 :]


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "JPEG"])
def test_a_small_file_that_declares_too_many_pixels_is_refused(tmp_path, format):
    path = tmp_path / "bomb.png"
    path.write_bytes(_bomb(format))
    assert path.stat().st_size < 1_000
    with pytest.raises(ValueError, match="too many pixels") as error:
        open_image(path)
    assert_names_the_file(error.value, path)


def test_a_heic_file_that_declares_too_many_pixels_is_refused(tmp_path):
    data = encode(noise(), "HEIF")
    size = data.index(b"ispe") + 8  # the box's type and version, then width and height
    path = tmp_path / "bomb.heic"
    path.write_bytes(data[:size] + struct.pack(">II", 0x7FFFFFFF, 64) + data[size + 8 :])
    with pytest.raises(READ_ERRORS) as error:
        open_image(path)
    assert_names_the_file(error.value, path)


# --- any damage at all ----------------------------------------------------------------------------------------------


def _small_files() -> dict[str, bytes]:
    y, x = np.mgrid[0:13, 0:17]
    rgb = Image.fromarray(np.stack([x * 15, y * 19, x * y % 256], axis=-1).astype(np.uint8))
    grey16 = Image.fromarray((x * 3_000).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x0132] = 6, "2020:01:01 00:00:00"
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
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


@pytest.mark.parametrize("name", FILES)
def test_the_small_files_are_whole(name):
    assert open_image(io.BytesIO(FILES[name])).size in ((17, 13), (13, 17), (5, 4))


DAMAGE = {
    "name": st.sampled_from(sorted(FILES)),
    "changes": st.lists(  # (position, bits to flip), in the header more often than not
        st.tuples(st.integers(0, 60) | st.integers(0, 2_100), st.integers(1, 255)), max_size=6
    ),
    "cut": st.none() | st.integers(0, 2_100),
}


@settings(max_examples=500)
@given(**DAMAGE)
def test_damage_is_a_read_error_or_an_image(name, changes, cut):
    check_damage(name, changes, cut)


@pytest.mark.slow
@settings(max_examples=5_000)
@given(**DAMAGE)
def test_much_damage_is_a_read_error_or_an_image(name, changes, cut):
    check_damage(name, changes, cut)


def check_damage(name, changes, cut):
    data = bytearray(FILES[name])
    for position, bits in changes:
        data[position % len(data)] ^= bits
    data = bytes(data[:cut])
    if name.startswith("png"):
        data = _mend_checksums(data)
    try:
        mode = open_image(io.BytesIO(data), max_pixels=1_000_000).mode  # more would be legal, but slow
    except READ_ERRORS as error:
        mode, message = None, str(error)
    if mode is None:
        assert "the image" in message
        assert "\n" not in message
    else:
        assert mode == "RGB"
