"""The time that a person waits for one image: whole processes, from start to answer."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import cli
from .checkpoint import write_model
from .exports import export, last_line
from .measure import spread
from .peers import OURS, why_not
from .pictures import picture

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

# Run in a small process, because on Linux the peak memory of a child is never below its parent's when it is started.
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


def cold_start(
    args: argparse.Namespace, report: dict[str, Any], temporary: Path, failed: Callable[[str], None]
) -> None:
    """Print and report wall time and peak memory of `classify` and of the least script that does it with a peer."""
    folder, image = temporary / "weights", temporary / "picture.jpg"
    config = write_model(args.model, args.size, folder)
    picture(0, 480, 640).save(image)
    commands = {OURS: _command("-m", "mlx_convnextv2.classify", image, "--model", folder, "--format", "json")}
    for peer in (peer for peer in args.against if why_not(peer, "float32") is None):
        if peer == "transformers":
            commands[peer] = _command("-c", _TRANSFORMERS, folder, image)
        elif peer == "onnxruntime":
            try:
                export("onnx", folder, temporary / "model.onnx", "float32", (1, 224, 224))
                commands[peer] = _command("-c", _ONNXRUNTIME, folder, image, temporary / "model.onnx")
            except ValueError as error:
                failed(f"{peer} failed: {error}")

    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(args.runs + 1):  # the first fills the disk's cache
        for name in list(runs):
            try:
                runs[name].append(_run(name, commands[name]))
            except ValueError as error:
                if name == OURS:
                    raise
                failed(str(error))
                del runs[name]

    ours = runs[OURS]
    cli.tell(f"One image with {report['model']}, whole processes, one of {config.num_labels} classes:")
    for name, times in runs.items():
        timed = list(zip(times[1:], ours[1:], strict=True))
        result = {
            "contender": name,
            "seconds": spread([theirs["seconds"] for theirs, _ in timed]),
            "peak_bytes": max(theirs["peak_bytes"] for theirs, _ in timed),
            "ratio": spread([mine["seconds"] / theirs["seconds"] for theirs, mine in timed]),
            "memory_ratio": max(m["peak_bytes"] for m in ours[1:]) / max(t["peak_bytes"] for t in times[1:]),
            "agrees": times[0]["answer"] == ours[0]["answer"],
        }
        report["results"].append(result)
        cli.tell(row(result))
        if not result["agrees"]:
            failed(f"{name} answers class {times[0]['answer']}, and we {ours[0]['answer']}")


def row(result: dict[str, Any]) -> str:
    """A result as a line."""
    seconds, ratio = result["seconds"], result["ratio"]
    line = (
        f"  {result['contender']:<16} {seconds['median']:6.2f} s ({seconds['min']:.2f}..{seconds['max']:.2f})"
        f"  {result['peak_bytes'] / 1e6:6.0f} MB"
    )
    if result["contender"] == OURS:
        return line
    return (
        f"{line}  ours takes {ratio['median']:.2f} ({ratio['min']:.2f}..{ratio['max']:.2f}) times its time"
        f" and {result['memory_ratio']:.2f} times its memory"
    )


def _command(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def _run(name: str, command: list[str]) -> dict[str, Any]:
    """Seconds, peak_bytes and the class answered; raises ValueError where it fails."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    launcher = _command("-I", "-S", "-c", _LAUNCHER, *command)
    done = subprocess.run(launcher, env=env, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{name} failed: {last_line(done.stderr)}")
    run: dict[str, Any] = json.loads(done.stdout)
    if run["status"]:
        raise ValueError(f"{name} failed: {last_line(done.stderr) or 'it says nothing'}")
    output = json.loads(run["output"])
    run["answer"] = output["predictions"][0]["index"] if name == OURS else output
    return run
