"""Pictures within a page."""

from __future__ import annotations

import base64
import io
import os
from typing import Any

from ..images.decode import open_image

_SIDE = 320  # pixels of a picture, at most
_QUALITY = 80
_SHOWN = 160  # pixels on the page, to which small pictures grow


def thumbnail(file: Any) -> str:
    """An HTML element of about 20 kB for a picture that `open_image` takes, or a few words if it cannot be read."""
    try:
        if isinstance(file, str | os.PathLike) and not os.path.isfile(file):
            raise OSError("no pipe or device is waited for, whatever names it")
        image = open_image(file)
    except (OSError, ValueError):  # it was there a moment ago
        return '<div class="gone">the file cannot be read any more</div>'
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    if max(image.size) <= _SHOWN:
        image.save(buffer, "PNG")
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=_QUALITY)
        kind = "jpeg"
    address = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="" loading="lazy" src="data:image/{kind};base64,{address}">'
