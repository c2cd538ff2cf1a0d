"""Proof of the GPU kernels without a GPU: the text that MLX hands to Metal, compiled as C++ and executed.

`launches` traces a call as MLX exports it, which needs no GPU, and takes from the trace all that Metal would get: the
text with the signature that MLX generates, the grid and the shapes. `execute` compiles the text, with Metal's names
defined in metal_cpp.h, and runs every thread of every threadgroup in machine.cpp. opencl.py is a second proof.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest

from mlx_convnextv2.ops import gpu

HERE = Path(__file__).parent
# Fibers are deprecated on macOS and work there all the same.
_MACHINE_FLAGS = ("-Wno-deprecated-declarations",)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = ("-std=c++20", "-O1", "-g1", "-Wall", "-Wextra", "-Wconversion", "-Werror")
# Attributes of Metal, which C++ may ignore.
_KERNEL_FLAGS = ("-Wno-attributes", "-Wno-unused-parameter", "-Wno-unknown-pragmas")
folder: Path | None = None  # where programs are compiled, which tests set
_NUMPY: dict[mx.Dtype, Any] = {
    mx.float32: np.dtype(np.float32),
    mx.float16: np.dtype(np.float16),
    mx.bfloat16: np.dtype(np.uint16),
}


class FaultError(Exception):
    """What the compiler, a sanitizer or the machine found wrong with a kernel."""


@dataclass(frozen=True)
class Launch:
    """One kernel call, as Metal would get it."""

    name: str
    text: str
    groups: tuple[int, int, int]
    threads: tuple[int, int, int]
    outputs: tuple[tuple[tuple[int, ...], mx.Dtype], ...]


def launches(function: Callable[..., Any], *inputs: mx.array) -> list[Launch]:
    """The kernels that `function` calls for inputs of these shapes, in order."""
    found = []

    def visit(node: dict[str, Any]) -> None:
        if node.get("name") == "CustomKernel":
            name, text, *sizes = node["arguments"][:8]
            grid, threads = sizes[:3], sizes[3:]
            assert all(size % count == 0 for size, count in zip(grid, threads, strict=True))
            groups = tuple(size // count for size, count in zip(grid, threads, strict=True))
            outputs = tuple((tuple(shape), dtype) for _, shape, dtype in node["outputs"])
            found.append(Launch(name, text, groups, tuple(threads), outputs))

    mx.export_function(visit, function, *inputs)
    return found


def execute(launch: Launch, inputs: Sequence[mx.array], seed: int = 0) -> list[mx.array]:
    """Run a launch on its inputs, its threads in an order that the seed shuffles.

    Raises:
        FaultError: the text does not compile without a warning, or running it went wrong.
    """
    program = compiled(launch.name, launch.text)
    found = memory(launch, inputs)
    numbers = [seed, *launch.groups, *launch.threads, len(found)]
    case = [np.array(numbers, np.uint64).tobytes()]
    for content in found:
        if isinstance(content, int):
            case.append(np.array([0, content], np.uint64).tobytes())
        else:
            case += [np.array([1, len(content)], np.uint64).tobytes(), content]
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "case").write_bytes(b"".join(case))
        run([program, f"{temporary}/case", f"{temporary}/outputs"])
        content = (Path(temporary) / "outputs").read_bytes()
    ends = np.cumsum([size for size in found if isinstance(size, int)]).tolist()
    return results(launch, [content[start:end] for start, end in zip([0, *ends], ends, strict=False)])


def memory(launch: Launch, inputs: Sequence[mx.array]) -> list[bytes | int]:
    """For each buffer of the signature, in order, what an input holds or how many bytes an output takes."""
    all_buffers = _buffers(launch.text)
    names = [name for is_input, name in all_buffers if is_input and not name.endswith("_shape")]
    arrays = dict(zip(names, inputs, strict=True))
    sizes = (int(np.prod(shape, dtype=int)) * dtype.size for shape, dtype in launch.outputs)
    found: list[bytes | int] = []
    for is_input, name in all_buffers:
        if not is_input:
            found.append(next(sizes))
        elif name.endswith("_shape"):
            found.append(np.array(arrays[name.removesuffix("_shape")].shape, np.int32).tobytes())
        else:
            found.append(to_bytes(arrays[name]))
    return found


def results(launch: Launch, contents: Sequence[bytes]) -> list[mx.array]:
    """The outputs of a launch, from what their buffers hold."""
    return [from_bytes(content, shape, dtype) for content, (shape, dtype) in zip(contents, launch.outputs, strict=True)]


def require_compiler() -> None:
    """Skip the test on a machine without g++."""
    if shutil.which("g++") is None:
        pytest.skip("the proof needs g++")


@contextmanager
def executed(seed: int = 0, by: Callable[..., list[mx.array]] | None = None) -> Iterator[None]:
    """Within this context every kernel call is executed here and at once, in place of a GPU: `by` another, if said."""
    call = gpu.Kernel.__call__

    def execute_call(kernel: gpu.Kernel, *inputs: mx.array, **options: Any) -> list[mx.array]:
        (launch,) = launches(lambda *arrays: call(kernel, *arrays, **options), *inputs)
        return by(launch, inputs) if by else execute(launch, inputs, seed)

    with mock.patch.object(gpu.Kernel, "__call__", execute_call):
        yield


def compiled(name: str, text: str) -> Path:
    """The program that runs a kernel, compiled once."""
    text, count = re.subn(r"#define SHARED\(.*\n", "", text)
    assert count == 1
    return _compiled(name, f'#include "metal_cpp.h"\n{text}')


@cache
def _compiled(name: str, text: str) -> Path:
    text = f"{text}\n{_entry(text)}"
    program = _machine().with_name(hashlib.sha256(text.encode()).hexdigest()[:16])
    source = program.with_name(f"{program.name}-{os.getpid()}.cpp")
    source.write_text(text, encoding="utf-8")
    return _made(program, *_KERNEL_FLAGS, f"-I{HERE}", source, _machine())


@cache
def _machine() -> Path:
    return _made((folder or Path(tempfile.mkdtemp())) / "machine.o", *_MACHINE_FLAGS, "-c", HERE / "machine.cpp")


def _made(target: Path, *arguments: str | Path) -> Path:
    """What g++ makes, unless another worker of pytest-xdist has made it; it appears whole."""
    if not target.exists():
        unfinished = target.with_name(f"{target.name}-{os.getpid()}")
        run(["g++", *FLAGS, *SANITIZERS, *arguments, "-o", unfinished])
        unfinished.replace(target)
    return target


def run(command: Sequence[str | Path]) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise FaultError(result.stderr.strip() or f"{command[0]} ended with {result.returncode}")


def signature(text: str) -> str:
    match = re.search(r"\[\[kernel\]\] void \w+\((.*?)\) \{", text, re.DOTALL)
    assert match is not None
    return match[1]


def _buffers(text: str) -> list[tuple[bool, str]]:
    """Whether it is an input, and the name, of each buffer of the signature."""
    found = re.findall(r"(const )?(?:device|constant) \w+\* (\w+) \[\[buffer", signature(text))
    return [(bool(const), name) for const, name in found]


def _entry(text: str) -> str:
    """The function that machine.cpp calls for each thread."""
    instance = re.findall(r"decltype\((.*)\) ", text)
    name = instance[-1] if instance else re.findall(r"void (\w+)\(", text)[-1]
    positions = (
        "thread_position_in_threadgroup",
        "threadgroup_position_in_grid",
        "threadgroups_per_grid",
        "threads_per_threadgroup",
    )
    arguments = []
    for parameter in signature(text).split(",\n"):
        buffer = re.match(r"\s*((?:const )?)(?:device|constant) (\w+)\* \w+ \[\[buffer\((\d+)\)", parameter)
        if buffer:
            arguments.append(f"static_cast<{buffer[1]}{buffer[2]}*>(buffers[{buffer[3]}])")
        else:
            arguments.append(parameter.split()[1])
    parameters = ", ".join(f"uint3 {position}" for position in positions)
    return (
        f"void run_thread(void** buffers, {parameters});\n"
        f"void run_thread(void** buffers, {parameters}) {{\n  {name}({', '.join(arguments)});\n}}\n"
    )


def to_bytes(array: mx.array) -> bytes:
    bits = mx.contiguous(array)
    if array.dtype == mx.bfloat16:
        bits = bits.view(mx.uint16)
    return np.array(bits).tobytes()


def from_bytes(data: bytes, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    array = mx.array(np.frombuffer(data, _NUMPY[dtype]).reshape(shape))
    return array.view(mx.bfloat16) if dtype == mx.bfloat16 else array
