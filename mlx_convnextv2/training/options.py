"""Every option of `train`, with its default and meaning: for the command, for a YAML file, for a program."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..messages import short, some

RUN_ONLY = ("workers", "save_every", "watchdog", "report_to", "max_pixels")  # change no number of a run
# These do nothing when only the head is trained.
FULL_ONLY = (
    *("epochs", "patience", "accumulate", "lr", "warmup_epochs", "min_lr", "layer_decay", "layer_groups"),
    *("weight_decay", "drop_path", "ema", "clip_norm", "mixup", "cutmix", "augment", "crop_scale", "flip", "erase"),
    *("head", "grad_checkpoint"),
)
PLACES = ("data", "model", "output", "upload_repo", "show_batch")  # further options of the command, as text


def _option(default: Any, help: str, **limits: Any) -> Any:
    """A field; `limits` may have `kind`, `choices`, `low`, `high` and `metavar`."""
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Options:
    """The options of `train`. None means that the model's size and the data decide; `recipe.Recipe` says how."""

    revision: str | None = _option(None, "branch, tag or commit of the Hub repository", kind=str, metavar="R")
    full: bool = _option(False, "train all weights, not the head alone")
    val_split: float = _option(
        0.15, "share of each class to validate with, where there is no val/", kind=float, low=0, high=1, open=True
    )
    image_size: int | None = _option(None, "side of the images in pixels", kind=int, low=16, high=4096)
    seed: int = _option(0, "seed of the split, the order and the augmentation", kind=int, low=0, high=2**32 - 1)
    workers: int | None = _option(None, "threads that read and augment images", kind=int, low=1, high=256)
    batch_size: int = _option(32, "images a step, of all processes together", kind=int, low=1, high=65536)
    l2: float | None = _option(None, "penalty on the head's weights; found by validation if absent", kind=float, low=0)
    epochs: int = _option(20, "passes over the images (with --full)", kind=int, low=1, high=100_000)
    patience: int | None = _option(
        None, "stop after this many epochs without a better validation result", kind=int, low=1
    )
    accumulate: int = _option(1, "parts that a step's batch is computed in, to save memory", kind=int, low=1, high=4096)
    lr: float | None = _option(None, "peak learning rate", kind=float, low=0, high=10)
    warmup_epochs: float | None = _option(None, "epochs of linear warm-up", kind=float, low=0)
    min_lr: float = _option(1e-6, "learning rate at the end of the cosine", kind=float, low=0, high=10)
    layer_decay: float | None = _option(
        None, "factor of the learning rate from layer to layer", kind=float, low=0, high=1
    )
    layer_groups: str | None = _option(
        None, "a layer for layer_decay: each block, or three of the deep stage", kind=str, choices=("single", "group")
    )
    weight_decay: float | None = _option(None, "of AdamW; norms, biases and GRN have none", kind=float, low=0, high=10)
    drop_path: float | None = _option(None, "stochastic depth of the last block", kind=float, low=0, high=0.99)
    label_smoothing: float | None = _option(
        None, "share of a label spread over all classes", kind=float, low=0, high=0.99
    )
    ema: float | None = _option(
        None, "decay of the weights' moving average, 0 for none", kind=float, low=0, high=0.999999
    )
    clip_norm: float = _option(1.0, "largest norm of the gradient, 0 for no limit", kind=float, low=0)
    mixup: float | None = _option(None, "alpha of mixup, 0 for none", kind=float, low=0, high=100)
    cutmix: float | None = _option(None, "alpha of CutMix, 0 for none", kind=float, low=0, high=100)
    augment: str = _option(
        "randaugment", "operations on training images", kind=str, choices=("randaugment", "trivialaugment", "none")
    )
    crop_scale: float = _option(
        0.35, "smallest share of an image that a random crop keeps", kind=float, low=0.01, high=1
    )
    flip: float = _option(0.5, "share of images mirrored left to right", kind=float, low=0, high=1)
    erase: float = _option(0.25, "share of images with a rectangle erased", kind=float, low=0, high=1)
    head: str = _option(
        "fitted",
        "how --full begins: with the head of the frozen features, or a tiny one",
        kind=str,
        choices=("fitted", "scaled"),
    )
    dtype: str | None = _option(
        None,
        "type of the computation; weights are always trained in float32",
        kind=str,
        choices=("float32", "bfloat16", "float16"),
    )
    grad_checkpoint: bool = _option(False, "compute activations twice to save memory")
    save_every: float = _option(10, "minutes from one saved state to the next", kind=float, low=0)
    watchdog: float = _option(600, "seconds without a step before several processes end", kind=float, low=1)
    report_to: str | None = _option(None, "tensorboard, wandb, or both with a comma", kind=str, metavar="NAMES")
    max_pixels: int | None = _option(None, "refuse larger images (default: 300 million)", kind=int, low=1)

    def __post_init__(self) -> None:
        for option in fields(self):
            _check(option.name, getattr(self, option.name), option.metadata, option.default)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Options by name. An unknown name raises a ValueError that lists the options."""
        known = [option.name for option in fields(cls)]
        unknown = [short(name) for name in values if name not in known]
        if unknown:
            raise ValueError(f"there is no option {some(unknown)}: the options are {', '.join(known)}")
        return cls(**values)

    def with_values(self, **values: Any) -> Options:
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def warn_of_unused(options: Options) -> None:
    """Warn of options that do nothing without `full`."""
    plain = Options()
    unused = [name for name in FULL_ONLY if getattr(options, name) != getattr(plain, name)]
    if unused:
        warnings.warn(f"the head alone is trained, where {some(unused)} does nothing: add full (--full)", stacklevel=2)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The command's options and arguments from a YAML file. `batch-size` is the same as `batch_size`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not YAML or not a map of names to values, or a value has the wrong type.
    """
    from ..files.yaml_files import read_yaml

    values = {name.replace("-", "_"): value for name, value in read_yaml(path).items()}
    numbers = {option.name for option in fields(Options) if option.metadata.get("kind") is float}
    for name, value in values.items():
        if name in PLACES and not isinstance(value, str | None):
            raise ValueError(f"{name} must be text, not {short(value)}: write it in quotes")
        if name == "overwrite" and not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, not {short(value)}")
        if name in numbers and isinstance(value, str):  # YAML reads 1e-3 as text, and 1.0e-3 as a number
            with suppress(ValueError):
                values[name] = float(value)
    return values


def _check(name: str, value: Any, limits: Mapping[str, Any], default: Any) -> None:
    if value is None and default is None:
        return
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, not {short(value)}")
        return
    choices = limits.get("choices")
    if choices:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {short(value)}")
        return
    kind = limits["kind"]
    if kind is str:
        if not isinstance(value, str):
            raise ValueError(f"{name} must be text, not {short(value)}")
        return
    types = int if kind is int else (int, float)
    low, high = limits.get("low", 0), limits.get("high", math.inf)
    good = isinstance(value, types) and not isinstance(value, bool) and low <= value <= high and math.isfinite(value)
    if limits.get("open"):
        good = good and low < value < high
    if not good:
        what = "a whole number" if kind is int else "a number"
        between = f"between {low} and {high}" if limits.get("open") else f"from {low} to {high}"
        bounds = between if math.isfinite(high) else f"of at least {low}"
        raise ValueError(f"{name} must be {what} {bounds}, not {short(value)}")
