"""What the tests of libraries share: pictures, an embedder whose features are easily told, and a library's content."""

from __future__ import annotations

import hashlib
import os
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from image_files import encode
from PIL import Image

from mlx_convnextv2.collections.library.files import find_shards
from mlx_convnextv2.collections.library.reader import View

_times = count(1_700_000_000)


def picture(number: int) -> bytes:
    """A PNG of its own content."""
    pixels = np.random.RandomState(number).randint(0, 256, (32, 32 + number % 5, 3), np.uint8)
    return encode(Image.fromarray(pixels), "PNG")


def write(path: Path, content: bytes) -> Path:
    """Write a file with a time that no other has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (next(_times),) * 2)
    return path


def exact(embedder: Any) -> Any:
    """An ImageEmbedder whose features do not depend on the batch, and that counts the images it is given."""
    embedder.images = 0

    def embed(pixel_values: mx.array) -> mx.array:
        pixels = np.array(pixel_values)
        embedder.images += len(pixels)
        return mx.array(np.ascontiguousarray(pixels.reshape(len(pixels), -1)[:, : embedder.width]))

    embedder.embed = embed
    return embedder


def content(library: Path) -> dict[bytes, tuple]:
    """All that a library says of each path, with its features, in whichever row they are."""
    found = {}
    for files in find_shards(library):
        view = View.of(files)
        if view is not None:
            for entry in view.entries(np.unique(view.live()["row"]).tolist()):
                about = {name: value for name, value in vars(entry).items() if name != "row"}
                assert entry.path not in found
                found[entry.path] = (*about.values(), view.features[entry.row].tobytes())
    return found


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
