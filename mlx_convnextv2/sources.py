"""What a checkpoint says of itself, in each source's own files, as our configuration and image processor."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .config import ConvNextV2Config, as_pair, read_json
from .image_processor import PREPROCESSOR_FILE, ConvNextImageProcessor
from .messages import short, some
from .weights import HUGGING_FACE, Checkpoint

CONFIG_FILE = "config.json"
TIMM_KEYS = ("architecture", "model_args")  # which our config.json keeps of timm's
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# timm's and the authors' models use one epsilon for every norm, the final one too.
_LAYER_NORM_EPS = 1e-6

_PILLOW_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

# timm's arguments that are told by the tensors, or change nothing at inference.
_TIMM_INERT_ARGS = {
    *("in_chans", "num_classes", "depths", "dims", "patch_size", "conv_mlp", "use_grn", "ls_init_value", "conv_bias"),
    *("drop_rate", "drop_path_rate", "img_size"),
}
_TIMM_ONLY_ARGS = {
    "global_pool": ("avg", ""),
    "output_stride": (32,),
    "head_norm_first": (False,),
    "act_layer": ("gelu",),
    "norm_eps": (None, _LAYER_NORM_EPS),
}


def open_checkpoint(path: Path) -> Checkpoint:
    """The header of a checkpoint: a folder, whose config.json must not be another architecture's, or a weights file.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: another architecture, or what `Checkpoint.open` raises.
    """
    check_architecture(path)
    return Checkpoint.open(path)


def check_architecture(folder: Path) -> None:
    """Raise a ValueError that names the architecture if a folder's config.json says that it is not ConvNeXt V2."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return
    values = read_json(path)
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must be a JSON object, not {type(values).__name__}")
    ours = ConvNextV2Config.model_type
    architecture = values.get("model_type") or values.get("architecture") or ours  # the latter is timm's
    if not re.match(rf"{ours}(_|$)", str(architecture)):
        raise ValueError(f"{path} is of the architecture {short(architecture)}, and only ConvNeXt V2 can be read")


def read_config(checkpoint: Checkpoint, **overrides: Any) -> ConvNextV2Config:
    """The configuration of a checkpoint: from its config.json, or where it has none from its tensors' names and shapes.

    Args:
        checkpoint: a folder's, or a single file's; beside a file under Hugging Face's names config.json counts.
        overrides: fields to change.

    Raises:
        FileNotFoundError: a folder has no config.json.
        ValueError: the configuration is of another architecture or makes no sense, or a field is unknown.
    """
    path = _beside(checkpoint, CONFIG_FILE)
    try:
        if path is None:
            with _making_sense("the configuration that its tensors tell"):
                values = _values_from_tensors(checkpoint)
        else:
            values = read_json(path)
            if isinstance(values, Mapping) and "architecture" in values and "model_type" not in values:
                with _making_sense("the timm configuration"):
                    values = _values_from_timm(values, checkpoint)
        config = ConvNextV2Config.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path or checkpoint.path}: {error}") from None
    unknown = sorted(set(overrides) - set(ConvNextV2Config.__dataclass_fields__))
    if unknown:
        raise ValueError(f"unknown configuration field {some(unknown)}")
    config.update(overrides)
    return config


def read_processor(checkpoint: Checkpoint, config: ConvNextV2Config) -> ConvNextImageProcessor:
    """The image processor of a checkpoint; where it has none, that of the published ones, and a warning."""
    path = _beside(checkpoint, PREPROCESSOR_FILE)
    if path is not None:
        return ConvNextImageProcessor.from_folder(path.parent)
    config_path = _beside(checkpoint, CONFIG_FILE)
    values = read_json(config_path) if config_path is not None else {}
    if "pretrained_cfg" in values:
        try:
            with _making_sense("pretrained_cfg"):
                return _timm_processor(values["pretrained_cfg"])
        except ValueError as error:
            raise ValueError(f"{config_path}: {error}") from None
    size = min(as_pair(config.image_size))
    warnings.warn(
        f"{checkpoint.path} has no {PREPROCESSOR_FILE}: images are prepared as for the published checkpoints, "
        f"at {size} pixels",
        stacklevel=4,
    )
    return ConvNextImageProcessor(size=size, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)


def described_by(checkpoint: Checkpoint) -> str:
    """Where the configuration of a checkpoint is from, for an error."""
    return (
        "its config.json" if _beside(checkpoint, CONFIG_FILE) else "the configuration that their names and shapes tell"
    )


@contextmanager
def _making_sense(what: str) -> Iterator[None]:
    """Turn what nonsense in another library's file leads to into a ValueError."""
    try:
        yield
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"{what} makes no sense ({type(error).__name__}: {short(str(error))})") from None


def _beside(checkpoint: Checkpoint, name: str) -> Path | None:
    """A JSON file of the checkpoint's, or None. Only a file under Hugging Face's names is sought one beside."""
    if checkpoint.path.is_dir():
        path = checkpoint.path / name
        if name == CONFIG_FILE and not path.is_file():
            raise FileNotFoundError(
                f"{checkpoint.path} has no {CONFIG_FILE}: give the weights file itself to go without"
            )
    elif checkpoint.scheme is HUGGING_FACE:
        path = checkpoint.path.parent / name
    else:
        return None
    return path if path.is_file() else None


def _values_from_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration that the tensors' names and shapes tell. Only the resolution is left to the file's name."""
    shapes = {name.removeprefix("convnextv2."): tensor.shape for name, tensor in checkpoint.tensors.items()}
    blocks = [re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.weight$", name) for name in shapes]
    positions = [(int(match[1]), int(match[2])) for match in blocks if match]
    stem = shapes.get("embeddings.patch_embeddings.weight", ())
    depths = [0] * len({stage for stage, _ in positions})
    for stage, _ in positions:
        if stage >= len(depths):
            raise ValueError("its tensors skip a stage, so the configuration cannot be told: add a config.json")
        depths[stage] += 1
    if not depths or len(stem) != 4:
        raise ValueError("its tensors do not tell the configuration: add a config.json")
    resolution = re.search(r"_(224|384|512)(?=[_.]|$)", checkpoint.path.name)
    return {
        "num_channels": stem[3],
        "patch_size": stem[1] if stem[1] == stem[2] else [stem[1], stem[2]],
        "num_stages": len(depths),
        "depths": depths,
        "hidden_sizes": [shapes[f"encoder.stages.{stage}.layers.0.dwconv.weight"][0] for stage in range(len(depths))],
        "layer_norm_eps": 1e-12 if checkpoint.scheme is HUGGING_FACE else _LAYER_NORM_EPS,
        "image_size": int(resolution[1]) if resolution else 224,
        "num_labels": shapes["classifier.weight"][0] if "classifier.weight" in shapes else 0,
    }


def _values_from_timm(values: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """A timm config.json as ours: sizes from the tensors, the rest from `pretrained_cfg` and `model_args`."""
    model_args = values.get("model_args") or {}
    for name, value in model_args.items():
        allowed = _TIMM_ONLY_ARGS.get(name, () if name not in _TIMM_INERT_ARGS else (value,))
        if value not in allowed:
            raise ValueError(
                f"model_args has {some([name])} = {short(value)}, a variant of timm's that is not supported"
            )
    ours = {**_values_from_tensors(checkpoint), "architecture": values["architecture"], "model_args": model_args}
    ours["layer_norm_eps"] = _LAYER_NORM_EPS
    input_size = (values.get("pretrained_cfg") or {}).get("input_size")
    if input_size is not None:
        ours["image_size"] = input_size[-1]
    label_names = values.get("label_names")
    if label_names is not None and len(label_names) == ours["num_labels"]:
        names = label_names if isinstance(label_names, Mapping) else dict(enumerate(label_names))
        described = values.get("label_descriptions") or {}  # of WordNet's numbers, say
        ours["id2label"] = {index: described.get(name, name) for index, name in names.items()}
        del ours["num_labels"]
    return ours


def _timm_processor(cfg: Mapping[str, Any]) -> ConvNextImageProcessor:
    """timm's `pretrained_cfg`, its settings for evaluation, as an image processor."""
    height, width = cfg["input_size"][1:]
    if height != width:
        raise ValueError(
            f"pretrained_cfg has the input size {short(height)} x {short(width)}: only squares are supported"
        )
    interpolation = cfg.get("interpolation", "bicubic")
    if interpolation not in _PILLOW_FILTERS:
        raise ValueError(f"pretrained_cfg has the unknown interpolation {short(interpolation)}")
    return ConvNextImageProcessor(
        size=height,
        crop_pct=cfg.get("crop_pct", 0.875),
        crop_mode=cfg.get("crop_mode", "center"),
        resample=_PILLOW_FILTERS[interpolation],
        image_mean=cfg["mean"],
        image_std=cfg["std"],
    )
