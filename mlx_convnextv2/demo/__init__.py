"""The bundled digits, a small checkpoint and ten images; and the model that commands take when none is named."""

from __future__ import annotations

from pathlib import Path

DEMO = Path(__file__).parent
DEFAULT_MODEL = "facebook/convnextv2-tiny-1k-224"
