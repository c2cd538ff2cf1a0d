"""How many instructions and registers does each kernel take from NVIDIA's compiler?

    pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-nvcc-cu12
    python figures/kernel_counts.py

It needs no GPU. Each instruction of the PTX counts once, though those in a loop run more often. Apple's compiler makes
other instructions of the same text, but an unnecessary 64-bit multiply, branch or register is one there too.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from mlx_convnextv2.ops import gpu, gpu_backward

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from proof import launches, nvrtc

ARCHITECTURE = "sm_90"  # what proof.nvrtc compiles for
# Column -> the PTX instructions that it counts.
KINDS = {
    "all": r"\w",
    "FMA": r"fma\.",
    "64-bit multiplies": r"(mul|mad)\.lo\.[su]64",
    "branches": r"bra",
    "loads": r"ld\.global",
    "divisions": r"div\.",
}


def calls() -> dict[tuple[str, ...], tuple[Callable, tuple[mx.array, ...]]]:
    """Every kernel, the gradients' last; the depthwise ones once for each size of what a thread holds."""
    found: dict[tuple[str, ...], tuple[Callable, tuple[mx.array, ...]]] = {}
    for batch, side, channels in ((8, 56, 96), (1, 14, 384), (8, 28, 384), (1, 7, 2816)):
        x, taps, vector = mx.zeros((batch, side, side, channels)), mx.zeros((7, 7, channels)), mx.zeros(channels)
        per_thread, _, rows, columns = gpu.tile_of(batch, side, side, channels)
        name = f"depthwise_layer_norm_residual, C = {channels}: {rows} x {columns} pixels, {per_thread} channels"
        found[name,] = (
            lambda x, taps, *v: gpu.depthwise_layer_norm_residual(x, taps, *v, 1e-6, v[0]),
            (x, taps, vector, vector, vector),
        )
    hidden, weight, scale = mx.zeros((1, 3136, 384)), mx.zeros(384), mx.zeros((1, 384))
    squares = mx.zeros((1, 8, 384))
    found["gelu_sum_of_squares",] = (gpu.gelu_sum_of_squares, (hidden,))
    found["sum_of_squares_of_gelu",] = (gpu.sum_of_squares_of_gelu, (hidden,))
    found["grn_scale",] = (gpu.grn_scale, (squares, weight))
    found["gelu_scaled",] = (gpu.gelu_scaled, (hidden, scale))

    for side, channels in ((56, 96), (28, 384), (7, 2816)):
        x, taps, vector = mx.zeros((8, side, side, channels)), mx.zeros((7, 7, channels)), mx.zeros(channels)
        per_thread, _, rows, columns = gpu_backward.tile_of(8, side, side, channels)
        name = f"depthwise_norm_gradient, C = {channels}: {rows} x {columns} pixels, {per_thread} channels"
        found[name,] = (
            lambda x, taps, v: gpu_backward.depthwise_norm_gradient(x, taps, v, v, x, 1e-6),
            (x, taps, vector),
        )
    found["depthwise_weight_gradient",] = (lambda x: gpu_backward.depthwise_weight_gradient(x, x), (x,))
    found["gelu_grn_sums", "grn_gradient", "gelu_grn_gradient"] = (
        lambda hidden, *others: gpu_backward.gelu_grn_gradient(hidden, *others, hidden),
        (hidden[None], weight, squares),
    )
    return found


def counts(ptx: str) -> dict[str, int]:
    """How many instructions of the PTX fall into each column."""
    body = ptx[ptx.index(".entry") :]
    instructions = re.findall(r"^\s+(?:@!?%p\d+ )?([a-z]\S*)\s.*;$", body, re.MULTILINE)
    return {kind: sum(bool(re.match(pattern, i)) for i in instructions) for kind, pattern in KINDS.items()}


def registers(ptx: str) -> tuple[int, int]:
    """The registers that ptxas assigns to a thread, and the bytes that it spills."""
    ptxas = nvrtc.package("cuda_nvcc")
    if ptxas is None:
        raise SystemExit("it needs nvidia-cuda-nvcc-cu12 for ptxas: pip install nvidia-cuda-nvcc-cu12")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx, encoding="utf-8")
        command = [ptxas / "bin" / "ptxas", f"-arch={ARCHITECTURE}", "-v", "kernel.ptx", "-o", "kernel.cubin"]
        log = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stderr
    return int(re.findall(r"Used (\d+) registers", log)[0]), int(re.findall(r"(\d+) bytes spill stores", log)[0])


def main() -> None:
    print(f"| kernel | {' | '.join(KINDS)} | registers | spilled bytes |")
    print(f"|---|{'---:|' * (len(KINDS) + 2)}")
    for names, (function, inputs) in calls().items():
        for name, launch in zip(names, launches(function, *inputs), strict=True):
            ptx = nvrtc.compile_to_ptx(nvrtc.cuda_text(launch))
            cells = (*counts(ptx).values(), *registers(ptx))
            print(f"| {name} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
