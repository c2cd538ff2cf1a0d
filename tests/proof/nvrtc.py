"""The CUDA dialect of the kernels, compiled by NVIDIA's own compiler, which needs no GPU and is never run here.

pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from pathlib import Path
from typing import Any

from mlx_convnextv2.ops import gpu

from . import FaultError, Launch

_TYPES = {"float16_t": "__half", "bfloat16_t": "__nv_bfloat16"}


def is_installed() -> bool:
    return all(package(name) is not None for name in ("cuda_nvrtc", "cuda_runtime"))


def cuda_text(launch: Launch) -> str:
    """A launch's kernel for CUDA: the dialect replaced, and a signature like that which MLX generates there."""
    text = launch.text.replace(gpu.source("metal", ()), gpu.source("cuda", ()))
    for name, definition in gpu.POSITIONS["metal"].items():
        text = text.replace(f"const {definition};", f"const {gpu.POSITIONS['cuda'][name]};")
    text = re.sub(r",\s*uint3 \w+ \[\[\w+\]\]", "", text)
    text = re.sub(r"\[\[host_name\([^\]]*\)\]\] \[\[kernel\]\]|\[\[kernel\]\]", "__global__", text)
    text = re.sub(r" \[\[buffer\(\d+\)\]\]", "", text)
    text = re.sub(r"\b(const )?(?:device|constant) (\w+\*)", r"\1\2", text)
    for metal, cuda in _TYPES.items():
        text = re.sub(rf"\b{metal}\b", cuda, text)
    return f"#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n{text}"


def compile_to_ptx(text: str) -> str:
    """Compile for the architecture of an H100.

    Raises:
        FaultError: it does not compile.
    """
    nvrtc, runtime = package("cuda_nvrtc"), package("cuda_runtime")
    assert nvrtc is not None
    assert runtime is not None
    library = ctypes.CDLL(str(next((nvrtc / "lib").glob("libnvrtc.so.*"))))
    options = [b"--gpu-architecture=compute_90", b"-std=c++17", f"-I{runtime / 'include'}".encode()]
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if failed:
        raise FaultError(_read(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program))
    return _read(library.nvrtcGetPTXSize, library.nvrtcGetPTX, program)


def _read(get_size: Any, get: Any, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    get_size(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    get(program, buffer)
    return buffer.value.decode()


def package(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(f"nvidia.{name}")
    except ModuleNotFoundError:
        return None
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
