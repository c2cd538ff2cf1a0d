"""Image files that tests make: whole ones of every format, and PNG files written by hand."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

READ_ERRORS = (ValueError, OSError)
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")


def encode(image: Image.Image, format: str, **options) -> bytes:
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(width: int = 64, height: int = 48) -> Image.Image:
    """Pixels that no encoder makes small, so that half a file holds half the picture."""
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8))


def overwrite(data: bytes, marker: bytes, filler: int) -> bytes:
    """The file with every byte after a marker replaced."""
    start = data.index(marker) + len(marker)
    return data[:start] + bytes([filler]) * (len(data) - start)


def png(width: int, height: int, bit_depth: int, color_type: int, samples: bytes, trns: bytes | None = None) -> bytes:
    """A PNG file written by hand, for the kinds that Pillow reads but does not write."""
    stride = len(samples) // max(height, 1)
    rows = b"".join(b"\0" + samples[i : i + stride] for i in range(0, len(samples), max(stride, 1)))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0))]
    chunks += [(b"tRNS", trns)] if trns is not None else []
    return png_from_chunks([*chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def png_from_chunks(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
