"""The frame of a page that stands alone: it contains its style and script, and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

_STYLE = Path(__file__).with_name("style.css")


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """An HTML page. It tells the browser to load nothing, and to run no script but this one.

    Args:
        title, body: HTML, so text in it has been through `html.text`.
        style: rules to add to those of all pages.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    runs = f"; script-src 'sha256-{digest}'" if script else ""
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'{runs}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{_STYLE.read_text(encoding="utf-8")}{style}</style>
</head>
<body>
<main>
{body}
</main>
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""
