"""timm's config.json as our configuration and image processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..messages import short, some
from .processor import ConvNextImageProcessor
from .schemes import LAYER_NORM_EPS
from .weights import Weights, values_from_tensors

TIMM_KEYS = ("architecture", "model_args")  # our config.json keeps these of timm's


# timm's arguments that follow from the tensors or change nothing at inference.
_TIMM_INERT_ARGS = {
    *("in_chans", "num_classes", "depths", "dims", "patch_size", "conv_mlp", "use_grn", "ls_init_value", "conv_bias"),
    *("drop_rate", "drop_path_rate", "img_size"),
}
_TIMM_ONLY_ARGS = {
    "global_pool": ("avg", ""),
    "output_stride": (32,),
    "head_norm_first": (False,),
    "act_layer": ("gelu",),
    "norm_eps": (None, LAYER_NORM_EPS),
}


def values_from_timm(values: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """A timm config.json as ours: sizes from the tensors, the rest from `pretrained_cfg` and `model_args`."""
    model_args = values.get("model_args") or {}
    for name, value in model_args.items():
        allowed = _TIMM_ONLY_ARGS.get(name, () if name not in _TIMM_INERT_ARGS else (value,))
        if value not in allowed:
            raise ValueError(
                f"model_args has {some([name])} = {short(value)}, a variant of timm's that is not supported"
            )
    ours = {**values_from_tensors(weights), "architecture": values["architecture"], "model_args": model_args}
    ours["layer_norm_eps"] = LAYER_NORM_EPS
    input_size = (values.get("pretrained_cfg") or {}).get("input_size")
    if input_size is not None:
        ours["image_size"] = input_size[-1]
    label_names = values.get("label_names")
    if label_names is not None and len(label_names) == ours["num_labels"]:
        names = label_names if isinstance(label_names, Mapping) else dict(enumerate(label_names))
        described = values.get("label_descriptions") or {}  # by WordNet's numbers, for example
        ours["id2label"] = {index: described.get(name, name) for index, name in names.items()}
        del ours["num_labels"]
    return ours


def timm_processor(cfg: Mapping[str, Any]) -> ConvNextImageProcessor:
    """timm's `pretrained_cfg`, the settings for evaluation, as an image processor."""
    height, width = cfg["input_size"][1:]
    if height != width:
        raise ValueError(
            f"pretrained_cfg has the input size {short(height)} x {short(width)}: only squares are supported"
        )
    interpolation = cfg.get("interpolation", "bicubic")
    if interpolation not in (known.name.lower() for known in Image.Resampling):
        raise ValueError(f"pretrained_cfg has the unknown interpolation {short(interpolation)}")
    return ConvNextImageProcessor(
        size=height,
        crop_pct=cfg.get("crop_pct", 0.875),
        crop_mode=cfg.get("crop_mode", "center"),
        resample=Image.Resampling[interpolation.upper()],
        image_mean=cfg["mean"],
        image_std=cfg["std"],
    )
