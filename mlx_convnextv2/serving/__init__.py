"""A model behind HTTP: a page to drop pictures on, and an endpoint that Hugging Face's clients know.

    from mlx_convnextv2 import ImageClassifier
    from mlx_convnextv2.serving import Limits, make_app, serve

    serve("facebook/convnextv2-tiny-1k-224", port=8000)  # until it is stopped
    app = make_app(ImageClassifier("./my-finetune"), Limits(max_body=2**20))  # an ASGI app, for a server of your own

Needs the extra `serve`. docs/serving.md describes the endpoints, the limits and what is refused.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..runtime import mlx_blas

mlx_blas.load()  # before a module of this folder imports MLX

if TYPE_CHECKING:
    from .app import make_app as make_app
    from .limits import Limits as Limits
    from .server import serve as serve

_MODULES = {"make_app": "app", "Limits": "limits", "serve": "server"}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "h11"):
            raise
        raise ImportError('serving needs the extra serve: pip install "mlx-convnextv2[serve]"') from None
