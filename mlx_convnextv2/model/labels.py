"""The label of each class: the checkpoint's own, or ImageNet-1k's names if it has none."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from .config import ConvNextV2Config, is_unnamed


def class_labels(config: ConvNextV2Config) -> list[str]:
    """`config.num_labels` labels, in the order of the logits.

    They are `id2label`, unless it has only transformers' placeholders (LABEL_0, LABEL_1, ...). In that case, 1000
    classes get ImageNet-1k's names, and any other number keeps the placeholders.
    """
    if config.num_labels == len(imagenet_1k()) and is_unnamed(config.id2label):
        return list(imagenet_1k())
    return list(config.id2label.values())


@cache
def imagenet_1k() -> tuple[str, ...]:
    """The WordNet 3.0 lemmas of the 1000 synsets of ILSVRC 2012, ordered by synset id: item i is class i."""
    return tuple(Path(__file__).with_name("imagenet_1k.txt").read_text(encoding="utf-8").splitlines())


@cache
def imagenet_1k_synsets() -> tuple[str, ...]:
    """The WordNet 3.0 numbers of these synsets, in the same order: n01440764 (tench) to n15075141."""
    return tuple(Path(__file__).with_name("imagenet_1k_synsets.txt").read_text(encoding="ascii").split())
