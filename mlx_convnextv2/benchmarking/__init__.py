"""How fast is a checkpoint on this device, alone or against its peers, and are its kernels right?

    from mlx_convnextv2.benchmarking import compare

    report = compare(size="atto", against=["transformers"], batch_size=[1, 8])
    print(report)

`compare`, `cold_start`, `scale`, `self_check`, `time_operations` and `tune` take the command's options as keywords and
return a `Report`. docs/benchmark.md describes its contents.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .kernels import self_check as self_check, time_operations as time_operations
    from .modes import cold_start as cold_start, compare as compare, scale as scale
    from .report import Report as Report
    from .tuning import tune as tune

# Imported on first use: `benchmark --help` loads nothing heavy, nor does the process of a peer.
_MODULES = {
    **{"compare": "modes", "cold_start": "modes", "scale": "modes"},
    **{"self_check": "kernels", "time_operations": "kernels", "Report": "report", "tune": "tuning"},
}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ..runtime import mlx_blas

    mlx_blas.load()  # before a module of this folder imports MLX
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
