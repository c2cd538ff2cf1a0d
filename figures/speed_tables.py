"""The tables of speed in README and docs/speed.md, from the figures in docs/speed.json."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from mlx_convnextv2.runtime.threads import available_cpus

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "docs" / "speed.json"

# What is measured, its target, and its name in the file, where {} stands for the model's size.
IN_README = [
    ("one image, time to that of transformers", "at most 1.15", "{} image numpy transformers"),
    ("the same with ONNX Runtime as the engine", "", "{} image onnxruntime transformers"),
    ("one image, time to that of ONNX Runtime alone", "", "{} image numpy onnxruntime"),
    ("the same with ONNX Runtime as the engine", "at most 1.05", "{} image onnxruntime onnxruntime"),
    ("a folder of photos, images a second to transformers' pipeline", "at least 1", "{} folder numpy transformers"),
    ("the same with ONNX Runtime as the engine", "", "{} folder onnxruntime transformers"),
    ("first label of `classify`, time to that of a script with transformers", "at most 0.10", "{} cold transformers"),
    ("first label of `classify`, time to that of a script with ONNX Runtime", "at most 1.00", "{} cold onnxruntime"),
]
FURTHER = [
    (
        "a folder of photos with ONNX Runtime as the engine, images a second to a loop over a bare session",
        "at least 0.95",
        "{} folder onnxruntime bare onnxruntime",
    ),
    ("one image, time to that of torch.compile", "", "{} image numpy torch-compile"),
    ("one image, times faster than stock modules on the reference BLAS", "at least 6", "{} image stock"),
    ("one image in numpy, ms", "", "{} image numpy ms"),
    ("one image with ONNX Runtime as the engine, ms", "", "{} image onnxruntime ms"),
    ("first label of `classify`, ms", "", "{} cold ms"),
    ("its peak memory to that of a script with transformers", "at most 0.50", "{} cold memory transformers"),
    ("its peak memory to that of a script with ONNX Runtime", "at most 1.00", "{} cold memory onnxruntime"),
]
ONCE = [
    ("a training step of atto with 8 images, time to that of PyTorch", "", "training step pytorch"),
    ("`classify --help`, seconds", "at most 0.15", "help seconds"),
    ("memory that 10,000 images take above 100, MB", "at most 100", "memory of 10,000 images"),
    (
        "base: load, weights evaluated, memory to the weights' size",
        "at most 1.15",
        "base memory load, weights evaluated",
    ),
    ("base: load and fuse, memory to the weights' size", "at most 1.15", "base memory load and fuse"),
    ("base: classify one image, memory to the weights' size", "at most 1.15", "base memory classify one image"),
    ("base: classify a batch of 8, memory to the weights' size", "at most 1.15", "base memory classify a batch of 8"),
    (
        "base: classify one image with ONNX Runtime as the engine, memory to the weights' size",
        "at most 1.30",
        "base memory classify one image in ONNX Runtime",
    ),
]
COLUMNS = [(size, load) for size in ("tiny", "atto") for load in ("quiet", "loaded")]


def read() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    return found


def write(found: dict[str, Any]) -> None:
    FIGURES.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def machine() -> str:
    """The processor, the cores and the system, in words."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        named = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = named[1].strip() if named else model
    return f"{available_cpus()} cores of an {model}, {platform.system()} {platform.release().split('-')[0]}"


def _shown(figure: Any) -> str:
    if figure is None:
        return ""
    if isinstance(figure, list):
        return "{:.2f} ({:.2f} to {:.2f})".format(*figure)
    return f"{figure:.0f}" if figure >= 10 else f"{figure:.2f}"


def _table(rows: list[tuple[str, str, str]], found: dict[str, Any]) -> str:
    lines = ["| what | target | tiny, quiet | tiny, loaded | atto, quiet | atto, loaded |", "|---|---|---|---|---|---|"]
    for what, target, name in rows:
        figures = [_shown(found.get(load, {}).get(name.format(size))) for size, load in COLUMNS]
        lines.append(f"| {what} | {target} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _once(found: dict[str, Any]) -> str:
    lines = ["| what | target | quiet |", "|---|---|---|"]
    lines += [f"| {what} | {target} | {_shown(found.get('quiet', {}).get(name))} |" for what, target, name in ONCE]
    return "\n".join(lines)


def _origin(found: dict[str, Any]) -> str:
    """Where, how often and beside what the figures were measured."""
    return (
        f"One machine, {found['machine']}, in one session: quiet, and loaded by processes that never pause, one for\n"
        f"each core. A figure is the median of {found['runs']} alternating runs, with the least and the most."
    )


def tables() -> dict[str, str]:
    """What stands between the marks in README and in docs/speed.md."""
    found = read()
    page = [_origin(found), _table(IN_README + FURTHER, found), _once(found)]
    return {"README.md": "\n\n".join([_origin(found), _table(IN_README, found)]), "docs/speed.md": "\n\n".join(page)}


def render() -> str:
    """Put the tables into README and docs/speed.md, and return those of docs/speed.md."""
    for file, text_between in tables().items():
        path = ROOT / file
        text, count = re.subn(
            r"(?<=<!-- speed -->\n).*?(?=<!-- end of speed -->)",
            lambda _, new=text_between: f"{new}\n",
            path.read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
        if count != 1:
            raise SystemExit(f"{file} has {count} places for the tables of speed, not one")
        path.write_text(text, encoding="utf-8")
    return tables()["docs/speed.md"]
