"""A contender in a process of its own. It reads and writes lines of JSON.

`python -m mlx_convnextv2.benchmarking.worker NAME FOLDER IMAGES DTYPE` loads the checkpoint of FOLDER, which is in
PyTorch's layout, and prints {"load_s", "versions", "device"}. It answers each line {"batch", "side", "logits"} on
standard input with {"seconds", "logits", "peak_bytes", "gpu_peak_bytes"}. IMAGES is an .npy file of (N, H, W, C)
float32. The worker takes the first `batch` images, cut to the upper left `side` x `side` unless `side` is null.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .exports import export, timm_model, torch_model
from .memory import peak_bytes
from .peers import OURS

TURN_S = 0.2  # a turn lasts at least this long, and at least one pass

Predict = Callable[[bool], Any]  # one pass; with True, its logits as a numpy array


@dataclass
class Contender:
    """`prepare` takes images (N, H, W, C) float32 and returns a function that runs them."""

    prepare: Callable[[Any], Predict]
    load_s: float
    device: str
    packages: tuple[str, ...]
    gpu_peak_bytes: Callable[[], int | None] = lambda: None


def _ours(folder: Path, dtype: str, path: str = "auto") -> Contender:
    from ..checkpoints.load import load
    from ..inference.fuse import describe, fuse, make_ready

    import mlx.core as mx  # isort: skip - after the package, which brings MLX a BLAS
    import numpy as np

    start = time.perf_counter()
    model: Any = load(folder, dtype=dtype)[0]
    mx.eval(model.parameters())
    predict = fuse(model, path)
    make_ready(predict)
    load_s = time.perf_counter() - start

    def prepare(images: Any) -> Predict:
        pixel_values = mx.array(images).astype(getattr(mx, dtype))
        mx.eval(pixel_values)

        def run(fetch: bool) -> Any:
            logits = predict(pixel_values)
            mx.eval(logits)
            return np.array(logits.astype(mx.float32)) if fetch else None

        return run

    on_gpu = mx.default_device() == mx.Device(mx.gpu)
    peak = mx.get_peak_memory if on_gpu else lambda: None
    return Contender(prepare, load_s, describe(model, predict), ("mlx", "numpy"), peak)


def _plain(folder: Path, dtype: str) -> Contender:
    return _ours(folder, dtype, path="plain")


def _torch(
    folder: Path, dtype: str, build: Callable[[Path, str], Any], library: str, device: str = "", compiled: bool = False
) -> Contender:
    import torch

    if library == "transformers":
        from transformers import ConvNextV2ForImageClassification  # noqa: F401 - imports do not count as loading
    else:
        import timm.models.convnext  # noqa: F401

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise ValueError("this PyTorch finds no MPS device")
    start = time.perf_counter()
    model = build(folder, dtype).to(device)
    load_s = time.perf_counter() - start

    def prepare(images: Any) -> Predict:
        pixel_values = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        pixel_values = pixel_values.to(device=device, dtype=getattr(torch, dtype))
        if compiled:
            torch.compiler.reset()  # otherwise several shapes lead to a general, slower form
        forward = torch.compile(model, dynamic=False) if compiled else model

        def run(fetch: bool) -> Any:
            with torch.inference_mode():
                logits = forward(pixel_values)
            if device != "cpu":
                getattr(torch, device).synchronize()
            values: Any = getattr(logits, "logits", logits)  # timm's models return the tensor itself
            return values.float().cpu().numpy() if fetch else None

        return run

    def gpu_peak_bytes() -> int | None:
        if device == "cuda":
            return torch.cuda.max_memory_allocated()
        return torch.mps.driver_allocated_memory() if device == "mps" else None

    return Contender(prepare, load_s, device, ("torch", library), gpu_peak_bytes)


def _transformers(folder: Path, dtype: str) -> Contender:
    return _torch(folder, dtype, torch_model, "transformers")


def _transformers_mps(folder: Path, dtype: str) -> Contender:
    return _torch(folder, dtype, torch_model, "transformers", device="mps")


def _torch_compile(folder: Path, dtype: str) -> Contender:
    return _torch(folder, dtype, torch_model, "transformers", compiled=True)


def _timm(folder: Path, dtype: str) -> Contender:
    return _torch(folder, dtype, timm_model, "timm")


def _onnxruntime(folder: Path, dtype: str) -> Contender:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as where it computes for us
    import onnxruntime

    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.onnx"
        export("onnx", folder, file, dtype, (1, 224, 224))
        start = time.perf_counter()
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        load_s = time.perf_counter() - start

    def prepare(images: Any) -> Predict:
        feed = {"pixel_values": images.transpose(0, 3, 1, 2).astype(dtype)}

        def run(fetch: bool) -> Any:
            (logits,) = session.run(None, feed)
            return logits.astype("float32") if fetch else None

        return run

    return Contender(prepare, load_s, "cpu", ("onnxruntime",))


def _coreml(folder: Path, dtype: str) -> Contender:
    """Core ML on any compute unit. A program has one shape, so each shape is exported separately."""
    import coremltools as ct

    def compile_for(shape: tuple[int, int, int]) -> tuple[Any, float]:
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "model.mlpackage"
            export("coreml", folder, file, dtype, shape)
            start = time.perf_counter()
            program = ct.models.MLModel(str(file), compute_units=ct.ComputeUnit.ALL)
            return program, time.perf_counter() - start

    def prepare(images: Any) -> Predict:
        program, _ = compile_for(images.shape[:3])
        feed = {"pixel_values": images.transpose(0, 3, 1, 2).copy()}

        def run(fetch: bool) -> Any:
            logits = program.predict(feed)["logits"]
            return logits.astype("float32") if fetch else None

        return run

    return Contender(prepare, compile_for((1, 224, 224))[1], "all units", ("coremltools",))


_LOADERS: dict[str, Callable[[Path, str], Contender]] = {
    OURS: _ours,
    "plain": _plain,
    "transformers": _transformers,
    "transformers-mps": _transformers_mps,
    "torch-compile": _torch_compile,
    "timm": _timm,
    "onnxruntime": _onnxruntime,
    "coreml": _coreml,
}


def _turn(run: Predict) -> float:
    """The median time of a pass in seconds. The first is not counted, because other contenders used the caches."""
    run(False)
    seconds: list[float] = []
    while sum(seconds) < TURN_S:
        start = time.perf_counter()
        run(False)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _end_with_parent() -> None:
    """End this worker if the command is killed, which a stopped worker cannot notice. Elsewhere the terminal does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG


def main(argv: list[str]) -> int:
    name, folder, images_file, dtype = argv
    _end_with_parent()
    # Libraries may print to standard output; this must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        import numpy as np

        images = np.load(images_file, mmap_mode="r")
        contender = _LOADERS[name](Path(folder), dtype)
        versions = {package: version(package) for package in contender.packages}
        answer({"load_s": contender.load_s, "device": contender.device, "versions": versions})
        shape, run = None, None
        for line in sys.stdin:
            request = json.loads(line)
            batch, side = request["batch"], request["side"]
            if run is None or shape != (batch, side):
                shape, run = (batch, side), contender.prepare(np.array(images[:batch, :side, :side]))
            logits = run(True).tolist() if request["logits"] else None
            seconds = _turn(run)
            memory = {"peak_bytes": peak_bytes(), "gpu_peak_bytes": contender.gpu_peak_bytes()}
            answer({"seconds": seconds, "logits": logits, **memory})
    except Exception as error:
        answer({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
