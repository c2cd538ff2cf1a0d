"""Which parts of a picture made the model choose a label?

    from mlx_convnextv2 import load
    from mlx_convnextv2.heatmaps import explain, overlay

    model, processor = load("facebook/convnextv2-tiny-1k-224")
    maps = explain(model, processor("cat.jpg"), label=281)  # (1, 7, 7); its sum is the label's logit less the mean's
    overlay("cat.jpg", maps[0]).save("cat.heatmap.png")

`explain_images` explains many pictures. `write_heat_maps` writes files, as the command `explain` does.
docs/explaining.md says what the maps mean.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this folder imports MLX

if TYPE_CHECKING:
    from .curves import deletion_curve as deletion_curve, insertion_curve as insertion_curve
    from .drawing import overlay as overlay
    from .explanations import Explanation as Explanation, explain_images as explain_images
    from .files import write_heat_maps as write_heat_maps
    from .methods import explain as explain
    from .targets import find_label as find_label

# Imported on first use: drawing and label names need no MLX.
_MODULES = {
    **{"explain": "methods", "find_label": "targets", "overlay": "drawing"},
    **{"explain_images": "explanations", "Explanation": "explanations", "write_heat_maps": "files"},
    **{"deletion_curve": "curves", "insertion_curve": "curves"},
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value
