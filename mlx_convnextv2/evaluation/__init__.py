"""How good a classifier is: accuracies, errors by class, calibration and mistakes, on folders of labelled images.

from mlx_convnextv2.evaluation import evaluate

evaluation = evaluate("my-model", "photos")
print(evaluation.top1)
evaluation.write(report="report.html")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation import Evaluation as Evaluation
    from .files import check_outputs as check_outputs
    from .run import evaluate as evaluate

# Imported on first use: `evaluate --help` loads nothing heavy.
_MODULES = {"evaluate": "run", "Evaluation": "evaluation", "check_outputs": "files"}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..runtime import mlx_blas

    mlx_blas.load()  # before the first import of MLX
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
