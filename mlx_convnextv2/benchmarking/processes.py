"""Whole processes that classify one image: ours, and a minimal script for each peer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .exports import export, last_line
from .peers import OURS

_TRANSFORMERS = """
import sys
import torch
from PIL import Image
from transformers import AutoImageProcessor, ConvNextV2ForImageClassification
folder, image = sys.argv[1:]
inputs = AutoImageProcessor.from_pretrained(folder)(Image.open(image).convert("RGB"), return_tensors="pt")
model = ConvNextV2ForImageClassification.from_pretrained(folder)
with torch.inference_mode():
    print(int(model(**inputs).logits.argmax()))
"""
_ONNXRUNTIME = """
import json, sys
import numpy as np
import onnxruntime
from PIL import Image
folder, image, model = sys.argv[1:]
with open(folder + "/preprocessor_config.json") as file:
    values = json.load(file)
side = values["size"]["shortest_edge"]
image = Image.open(image).convert("RGB")
if side < 384:
    edge = int(side / values["crop_pct"])
    width, height = (int(edge * length / min(image.size)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.resize((width, height), values["resample"]).crop((left, top, left + side, top + side))
else:
    image = image.resize((side, side), values["resample"])
pixels = (np.asarray(image, np.float32) * values["rescale_factor"] - values["image_mean"]) / values["image_std"]
pixel_values = pixels.astype(np.float32).transpose(2, 0, 1)[None]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
print(int(session.run(None, {"pixel_values": pixel_values})[0].argmax()))
"""

# Run in a small process: on Linux a child's peak memory starts at that of its parent.
_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
output = process.stdout.read().decode()
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - start
peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"status": status, "output": output, "seconds": seconds, "peak_bytes": peak_bytes}))
"""


@dataclass(frozen=True)
class Run:
    """One process from start to end: wall time, peak memory, and the index of its answer."""

    seconds: float
    peak_bytes: int
    answer: int


def command(name: str, folder: Path, image: Path) -> list[str]:
    """The command that classifies `image` with the checkpoint of `folder`. ONNX is exported beside the folder.

    Raises:
        ValueError: the export failed. The message names the contender.
    """
    if name == OURS:
        return _python("-m", "mlx_convnextv2.classify", image, "--model", folder, "--format", "json")
    if name == "transformers":
        return _python("-c", _TRANSFORMERS, folder, image)
    file = folder.parent / "model.onnx"
    try:
        export("onnx", folder, file, "float32", (1, 224, 224))
    except ValueError as error:
        raise ValueError(f"{name} failed: {error}") from None
    return _python("-c", _ONNXRUNTIME, folder, image, file)


def alternate(commands: dict[str, list[str]], rounds: int, failed: Callable[[str], None]) -> dict[str, list[Run]]:
    """Run A B C A B C ... once to fill the disk's cache, then `rounds` times. Returns all runs, the warm-up first.

    A contender that fails is dropped, and `failed` is called with a sentence.

    Raises:
        ValueError: this package itself fails.
    """
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(rounds + 1):
        for name in list(runs):
            try:
                runs[name].append(_run(name, commands[name]))
            except ValueError as error:
                if name == OURS:
                    raise
                failed(str(error))
                del runs[name]
    return runs


def _run(name: str, command: list[str]) -> Run:
    """Run a contender's command.

    Raises:
        ValueError: it failed. The message has the contender's name and the last line of its output.
    """
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}  # nobody waits for a network
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have their bytecode
    done = subprocess.run(_python("-I", "-S", "-c", _LAUNCHER, *command), env=env, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{name} failed: {last_line(done.stderr)}")
    told: dict[str, Any] = json.loads(done.stdout)
    if told["status"]:
        raise ValueError(f"{name} failed: {last_line(done.stderr) or 'it says nothing'}")
    output = json.loads(told["output"])
    answer = output["predictions"][0]["index"] if name == OURS else output
    return Run(told["seconds"], told["peak_bytes"], answer)


def _python(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]
