"""The bundled digits: a small checkpoint and ten images."""

from __future__ import annotations

from pathlib import Path

DEMO = Path(__file__).parent
