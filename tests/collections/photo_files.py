"""Small photos in folders, for tests that need many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def make_photos(folder: Path, number: int) -> Path:
    """Photos in folders of a hundred, no two alike, and one file that is no photo."""
    pixels = np.random.default_rng(0)
    for i in range(number):
        path = folder / f"{i // 100}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((24, 24)).save(path)
    (folder / "0" / "none.png").write_text("no image")
    return folder
