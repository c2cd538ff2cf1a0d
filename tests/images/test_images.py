"""Image files as people have them: what is decoded to which pixels, and what is said of the files that cannot be."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from image_files import READ_ERRORS, encode, needs_avif, noise, overwrite, png
from PIL import Image

from mlx_convnextv2.images.decode import open_image
from mlx_convnextv2.images.folders import SUFFIXES, find_images

# Pillow warns of damaged metadata and of large pictures.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
QUADRANTS = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)


def decode(data: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(open_image(io.BytesIO(data), mode)).astype(int)


def same(image: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(other))


def quadrants(width: int = 48, height: int = 32) -> Image.Image:
    return Image.fromarray(QUADRANTS).resize((width, height), Image.Resampling.NEAREST)


def exif_block(*entries: tuple[int, int, int, bytes], data: bytes = b"") -> bytes:
    """EXIF of raw (tag, type, count, 4 value bytes) entries, little-endian; `data` follows the directory."""
    directory = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 0) + data


def orientation_entry(value: int) -> tuple[int, int, int, bytes]:
    return (0x0112, 3, 1, struct.pack("<HH", value, 0))


# --- formats --------------------------------------------------------------------------------------------------------

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "WEBP": {"lossless": True},
}
LOSSY: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}}


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_give_the_pixels_that_were_saved(format, photo):
    assert np.array_equal(decode(encode(photo, format, **LOSSLESS[format])), np.asarray(photo))


@pytest.mark.parametrize("format", [*LOSSY, pytest.param("AVIF", marks=needs_avif), "HEIF"])
def test_lossy_formats_give_nearly_the_pixels_that_were_saved(format, photo):
    error = np.abs(decode(encode(photo, format, **LOSSY.get(format, {}))) - np.asarray(photo))
    assert error.mean() < 4  # of 255; a wrong channel order or a flip gives more than 50


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(format):
    frames = [Image.new("RGB", (8, 6), color) for color in (RED, GREEN, BLUE)]
    data = encode(frames[0], format, save_all=True, append_images=frames[1:])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert np.abs(decode(data) - RED).max() <= 1


# --- modes ----------------------------------------------------------------------------------------------------------


def test_one_bit_images_become_black_and_white():
    bits = np.array([[True, False], [False, True]])
    assert decode(encode(Image.fromarray(bits), "PNG")).tolist() == [
        [[255] * 3, [0] * 3],
        [[0] * 3, [255] * 3],
    ]


def test_grey_images_become_three_equal_channels(photo):
    grey = photo.convert("L")
    assert np.array_equal(decode(encode(grey, "PNG")), np.stack([np.asarray(grey)] * 3, axis=-1))


def test_palette_images_show_their_palette():
    image = quadrants().quantize(4)
    assert image.mode == "P"
    assert np.array_equal(decode(encode(image, "PNG")), np.asarray(quadrants()))


# Naive CMYK: each of R, G, B is what C, M, Y leave, times what K leaves.
@pytest.mark.parametrize(
    ("ink", "color"),
    [((0, 0, 0, 0), WHITE), ((0, 255, 255, 0), RED), ((255, 255, 0, 0), BLUE), ((0, 0, 0, 255), (0, 0, 0))],
)
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_images_keep_their_colors(format, ink, color):
    options = {"quality": 100} if format == "JPEG" else {}
    assert np.abs(decode(encode(Image.new("CMYK", (16, 16), ink), format, **options)) - color).max() <= 3


def test_ycbcr_images_keep_their_colors(photo):
    error = np.asarray(open_image(photo.convert("YCbCr"))).astype(int) - np.asarray(photo)
    assert np.abs(error).max() <= 3  # the rounding of two conversions


def test_lab_images_keep_their_colors():
    # L* = 128 / 255 * 100 = 50.2 without colour: Y = ((50.2 + 16) / 116)^3 = 0.1858, which sRGB writes as 119.
    data = encode(Image.new("LAB", (4, 4), (128, 128, 128)), "TIFF")
    assert Image.open(io.BytesIO(data)).mode == "LAB"
    assert np.abs(decode(data) - 119).max() <= 2


SAMPLES_16 = np.array([[0, 128, 129, 257, 1000], [32_767, 32_768, 51_400, 65_000, 65_535]], np.uint16)
SAMPLES_8 = np.rint(SAMPLES_16 / 257).astype(int)  # 65,535 / 255 = 257


@pytest.mark.parametrize(
    ("format", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I"), ("TIFF", "I")]
)
def test_16_bit_grey_is_scaled_and_not_clipped(format, mode):
    values = {"I;16": SAMPLES_16, "I;16B": SAMPLES_16.astype(">u2"), "I": SAMPLES_16.astype(np.int32)}[mode]
    image = Image.fromarray(values)
    assert image.mode == mode
    data = encode(image, format)
    assert np.array_equal(decode(data), np.stack([SAMPLES_8] * 3, axis=-1))
    assert np.array_equal(decode(data, mode="L"), SAMPLES_8)


@pytest.mark.parametrize("color_type", [2, 6], ids=["RGB", "RGBA"])
def test_16_bit_colors_are_scaled(color_type):
    channels = {2: 3, 6: 4}[color_type]
    values = np.stack([SAMPLES_16] * channels, axis=-1)
    values[..., 3:] = 65_535
    data = png(5, 2, 16, color_type, values.astype(">u2").tobytes())
    assert np.abs(decode(data) - SAMPLES_8[..., None]).max() <= 1  # Pillow takes the high byte


def test_float_grey_is_scaled_from_0_to_1():
    values = np.array([[0, 0.25, 0.5], [0.75, 0.999, 1]], np.float32)
    data = encode(Image.fromarray(values), "TIFF")
    assert np.array_equal(decode(data, mode="L"), np.rint(values.astype(np.float64) * 255))


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        (np.array([[0, 1.5]], np.float32), "0 to 1"),
        (np.array([[-0.1, 1]], np.float32), "0 to 1"),
        (np.array([[0.5, np.nan]], np.float32), "0 to 1"),
        (np.array([[0, 65_536]], np.int32), "0 to 65535"),
        (np.array([[-1, 7]], np.int32), "0 to 65535"),
    ],
)
def test_grey_values_of_unknown_range_are_an_error_that_says_what_is_allowed(tmp_path, values, allowed):
    path = tmp_path / "scan.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ValueError, match=r"scan\.tif.*" + allowed):
        open_image(path)


# --- transparency: what is hidden must not be seen ------------------------------------------------------------------


def _palette_with_transparency(transparency: int | bytes) -> bytes:
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([9, 9, 9, 200, 100, 50])
    return encode(image, "PNG", transparency=transparency)


def _image(pixels) -> Image.Image:
    return Image.fromarray(np.array([pixels], np.uint8))


TRANSPARENT = {  # the left pixel is transparent, the right one is opaque and coloured as stated
    "RGBA PNG": (lambda: encode(_image([(9, 9, 9, 0), (200, 100, 50, 255)]), "PNG"), (200, 100, 50)),
    "RGBA WebP": (
        lambda: encode(_image([(9, 9, 9, 0), (200, 100, 50, 255)]), "WEBP", lossless=True, exact=True),
        (200, 100, 50),
    ),
    "RGBA TIFF": (lambda: encode(_image([(9, 9, 9, 0), (200, 100, 50, 255)]), "TIFF"), (200, 100, 50)),
    "LA PNG": (lambda: png(2, 1, 8, 4, bytes([9, 0, 200, 255])), (200, 200, 200)),
    "palette PNG, one transparent index": (lambda: _palette_with_transparency(0), (200, 100, 50)),
    "palette PNG, alpha of each index": (lambda: _palette_with_transparency(bytes([0, 255])), (200, 100, 50)),
    "palette GIF": (
        lambda: encode(Image.open(io.BytesIO(_palette_with_transparency(0))), "GIF"),
        (200, 100, 50),
    ),
    "RGB PNG, a transparent colour": (
        lambda: encode(_image([(9, 9, 9), (200, 100, 50)]), "PNG", transparency=(9, 9, 9)),
        (200, 100, 50),
    ),
    "grey PNG, a transparent level": (lambda: encode(_image([9, 200]), "PNG", transparency=9), (200, 200, 200)),
    "1-bit PNG, black is transparent": (
        lambda: png(2, 1, 1, 0, bytes([0b01000000]), trns=struct.pack(">H", 0)),
        WHITE,
    ),
    "16-bit grey PNG, a transparent level": (
        lambda: png(2, 1, 16, 0, struct.pack(">HH", 257 * 9, 257 * 200), trns=struct.pack(">H", 257 * 9)),
        (200, 200, 200),
    ),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_pixels_are_laid_over_white_in_grey_too(kind):
    make, opaque = TRANSPARENT[kind]
    assert decode(make()).tolist() == [[list(WHITE), list(opaque)]]
    if len(set(opaque)) == 1:
        assert decode(make(), mode="L").tolist() == [[255, opaque[0]]]


def test_half_transparent_pixels_are_mixed_with_white():
    # 0 * 128 / 255 + 255 * 127 / 255 = 127
    data = encode(_image([(255, 0, 0, 128), (0, 0, 0, 128)]), "PNG")
    assert decode(data).tolist() == [[[255, 127, 127], [127, 127, 127]]]


# --- EXIF -----------------------------------------------------------------------------------------------------------

# Exif 2.32, tag 274: where row 0 and column 0 of the stored picture belong on the upright one.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],  # row 0 top, column 0 right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.transpose(1, 0, 2),  # left, top
    6: lambda a: np.rot90(a, -1),  # right, top
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),  # right, bottom
    8: lambda a: np.rot90(a),  # left, bottom
}


def corners(image: Image.Image) -> list:
    """The colours in the middle of the four quadrants, each channel black or full."""
    width, height = image.size
    pixels = np.asarray(image)[[height // 4, 3 * height // 4]][:, [width // 4, 3 * width // 4]]
    return np.where(pixels > 127, 255, 0).tolist()


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=needs_avif), "HEIF"])
def test_images_are_turned_upright(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    # pillow-heif turns EXIF bytes into the container's own rotation, as phones write it
    data = encode(quadrants(48, 32), format, exif=exif.tobytes() if format == "HEIF" else exif)
    image = open_image(io.BytesIO(data))
    assert image.size == ((48, 32) if orientation < 5 else (32, 48))
    assert corners(image) == UPRIGHT[orientation](QUADRANTS).tolist()
    assert corners(open_image(image)) == corners(image)  # training and explaining open what is open already


def test_pil_images_are_turned_upright_too_and_stay_as_they_are():
    source = Image.open(io.BytesIO(encode(quadrants(48, 32), "JPEG", exif=exif_block(orientation_entry(6)))))
    assert corners(open_image(source)) == UPRIGHT[6](QUADRANTS).tolist()
    assert source.size == (48, 32)
    assert source.getexif()[0x0112] == 6


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_unknown_orientation_is_ignored(orientation):
    data = encode(quadrants(), "JPEG", exif=exif_block(orientation_entry(orientation)))
    assert corners(open_image(io.BytesIO(data))) == QUADRANTS.tolist()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_corrupt_exif_does_not_keep_an_image_from_being_read(format, exif):
    data = encode(quadrants(), format, exif=exif)
    assert corners(open_image(io.BytesIO(data))) == QUADRANTS.tolist()


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param((0x0132, 12, 1, struct.pack("<I", 5)), id="DateTime as a double"),
        pytest.param((0x0128, 2, 1, b"\0\0\0\0"), id="ResolutionUnit as text"),
        pytest.param((0x011A, 5, 1, struct.pack("<I", 9_999)), id="XResolution beyond the end"),
        pytest.param((0x8769, 4, 1, struct.pack("<I", 99_999)), id="a directory beyond the end"),
        pytest.param((0x8769, 4, 1, struct.pack("<I", 8)), id="a directory inside itself"),
    ],
)
def test_the_orientation_counts_beside_a_corrupt_exif_entry(entry):
    data = encode(quadrants(), "JPEG", exif=exif_block(orientation_entry(6), entry))
    assert corners(open_image(io.BytesIO(data))) == UPRIGHT[6](QUADRANTS).tolist()


ANY_ENTRY = st.tuples(
    st.sampled_from([0x010F, 0x011A, 0x0128, 0x0132, 0x0213, 0x8769, 0x8825, 0x9286, 0x9C9B])
    | st.integers(0x0113, 0xFFFF),
    st.integers(0, 14),  # types 1 to 13 exist
    st.integers(0, 3) | st.integers(0, 2**32 - 1),
    st.sampled_from([bytes(4), b"\x08\0\0\0", b"\x0a\0\0\0"]) | st.binary(min_size=4, max_size=4),
)


@settings(max_examples=100)
@given(entries=st.lists(ANY_ENTRY, max_size=3), data=st.binary(max_size=12))
def test_the_orientation_counts_beside_any_other_exif_entry(entries, data):
    exif = exif_block(orientation_entry(6), *entries, data=data)
    image = open_image(io.BytesIO(encode(quadrants(24, 16), "PNG", exif=exif)))
    assert corners(image) == UPRIGHT[6](QUADRANTS).tolist()


# --- HEIC -----------------------------------------------------------------------------------------------------------

# ISO/IEC 23008-12, annex B, and the structural brands of the container itself
HEIC_BRANDS = [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"]


@pytest.fixture
def _without_pillow_heif(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it is an ImportError now


@pytest.mark.usefixtures("_without_pillow_heif")
def test_without_pillow_heif_a_heic_error_names_the_file_and_the_extra_and_other_formats_are_read(tmp_path, photo):
    path = tmp_path / "IMG_0001.HEIC"
    for brand in HEIC_BRANDS:
        path.write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(200))
        with pytest.raises(ValueError, match=r"IMG_0001\.HEIC.*mlx-convnextv2\[heic\]"):
            open_image(path)
    assert open_image(io.BytesIO(encode(photo, "JPEG"))).size == photo.size


@needs_avif
@pytest.mark.usefixtures("_without_pillow_heif")
def test_an_avif_file_of_the_general_brand_is_not_taken_for_heic(photo):
    data = encode(photo, "AVIF").replace(b"ftypavif", b"ftypmif1", 1)
    assert Image.open(io.BytesIO(data)).format == "AVIF"
    assert open_image(io.BytesIO(data)).size == photo.size


def test_heic_with_transparency_is_laid_over_white():
    image = Image.new("RGBA", (64, 64), (9, 9, 9, 0))
    assert np.abs(decode(encode(image, "HEIF", quality=95)) - 255).max() <= 3


# --- where images come from -----------------------------------------------------------------------------------------


def test_paths_and_file_objects_are_read_whatever_the_suffix_and_left_open(tmp_path, photo):
    path = tmp_path / "a photo with späces.jpg"
    photo.save(path, "PNG")
    assert same(open_image(path), photo)
    assert same(open_image(str(path)), photo)
    with path.open("rb") as file:
        assert same(open_image(file), photo)
        assert not file.closed


def test_a_stream_that_cannot_seek_is_read(photo):
    data = encode(photo, "PNG")
    reader, writer = os.pipe()

    def write():
        with os.fdopen(writer, "wb") as file:
            file.write(data)

    threading.Thread(target=write, daemon=True).start()
    with os.fdopen(reader, "rb") as file:
        assert same(open_image(file), photo)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_read(tmp_path, photo):
    path = tmp_path / "pipe"  # what a shell gives for <(...)
    os.mkfifo(path)
    threading.Thread(target=lambda: path.write_bytes(encode(photo, "PNG")), daemon=True).start()
    assert same(open_image(path), photo)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA"])
def test_pil_images_are_copied_and_never_changed(photo, mode):
    source = photo.convert(mode)
    before = source.tobytes()
    result = open_image(source)
    result.paste((1, 2, 3), (0, 0, *result.size))
    assert (source.mode, source.tobytes()) == (mode, before)


@pytest.mark.parametrize(("format", "marker"), [("PNG", b"IDAT"), pytest.param("AVIF", b"mdat", marks=needs_avif)])
def test_a_lazy_pil_image_whose_file_is_damaged_is_a_read_error(format, marker):
    lazy = Image.open(io.BytesIO(overwrite(encode(noise(), format), marker, 0)))
    with pytest.raises(READ_ERRORS):
        open_image(lazy)


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_uint8_arrays_are_images(channels):
    shape = (5, 7) if channels is None else (5, 7, channels)
    array = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    if channels == 4:
        array[..., 3] = 255
    expected = np.broadcast_to(array.reshape(5, 7, -1)[..., :3], (5, 7, 3))
    views: list[Any] = [array, array[::-1][::-1], np.asfortranarray(array), mx.array(array)]
    for view in views:
        assert np.array_equal(np.asarray(open_image(view)), expected)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((3, 8, 8), np.uint8),  # channels first
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),  # a batch
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}-{'x'.join(map(str, array.shape))}",
)
def test_other_arrays_are_an_error_that_states_their_dtype_and_shape(array):
    with pytest.raises(ValueError, match="uint8 of the shape") as error:
        open_image(array)
    assert str(array.dtype) in str(error.value)
    assert str(array.shape) in str(error.value)


@pytest.mark.parametrize(
    "thing",
    [None, 5, b"\x89PNG", object(), [[1, 2]], io.StringIO("text"), Image.new("L", (0, 5))],
    ids=lambda thing: type(thing).__name__,
)
def test_things_that_are_no_image_are_a_value_error(thing):
    with pytest.raises(ValueError, match="image"):
        open_image(thing)


# --- find_images ----------------------------------------------------------------------------------------------------


def test_find_images_lists_the_images_below_a_folder_in_order(tmp_path):
    wanted = ["a.JPG", "b/c.png", "b/d/e.webp", "b/d/f.HEIC", "b.tiff", "ü.gif"]
    others = ["notes.txt", "README", "jpg", ".hidden.png", "b/.cache/x.png", ".git/y.jpg", "b/._a.jpg", "movie.mp4"]
    for name in [*wanted, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert find_images(tmp_path) == sorted(tmp_path / name for name in wanted)
    assert find_images(str(tmp_path)) == find_images(tmp_path)


def test_find_images_looks_into_a_hidden_folder_and_survives_one_that_contains_itself(tmp_path):
    folder = tmp_path / ".photos"
    folder.mkdir()
    (folder / "a.png").touch()
    (folder / "loop").symlink_to(folder)
    assert find_images(folder) == [folder / "a.png"]


def test_find_images_knows_the_suffixes_of_every_format_that_is_read():
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".heic", ".heif", ".avif"} <= SUFFIXES
