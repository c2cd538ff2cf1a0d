"""What the models return, with transformers' names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx


@dataclass
class ModelOutput:
    """Fields by name or by position, as in transformers. A field that is None has no position and is not a key.

    `dict(outputs)` has the fields by name. Iteration gives their values, as with a tuple.
    """

    def keys(self) -> list[str]:
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]

    def values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> list[tuple[str, Any]]:
        return list(zip(self.keys(), self.values(), strict=True))

    def to_tuple(self) -> tuple[Any, ...]:
        return self.values()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in {f.name for f in fields(self)}:
            raise KeyError(key)
        return getattr(self, key)


@dataclass
class ConvNextV2ModelOutput(ModelOutput):
    """last_hidden_state (N, H, W, C); pooler_output (N, C); hidden_states: stem and stages, (N, H, W, C) each."""

    last_hidden_state: mx.array
    pooler_output: mx.array
    hidden_states: tuple[mx.array, ...] | None = None


@dataclass
class ImageClassifierOutput(ModelOutput):
    """loss: a scalar, if labels were given; logits (N, num_labels); hidden_states as in ConvNextV2ModelOutput."""

    loss: mx.array | None
    logits: mx.array
    hidden_states: tuple[mx.array, ...] | None = None


@dataclass
class BackboneOutput(ModelOutput):
    """feature_maps: one (N, H, W, C) for each of `out_features`; hidden_states as in ConvNextV2ModelOutput.

    attentions is always None: it exists for code that reads the outputs of any backbone.
    """

    feature_maps: tuple[mx.array, ...]
    hidden_states: tuple[mx.array, ...] | None = None
    attentions: None = None
