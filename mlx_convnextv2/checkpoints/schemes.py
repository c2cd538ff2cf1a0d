"""How each source names its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..messages import some


@dataclass(frozen=True)
class Scheme:
    """How one source names its tensors.

    Args:
        name: the scheme's name in messages.
        marker: a checkpoint is of this scheme if one of its keys matches this pattern.
        renames: (pattern, replacement) pairs that lead to Hugging Face's names. All are applied, in order.
    """

    name: str
    marker: str
    renames: tuple[tuple[str, str], ...]

    def rename(self, key: str) -> str:
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key


HUGGING_FACE = Scheme(
    name="Hugging Face",
    marker=r"(^|\.)embeddings\.patch_embeddings\.",
    renames=(
        (r"\.grn\.gamma$", ".grn.weight"),  # the spelling of Hub files from before 2025
        (r"\.grn\.beta$", ".grn.bias"),
    ),
)
TIMM = Scheme(
    name="timm",
    marker=r"^stem\.0\.",
    renames=(
        (r"^stem\.0\.", "convnextv2.embeddings.patch_embeddings."),
        (r"^stem\.1\.", "convnextv2.embeddings.layernorm."),
        (r"^stages\.(\d+)\.downsample\.", r"convnextv2.encoder.stages.\1.downsampling_layer."),
        (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"convnextv2.encoder.stages.\1.layers.\2."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"(\.layers\.\d+)\.norm\.", r"\1.layernorm."),
        (r"\.mlp\.fc([12])\.", r".pwconv\1."),
        (r"\.mlp\.grn\.", ".grn."),
        (r"^head\.norm\.", "convnextv2.layernorm."),
        (r"^head\.fc\.", "classifier."),
    ),
)
ORIGINAL = Scheme(
    name="the original repository",
    marker=r"^downsample_layers\.0\.",
    renames=(
        (r"^downsample_layers\.0\.0\.", "convnextv2.embeddings.patch_embeddings."),
        (r"^downsample_layers\.0\.1\.", "convnextv2.embeddings.layernorm."),
        (r"^downsample_layers\.(\d+)\.", r"convnextv2.encoder.stages.\1.downsampling_layer."),
        (r"^stages\.(\d+)\.(\d+)\.", r"convnextv2.encoder.stages.\1.layers.\2."),
        (r"(\.layers\.\d+)\.norm\.", r"\1.layernorm."),
        (r"\.grn\.gamma$", ".grn.weight"),
        (r"\.grn\.beta$", ".grn.bias"),
        (r"^norm\.", "convnextv2.layernorm."),
        (r"^head\.", "classifier."),
    ),
)
SCHEMES = (HUGGING_FACE, TIMM, ORIGINAL)


def find_scheme(keys: Collection[str], path: Path) -> Scheme:
    """The scheme of a checkpoint, judged by its keys alone. If none or several fit, a ValueError shows some keys."""
    found = [scheme for scheme in SCHEMES if any(re.search(scheme.marker, key) for key in keys)]
    if len(found) == 1:
        return found[0]
    names = " and ".join(scheme.name for scheme in found or SCHEMES)
    if found:
        raise ValueError(f"{path} mixes the tensor names of {names}: {some(sorted(keys))}")
    raise ValueError(
        f"{path} holds no ConvNeXt V2 weights under the names of {names}; its tensors are called {some(sorted(keys))}"
    )


# timm's and the authors' models use one epsilon for every norm, including the final one.
LAYER_NORM_EPS = 1e-6
