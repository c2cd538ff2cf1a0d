"""A check that a folder's checkpoint is a ConvNeXt V2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..files.json_files import read_json
from ..files.names import CONFIG_FILE
from ..messages import short
from ..model.config import ConvNextV2Config


def check_architecture(folder: Path) -> None:
    """Raise a ValueError that names the architecture if a folder's config.json says that it is not ConvNeXt V2."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return
    values = read_json(path)
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must be a JSON object, not {type(values).__name__}")
    ours = ConvNextV2Config.model_type
    architecture = values.get("model_type") or values.get("architecture") or ours  # the latter is timm's
    if not re.match(rf"{ours}(_|$)", str(architecture)):
        raise ValueError(f"{path} is of the architecture {short(architecture)}, and only ConvNeXt V2 can be read")
