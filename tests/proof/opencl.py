"""A second proof, by another compiler: the kernels' text with Metal's address spaces, as C++ for OpenCL.

`read` has libclang read the text, in milliseconds: every pointer and reference must name its address space, threadgroup
memory lies where Metal wants it. `execute` runs it on a CPU by PoCL, with the dialect, in real work-groups.

pip install libclang pyopencl; apt-get install clang-15 pocl-opencl-icd ocl-icd-libopencl1
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from . import HERE, FaultError, Launch, memory, results, run

_FLAGS = (
    *("-x", "clcpp", "-cl-std=clc++2021", "-target", "spir64-unknown-unknown", "-nostdinc", "-cl-no-stdinc"),
    *("-Wall", "-Wextra", "-Wconversion", "-Wno-unknown-attributes", "-Wno-unused-parameter"),
    "-Wno-unused-const-variable",
    *("-include", str(HERE / "metal_opencl.h")),
)
_EXTENSIONS = "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space"
_NO_ADDRESS_SPACE = (0, 5)  # clang's LangAS: none, as in a template, and OpenCL's generic one
_THREADGROUP = 2
_POCL = "Portable Computing Language"
_LOCAL_BYTES = 32768  # as much threadgroup memory as a Mac has
_ARRAY = r" *SHARED\((\w+), (\w+), .*\);\n"
_POSITIONS = {
    "thread_position_in_threadgroup": "thread_of_group",
    "threadgroup_position_in_grid": "group_of_grid",
    "threadgroups_per_grid": "groups_of_grid",
    "threads_per_threadgroup": "threads_of_group",
}


def can_read() -> bool:
    return importlib.util.find_spec("clang") is not None


def text_of(launch: Launch) -> str:
    """The launch's text, but for what MLX generates: an OpenCL kernel cannot be a template, so that its arguments stand
    before it, and the line that instantiates it goes."""
    text = launch.text
    generated = re.search(r"(?:template <([^<>]*)>\s*)?\[\[kernel\]\] void", text)
    assert generated is not None
    definitions = ""
    if generated[1]:
        (instance,) = re.findall(r"^template \[\[host_name.*decltype\(\w+<(.*)>\) .*;$", text, re.MULTILINE)
        for parameter, value in zip(generated[1].split(", "), instance.split(", "), strict=True):
            kind, name = parameter.split()
            definitions += (
                f"typedef {value} {name};\n" if kind == "typename" else f"constant constexpr {kind} {name} = {value};\n"
            )
    text = f"{text[: generated.start()]}{definitions}kernel void{text[generated.end() :]}"
    return re.sub(r"^template \[\[host_name.*\n?", "", text, flags=re.MULTILINE)


def read(launch: Launch) -> None:
    """Have libclang read a launch's text.

    Raises:
        FaultError: it has an error or a warning, or a pointer or a reference without an address space.
    """
    from clang import cindex

    arguments = [*_FLAGS, "-Xclang", _EXTENSIONS]
    unit = cindex.Index.create().parse("kernel.cl", arguments, [("kernel.cl", text_of(launch))])
    faults = [f"line {found.location.line}: {found.spelling}" for found in unit.diagnostics]
    arrays = {name for _, name in re.findall(_ARRAY, launch.text)}
    for cursor in unit.cursor.walk_preorder():
        kind, file = cursor.type.kind, cursor.location.file
        if not cursor.kind.is_declaration() or file is None or file.name != "kernel.cl":
            continue
        if kind in (cindex.TypeKind.POINTER, cindex.TypeKind.LVALUEREFERENCE):
            if cursor.type.get_pointee().get_address_space() in _NO_ADDRESS_SPACE:
                faults.append(f"line {cursor.location.line}: {cursor.spelling} names no address space")
        elif kind == cindex.TypeKind.CONSTANTARRAY and cursor.spelling in arrays:
            arrays -= {cursor.spelling} if cursor.type.get_address_space() == _THREADGROUP else set()
    faults += [f"{name} does not lie in threadgroup memory" for name in sorted(arrays)]
    if faults:
        raise FaultError("\n".join(faults))


@cache
def missing() -> str:
    """What `execute` lacks on this machine; empty if nothing."""
    if shutil.which("clang-15") is None:
        return "clang-15 is not installed"
    try:
        import pyopencl

        platforms = [platform.name for platform in pyopencl.get_platforms()]
    except Exception as error:  # no package, no loader, no platform: each is an error of its own class
        return f"there is no OpenCL: {error}"
    return "" if _POCL in platforms else "PoCL is not installed"


def execute(launch: Launch, inputs: Sequence[mx.array]) -> list[mx.array]:
    """Run a launch by PoCL on its inputs.

    Raises:
        FaultError: the text does not compile.
    """
    import pyopencl

    arrays = re.findall(_ARRAY, launch.text)
    kernel, queue = _kernel(text_of(launch), int(np.prod(launch.groups)) * launch.threads[0])
    found = memory(launch, inputs)
    # Outputs begin as NaN, whichever the floating type.
    contents = [np.frombuffer(c if isinstance(c, bytes) else b"\xff" * c, np.uint8).copy() for c in found]
    flags = pyopencl.mem_flags.READ_WRITE | pyopencl.mem_flags.COPY_HOST_PTR
    buffers = [pyopencl.Buffer(queue.context, flags, hostbuf=content) for content in contents]
    local = [pyopencl.LocalMemory(_LOCAL_BYTES // len(arrays)) for _ in arrays]
    threads = [groups * threads for groups, threads in zip(launch.groups, launch.threads, strict=True)]
    kernel(queue, threads, launch.threads, *buffers, *local)
    outputs = [i for i, content in enumerate(found) if isinstance(content, int)]
    for i in outputs:
        pyopencl.enqueue_copy(queue, contents[i], buffers[i])
    return results(launch, [contents[i].tobytes() for i in outputs])


@cache
def _kernel(text: str, threads: int) -> tuple[Any, Any]:
    """The kernel for so many threads in all, compiled, and the queue that runs it."""
    import pyopencl

    (platform,) = (p for p in pyopencl.get_platforms() if p.name == _POCL)
    queue = pyopencl.CommandQueue(pyopencl.Context(platform.get_devices()[:1]))
    for name, function in _POSITIONS.items():
        text = re.sub(rf",\s*uint3 {name} \[\[{name}\]\]", "", text)
        text = text.replace(f" = {name}", f" = {function}()")
    # A kernel's own threadgroup arrays become its arguments, because PoCL finds them by name and C++ mangles it.
    arrays = "".join(f",\n  threadgroup {kind}* {name}" for kind, name in re.findall(_ARRAY, text))
    before, kernel = re.sub(_ARRAY, "", text).split("kernel void", 1)
    signature, body = kernel.split(") {", 1)
    with tempfile.TemporaryDirectory() as folder:
        source, code = Path(folder) / "kernel.cl", Path(folder) / "kernel.bc"
        source.write_text(f"{before}kernel void{signature}{arrays}) {{{body}", encoding="utf-8")
        run(["clang-15", *_FLAGS, f"-DLANE_VALUES={threads}", "-emit-llvm", "-c", source, "-o", code])
        (found,) = pyopencl.Program(queue.context, queue.context.devices, [code.read_bytes()]).build().all_kernels()
    return found, queue
