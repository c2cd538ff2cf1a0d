"""What a picture says about itself: its size, and when it was taken."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from PIL import ExifTags, Image

from .decode import ORIENTATION_TAG

_SIDEWAYS = range(5, 9)  # the EXIF orientations that exchange width and height


@dataclass(frozen=True)
class Facts:
    """The upright picture's width and height in pixels, and its EXIF date, as 2024-05-31T18:30:00, or None."""

    width: int
    height: int
    taken: str | None


def facts(image: Image.Image) -> Facts:
    """What an opened picture says. Damaged EXIF data counts as missing."""
    width, height = image.size
    try:
        exif = image.getexif()
        orientation = exif.get(ORIENTATION_TAG)
        if isinstance(orientation, int) and orientation in _SIDEWAYS:
            width, height = height, width
        details = exif.get_ifd(ExifTags.IFD.Exif)
        taken = _date(details.get(ExifTags.Base.DateTimeOriginal)) or _date(exif.get(ExifTags.Base.DateTime))
    except Exception:  # Pillow raises errors of many kinds on damaged EXIF
        taken = None
    return Facts(width, height, taken)


def _date(value: Any) -> str | None:
    try:
        return datetime.strptime(str(value).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:
        return None
