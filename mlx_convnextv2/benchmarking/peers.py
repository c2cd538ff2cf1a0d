"""Who can be measured, and what each needs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection, Iterable

OURS = "mlx_convnextv2"
# Each peer and the packages that it needs. ONNX Runtime's file is exported by PyTorch.
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
_NO_BFLOAT16 = ("onnxruntime", "coreml")  # numpy, in which they take their images, does not have it


def known(what: str, names: Iterable[str], allowed: Collection[str]) -> list[str]:
    """The names, each once; raises ValueError for one that is not allowed. `what` they are is said then."""
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in allowed:
            raise ValueError(f"the {what} {name!r} is unknown here: choose from {', '.join(allowed)}")
    return names


def expand(against: Iterable[str]) -> list[str]:
    """The peers asked for, each once; on macOS PyTorch comes on the CPU and on MPS, and Core ML where it is there."""
    names: list[str] = []
    for peer in known("peer", against, PEERS):
        names.append(peer)
        if sys.platform == "darwin" and peer == "transformers":
            names.append("transformers-mps")
            if importlib.util.find_spec("coremltools"):
                names.append("coreml")
    return list(dict.fromkeys(names))


def why_not(peer: str, dtype: str) -> str | None:
    """Why `peer` cannot take part here, or None; nothing is imported to find out."""
    if peer in _MACOS_ONLY and sys.platform != "darwin":
        return "it runs on macOS alone"
    if missing := [package for package in PEERS[peer] if importlib.util.find_spec(package) is None]:
        return f"pip install {' '.join(missing)}"
    if peer in _NO_BFLOAT16 and dtype == "bfloat16":
        return "it cannot be given bfloat16 images"
    return None
