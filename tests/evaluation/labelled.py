"""Labelled images, and an evaluation without a model."""

from pathlib import Path

import numpy as np
from PIL import Image

from mlx_convnextv2.evaluation import Evaluation
from mlx_convnextv2.evaluation.findings import Failure


def write_image(path: Path, seed: int) -> Path:
    """A picture of 40 x 36 pixels that is like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((40, 36), Image.Resampling.BICUBIC).save(path)
    return path


def write_folders(folder: Path, *classes: str, count: int = 2) -> Path:
    """Write folders of classes with `count` images each, and return the folder above them."""
    for index, name in enumerate(classes):
        for number in range(count):
            write_image(folder / name / f"{number}.png", 100 * index + number)
    return folder


def answered(place: Path, logits, targets, labels=None, failures=(), **fields) -> Evaluation:
    """An evaluation from logits (N, K) and the right classes (N,), as `run.evaluate` would make it of these images."""
    logits, targets = np.asarray(logits, np.float32), np.asarray(targets, np.int64)
    powers = np.exp(logits.astype(np.float64))
    probabilities = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    own = probabilities[np.arange(len(targets)), targets]
    values = {
        "model": "my-model",
        "data": "photos",
        "labels": list(labels or [f"class {i}" for i in range(logits.shape[1])]),
        "images": [write_image(place / f"{i}.png", i) for i in range(len(targets))],
        "targets": targets,
        "answers": order[:, :5],
        "scores": np.take_along_axis(probabilities, order[:, :5], axis=1),
        "target_scores": own,
        "ranks": (order == targets[:, None]).argmax(axis=1),
        "losses": -np.log(own),
        "failures": [Failure(Path(name), f"{name} is broken") for name in failures],
        "seconds": 2.0,
    }
    return Evaluation(**{**values, **fields})


def three(place: Path, **fields) -> Evaluation:
    """Six images of three classes and one broken. Three answers are wrong, that to the last image most confidently."""
    logits = [[3, 0, 0], [2, 1, 0], [0, 1, 0.5], [1, 0.5, 0], [0, 0.2, 0.1], [9, 0, 1]]
    return answered(place, logits, [0, 0, 1, 1, 2, 2], ["cat", "dog", "bird"], ["bad.png"], **fields)
