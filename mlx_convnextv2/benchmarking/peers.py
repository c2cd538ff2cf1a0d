"""The peers, and the packages that each needs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection, Iterable

OURS = "mlx_convnextv2"
# ONNX Runtime's file is exported by PyTorch.
PEERS: dict[str, tuple[str, ...]] = {
    "plain": (),  # our model by MLX's own operations
    "transformers": ("torch", "transformers"),
    "transformers-mps": ("torch", "transformers"),
    "torch-compile": ("torch", "transformers"),
    "timm": ("torch", "timm", "safetensors"),
    "onnxruntime": ("torch", "transformers", "onnx", "onnxruntime"),
    "coreml": ("coremltools",),
}
COLD_PEERS = ("transformers", "onnxruntime")  # for which `processes` has scripts
_MACOS_ONLY = ("transformers-mps", "coreml")
_NO_BFLOAT16 = ("onnxruntime", "coreml")  # they take numpy arrays, and numpy has no bfloat16


def known(what: str, names: Iterable[str], allowed: Collection[str]) -> list[str]:
    """The names without repetitions. Raises a ValueError, which calls it `what`, for a name that is not allowed."""
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in allowed:
            raise ValueError(f"the {what} {name!r} is unknown here: choose from {', '.join(allowed)}")
    return names


def expand(against: Iterable[str]) -> list[str]:
    """The requested peers without repetitions. On macOS, "transformers" also brings MPS, and Core ML if installed."""
    names: list[str] = []
    for peer in known("peer", against, PEERS):
        names.append(peer)
        if sys.platform == "darwin" and peer == "transformers":
            names.append("transformers-mps")
            if importlib.util.find_spec("coremltools"):
                names.append("coreml")
    return list(dict.fromkeys(names))


def why_not(peer: str, dtype: str) -> str | None:
    """Why `peer` cannot take part here, or None. Nothing is imported to find out."""
    if peer in _MACOS_ONLY and sys.platform != "darwin":
        return "it runs on macOS alone"
    if missing := [package for package in PEERS[peer] if importlib.util.find_spec(package) is None]:
        return f"pip install {' '.join(missing)}"
    if peer in _NO_BFLOAT16 and dtype == "bfloat16":
        return "it cannot be given bfloat16 images"
    return None
