"""The page's files, from the folder `page`."""

from __future__ import annotations

from importlib import resources

# Each file's path on the server, its name, and its type.
PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/server.js": ("server.js", "text/javascript; charset=utf-8"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
    "/camera.js": ("camera.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def read_page_file(path: str) -> tuple[bytes, str]:
    """The content and the type of the file at a path of `PAGE_FILES`."""
    name, kind = PAGE_FILES[path]
    return resources.files(__package__).joinpath("page", name).read_bytes(), kind
