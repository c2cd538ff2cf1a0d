"""Many pictures: runs over millions that can be interrupted, shared among machines, and joined.

from mlx_convnextv2.collections import classify_images, merge

summary = classify_images(classifier, ["photos"], "results/")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classification import Summary as Summary, Watch as Watch, classify_images as classify_images
    from .inputs import find_inputs as find_inputs
    from .joining import merge as merge
    from .library.embed import embed_folder as embed_folder
    from .library.library import Library as Library
    from .library.output import search_library as search_library
    from .printed import Printed as Printed
    from .shards import Shard as Shard
    from .streams import stream_records as stream_records

# Imported on first use: `classify --help` loads nothing heavy.
_MODULES = {
    **dict.fromkeys(("Summary", "Watch", "classify_images"), "classification"),
    **{
        "Printed": "printed",
        "Shard": "shards",
        "find_inputs": "inputs",
        "merge": "joining",
        "stream_records": "streams",
    },
    **{"Library": "library.library", "embed_folder": "library.embed", "search_library": "library.output"},
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..runtime import mlx_blas

    mlx_blas.load()  # before the first import of MLX
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
