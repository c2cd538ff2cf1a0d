"""An optimised BLAS for MLX's matrix products on a CPU under Linux.

MLX's wheel for Linux links the reference BLAS, which is thirty times slower than an optimised one. But it takes the
functions of any BLAS that was loaded for the whole process before `mlx.core` is imported. On a Mac, MLX uses Accelerate
and this module does nothing. Inference through `fuse` does not need it: numpy has its own BLAS.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

VARIABLE = "MLX_CONVNEXTV2_BLAS"
# Each library's file names for the system's loader. The environment's own folder of libraries is tried first.
LIBRARIES = {
    "openblas": ("libopenblas.so.0", "libopenblas.so"),
    "mkl": ("libmkl_rt.so.3", "libmkl_rt.so.2", "libmkl_rt.so"),
    "blis": ("libblis.so.4", "libblis.so"),
}
_ADVICE = 'pip install "mlx-convnextv2[blas]", or your system\'s OpenBLAS'


@dataclass(frozen=True)
class MlxBlas:
    """The library of MLX's matrix products, or None for MLX's own, and the reason."""

    library: str | None
    reason: str

    def __str__(self) -> str:
        return self.reason if self.library is None else f"{self.library} ({self.reason})"


_LATE = MlxBlas(None, "MLX's own, because mlx was imported before mlx_convnextv2")


@cache
def load() -> MlxBlas:
    """Find an optimised BLAS and offer it to MLX, once per process, before `mlx.core` is imported.

    MLX_CONVNEXTV2_BLAS chooses: "openblas", "mkl", "blis", the path of a library, or "none" for none. Without it, the
    first library found is used. If PyTorch is loaded, none is: a second BLAS in the process would slow PyTorch down.

    Raises:
        ValueError: the library that the variable names cannot be used.
    """
    wanted = os.environ.get(VARIABLE, "")
    if sys.platform != "linux":
        return MlxBlas(None, "the system's own")
    if wanted == "none":
        return MlxBlas(None, f"MLX's own, as {VARIABLE}=none asks")
    if "mlx.core" in sys.modules:
        if hasattr(ctypes.CDLL(None), "cblas_sgemm"):
            return MlxBlas("a BLAS", "that the whole process has")  # through LD_PRELOAD, for example
        if wanted:
            _warn_late(f"{VARIABLE}={wanted} has no effect")
        return _LATE
    if not wanted and "torch" in sys.modules:
        return MlxBlas(None, "MLX's own, because PyTorch is loaded, which a second BLAS slows down")
    problems = []
    for path in _candidates(wanted):
        try:
            version = _offer(path)
        except OSError as error:
            culprit, _, problem = str(error).partition(": ")
            problems.append(f"{path} needs {culprit}: {problem}" if culprit != path else str(error))
            continue
        if version is not None:
            return MlxBlas(version, path)
    if wanted:
        why = f" ({'; '.join(problems)})" if problems else ""
        names = ", ".join(LIBRARIES)
        raise ValueError(
            f"{VARIABLE}={wanted} is no BLAS that can be loaded{why}: set it to {names}, the path of one, or none"
        )
    return MlxBlas(None, f"MLX's own, the slow reference BLAS: {_ADVICE}")


@cache
def warn_if_late() -> None:
    """Warn once if MLX has its slow BLAS on a CPU only because it was imported before this package."""
    if load() is not _LATE or os.environ.get(VARIABLE) or "torch" in sys.modules:
        return
    import mlx.core as mx

    if mx.default_device().type == mx.cpu and any(map(_is_blas, _candidates(""))):
        _warn_late("MLX computes with its own slow BLAS")


def _warn_late(what: str) -> None:
    warnings.warn(
        f"{what}, because mlx was imported before mlx_convnextv2: import a name from mlx_convnextv2 first",
        stacklevel=2,
    )


def _candidates(wanted: str) -> Iterator[str]:
    if wanted and wanted not in LIBRARIES:
        yield wanted
        return
    for name in [wanted] if wanted else LIBRARIES:
        for file in LIBRARIES[name]:
            own = os.path.join(sys.prefix, "lib", file)
            if os.path.exists(own):
                yield own
            yield file


def _is_blas(path: str) -> bool:
    try:
        return hasattr(ctypes.CDLL(path), "cblas_sgemm")
    except OSError:
        return False


def _offer(path: str) -> str | None:
    """Load a library for the whole process and return its name, or None if it is not a BLAS with 32-bit integers.

    Raises:
        OSError: it cannot be loaded; the message begins with the file that is missing or broken.
    """
    library = ctypes.CDLL(path)
    if not hasattr(library, "cblas_sgemm"):
        return None
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    if hasattr(library, "openblas_get_config"):
        library.openblas_get_config.restype = ctypes.c_char_p
        return " ".join(library.openblas_get_config().decode().split()[:2])
    return "MKL" if "mkl" in os.path.basename(path) else "BLIS" if "blis" in os.path.basename(path) else "a BLAS"
