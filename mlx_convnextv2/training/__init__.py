"""Train a checkpoint on folders of pictures: the head alone on frozen features, or all weights.

    from mlx_convnextv2.training import train

    trained = train("photos", "facebook/convnextv2-atto-1k-224", "my-model", full=True)
    print(trained.best)

`train` takes the options of the command as keywords. `Options` lists them. docs/training.md leads from a folder of
photos to an app.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch_pictures import show_batch as show_batch
    from .options import Options as Options
    from .progress import Progress as Progress, Row as Row
    from .run import Trained as Trained, resume as resume, train as train
    from .run_folder import is_unfinished as is_unfinished

# Imported on first use: `train --help` loads nothing heavy.
_MODULES = {
    **{"train": "run", "resume": "run", "Trained": "run", "Options": "options"},
    "is_unfinished": "run_folder",
    **{"Progress": "progress", "Row": "progress", "show_batch": "batch_pictures"},
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..runtime import mlx_blas

    mlx_blas.load()  # before the first import of MLX
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
