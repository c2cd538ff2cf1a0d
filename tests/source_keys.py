"""The names that other sources give to transformers' tensors, written out apart from the converter's own map."""

import re

from mlx_convnextv2.benchmarking.exports import TIMM_NAMES

_ORIGINAL = (
    (r"^(convnextv2\.)?(encoder\.)?", ""),
    (r"^embeddings\.patch_embeddings", "downsample_layers.0.0"),
    (r"^embeddings\.layernorm", "downsample_layers.0.1"),
    (r"^stages\.(\d)\.downsampling_layer", r"downsample_layers.\1"),
    (r"^stages\.(\d)\.layers", r"stages.\1"),
    (r"layernorm", "norm"),
    (r"^classifier", "head"),
    (r"grn\.weight", "grn.gamma"),
    (r"grn\.bias", "grn.beta"),
)


def original_key(name: str) -> str:
    return _rename(name, _ORIGINAL)


def timm_key(name: str) -> str:
    return _rename(name, TIMM_NAMES)


def _rename(name, renames):
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
