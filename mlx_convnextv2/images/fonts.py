"""A font of the system for labels in any language, since Pillow's own font has only ASCII."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

# macOS, Linux, Windows; the fonts with the most letters first.
_FILES = ("Arial Unicode.ttf", "NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf")


@lru_cache(maxsize=32)
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels; Pillow's own if none is found.

    Raises:
        OSError: Pillow was built without FreeType.
    """
    for file in _FILES:
        try:
            return ImageFont.truetype(file, size)
        except OSError:  # it is not there
            continue
        except ImportError:  # without FreeType
            break
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise OSError("this Pillow has no FreeType, so it cannot write labels: install Pillow's own wheel")
    return font
