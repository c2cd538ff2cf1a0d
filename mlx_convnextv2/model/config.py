"""The model's configuration, in Hugging Face's terms, and the eight published sizes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any

from ..files.json_files import read_json
from ..messages import short

# Table 9 of the ConvNeXt V2 paper (arXiv:2301.00808): blocks and channels of the four stages.
SIZES: dict[str, dict[str, list[int]]] = {
    "atto": {"depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]},
    "femto": {"depths": [2, 2, 6, 2], "hidden_sizes": [48, 96, 192, 384]},
    "pico": {"depths": [2, 2, 6, 2], "hidden_sizes": [64, 128, 256, 512]},
    "nano": {"depths": [2, 2, 8, 2], "hidden_sizes": [80, 160, 320, 640]},
    "tiny": {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]},
    "base": {"depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]},
    "large": {"depths": [3, 3, 27, 3], "hidden_sizes": [192, 384, 768, 1536]},
    "huge": {"depths": [3, 3, 27, 3], "hidden_sizes": [352, 704, 1408, 2816]},
}

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "selu")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Bounds far above any real checkpoint, to stop a hostile config from asking for all memory.
MAX_CHANNELS = 65_536
MAX_STAGES = 64
MAX_DEPTH = 1_000  # over all stages
MAX_LABELS = 100_000


# Fields that follow from one another: an assigned field wins, and the rest of its group is derived again.
LABEL_FIELDS = {"num_labels", "id2label", "label2id"}
STAGE_FIELDS = {"out_features", "out_indices"}


@dataclass(init=False)
class ConvNextV2Config:
    """Every field of Hugging Face's `ConvNextV2Config`, with its defaults.

    A field can be assigned at any time. The value is checked as in the constructor, and dependent fields follow.

    Args:
        num_channels: channels of the input image.
        patch_size: side of the stem's patches in pixels, or (height, width).
        num_stages: number of stages; `hidden_sizes` and `depths` have one entry for each.
        hidden_sizes: channels of each stage.
        depths: blocks of each stage.
        hidden_act: one of `ACTIVATIONS`; "gelu" is the exact erf form.
        initializer_range: standard deviation of the initial convolution and linear weights.
        layer_norm_eps: epsilon of the final LayerNorm alone; all others use 1e-6.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
        image_size: the size that the checkpoint states. The image processor decides which size is used.
        out_features, out_indices: stages that a backbone returns; each follows from the other.
        num_labels: classes; 0 means no head.
        id2label, label2id: label of each class index, and the reverse. `id2label` may be a list of labels; without one
            they are LABEL_0, LABEL_1, ... Labels and `num_labels` follow from one another.
        problem_type: one of `PROBLEM_TYPES`, or None to infer it from the labels.
        extra: keys of a config.json that are not listed here, kept for `to_dict`. Unknown keywords and attributes are
            kept here too, and are read as attributes.

    Raises:
        ValueError: a value makes no sense; the message names the field and what is allowed.
    """

    num_channels: int = 3
    patch_size: int | Sequence[int] = 4
    num_stages: int = 4
    hidden_sizes: list[int] = field(default_factory=lambda: list(SIZES["tiny"]["hidden_sizes"]))
    depths: list[int] = field(default_factory=lambda: list(SIZES["tiny"]["depths"]))
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    drop_path_rate: float = 0.0
    image_size: int | Sequence[int] = 224
    out_features: list[str] = None  # type: ignore[assignment]  # filled in below
    out_indices: list[int] = None  # type: ignore[assignment]
    num_labels: int = None  # type: ignore[assignment]
    id2label: dict[int, str] = field(default=None, repr=False)  # type: ignore[arg-type]
    label2id: dict[str, int] = field(default=None, repr=False)  # type: ignore[arg-type]
    problem_type: str | None = None
    return_dict: bool = True
    output_hidden_states: bool = False
    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    model_type = "convnextv2"

    def __init__(self, **values: Any) -> None:
        state = vars(self)  # not `setattr`, which aligns the fields before all of them exist
        for known in fields(self):
            default = known.default if known.default_factory is MISSING else known.default_factory()
            state[known.name] = values.pop(known.name, default)
        self._check_numbers()
        self._align_labels()
        self._align_out_features()
        self._keep(values)

    def update(self, values: Mapping[str, Any]) -> None:
        """Assign several fields at once. If one makes no sense, none is assigned."""
        kept = dict(vars(self))
        for group in (LABEL_FIELDS, STAGE_FIELDS):
            if not group.isdisjoint(values):
                kept = {name: value for name, value in kept.items() if name not in group}
        if self._labels_fit(values):
            kept.update(id2label=self.id2label, label2id=self.label2id)
        vars(self).update(vars(type(self)(**{**kept, **values})))

    def __setattr__(self, name: str, value: Any) -> None:
        self.update({name: value})

    def __getattr__(self, name: str) -> Any:
        try:
            return vars(self)["extra"][name]
        except KeyError:
            raise AttributeError(f"the configuration has no field {name!r}") from None

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> ConvNextV2Config:
        """The configuration of a published size ("atto" ... "huge"), with 1000 classes unless overridden."""
        if size not in SIZES:
            raise ValueError(f"unknown size {size!r}: choose one of {', '.join(SIZES)}")
        if LABEL_FIELDS.isdisjoint(overrides):
            overrides = {"num_labels": 1000, **overrides}
        return cls(**{**SIZES[size], **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConvNextV2Config:
        """Read a parsed config.json. Unknown keys are kept in `extra`, and null means the default."""
        if not isinstance(values, Mapping):
            raise ValueError(f"a config must be a JSON object, not {type(values).__name__}")
        values = dict(values)
        model_type = values.pop("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"this is a checkpoint of the architecture {short(model_type)}, and only {cls.model_type!r} can be read"
            )
        values.pop("stage_names", None)  # they follow from num_stages
        known = {f.name for f in fields(cls)} - {"extra"}
        extra = {name: value for name, value in values.items() if name not in known}
        given = {name: value for name, value in values.items() if name in known and value is not None}
        return cls(**given, extra=extra)

    @classmethod
    def from_json_file(cls, path: str | Path) -> ConvNextV2Config:
        """Read a config.json."""
        return cls.from_dict(read_json(path))

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for config.json; `from_dict` gives back an equal configuration."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        values["id2label"] = {str(index): label for index, label in self.id2label.items()}
        # A file has the labels, or the number of classes if nobody named them.
        derived = ("id2label", "label2id") if is_unnamed(self.id2label) else ("num_labels",)
        for name in (*derived, "problem_type") if self.problem_type is None else derived:
            del values[name]
        return {**self.extra, "model_type": self.model_type, "stage_names": self.stage_names, **values}

    @property
    def stage_names(self) -> list[str]:
        return ["stem", *(f"stage{i + 1}" for i in range(self.num_stages))]

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(height, width) of the stem's patches in pixels."""
        return as_pair(self.patch_size)

    @property
    def min_image_shape(self) -> tuple[int, int]:
        """The smallest (height, width) in pixels that leaves one position after the last stage."""
        stride = 2 ** (self.num_stages - 1)
        height, width = self.patch_shape
        return height * stride, width * stride

    def _check_numbers(self) -> None:
        _require_int("num_channels", self.num_channels, 1, MAX_CHANNELS)
        _require_int("num_stages", self.num_stages, 1, MAX_STAGES)
        for name, low, high in (("hidden_sizes", 1, MAX_CHANNELS), ("depths", 0, MAX_DEPTH)):
            vars(self)[name] = values = _as_list(name, getattr(self, name))
            if len(values) != self.num_stages:
                raise ValueError(
                    f"{name} must have num_stages = {self.num_stages} entries, one for each stage, not {len(values)}"
                )
            for value in values:
                _require_int(f"each of {name}", value, low, high)
        _require(sum(self.depths) <= MAX_DEPTH, "the sum of depths", sum(self.depths), f"at most {MAX_DEPTH}")
        for name in ("patch_size", "image_size"):
            value = getattr(self, name)
            sides = [value] if isinstance(value, int) else value
            if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) not in (1, 2):
                raise ValueError(f"{name} must be a whole number or a pair (height, width), not {short(value)}")
            for side in sides:
                _require_int(name, side, 1, MAX_CHANNELS)
        _require_one_of("hidden_act", self.hidden_act, ACTIVATIONS)
        _require_number("initializer_range", self.initializer_range, 0, 1e6)
        _require_number("layer_norm_eps", self.layer_norm_eps, 0, 1)
        _require_number("drop_path_rate", self.drop_path_rate, 0, 1)
        if self.drop_path_rate == 1:
            raise ValueError("drop_path_rate must be less than 1, which would drop every sample")
        for name in ("return_dict", "output_hidden_states"):
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        if self.problem_type is not None:
            _require_one_of("problem_type", self.problem_type, PROBLEM_TYPES)

    def _labels_fit(self, values: Mapping[str, Any]) -> bool:
        """Whether assigning these fields leaves the labels as they are."""
        if "id2label" in values or values.get("num_labels", self.num_labels) != self.num_labels:
            return False
        return values.get("label2id") is None or _is_reverse(values["label2id"], self.id2label)

    def _align_labels(self) -> None:
        """Derive the missing ones of id2label, label2id and num_labels, from the first of these that is given."""
        state = vars(self)
        if self.label2id is not None:
            _require(isinstance(self.label2id, Mapping), "label2id", self.label2id, "a map of labels to class indices")
        if isinstance(self.id2label, Mapping):
            state["id2label"] = _as_labels("id2label", list(self.id2label.items()))
        elif isinstance(self.id2label, list | tuple):
            state["id2label"] = _as_labels("id2label", list(enumerate(self.id2label)))
        elif self.id2label is not None:
            raise ValueError(f"id2label must map class indices to labels, or list them, not be {short(self.id2label)}")
        elif self.label2id is not None:
            state["id2label"] = _as_labels("label2id", [(index, label) for label, index in self.label2id.items()])
        num_labels = 2 if self.num_labels is None else self.num_labels  # transformers' default
        _require_int("num_labels", num_labels, 0, MAX_LABELS)
        if self.id2label is None or (self.num_labels is not None and is_unnamed(self.id2label)):
            state["id2label"] = {index: f"LABEL_{index}" for index in range(num_labels)}
        count = len(self.id2label)
        if self.num_labels not in (None, count):
            raise ValueError(f"num_labels is {short(self.num_labels)} but id2label has {count} labels: they must agree")
        state["num_labels"] = count
        if not _is_reverse(self.label2id, self.id2label):
            state["label2id"] = {label: index for index, label in self.id2label.items()}

    def _align_out_features(self) -> None:
        """Derive out_features from out_indices or the reverse. The default is the last stage."""
        names, state = self.stage_names, vars(self)
        if self.out_features is None and self.out_indices is None:
            state["out_features"] = names[-1:]
        if self.out_features is not None:
            state["out_features"] = _as_list("out_features", self.out_features)
            for name in self.out_features:
                _require_one_of("each of out_features", name, names)
        if self.out_indices is None:
            state["out_indices"] = [names.index(name) for name in self.out_features]
        state["out_indices"] = _as_list("out_indices", self.out_indices)
        for index in self.out_indices:
            _require_int("each of out_indices", index, -len(names), len(names) - 1)
        from_indices = [names[index] for index in self.out_indices]
        if self.out_features not in (None, from_indices):
            raise ValueError(
                f"out_features {short(self.out_features)} and out_indices {short(self.out_indices)} name different "
                "stages: give one of them"
            )
        in_order = [name for name in names if name in from_indices]
        if from_indices != in_order:
            raise ValueError(
                f"out_features and out_indices must name each stage once, in order: {short(in_order)}, not "
                f"{short(from_indices)}"
            )
        state["out_features"] = from_indices

    def _keep(self, unknown: dict[str, Any]) -> None:
        """Keep unknown keywords in `extra`. A keyword for a derived property must agree with it, and is not kept."""
        _require(isinstance(self.extra, Mapping), "extra", self.extra, "a mapping of names to values")
        for name in [name for name in unknown if hasattr(type(self), name)]:
            if unknown.pop(name) != getattr(self, name):
                raise ValueError(f"{name} is no field of the configuration that can be set")
        vars(self)["extra"] = {**self.extra, **unknown}
        for name, value in self.extra.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError):
                raise ValueError(f"{name} must be what a JSON file can hold, not {short(value)}") from None


def as_pair(value: int | Sequence[int]) -> tuple[int, int]:
    """One side, or a pair of sides -> (height, width)."""
    sides = [value] if isinstance(value, int) else list(value)
    return sides[0], sides[-1]


def is_unnamed(id2label: Mapping[int, str]) -> bool:
    """Whether these are the placeholders LABEL_0, LABEL_1, ... of unnamed classes."""
    return all(label == f"LABEL_{index}" for index, label in id2label.items())


def _as_labels(name: str, pairs: list[tuple[Any, Any]]) -> dict[int, str]:
    """The labels in the order of their indices, from pairs such as (0, "cat") or ("0", "cat")."""
    _require_int(f"the number of labels in {name}", len(pairs), 0, MAX_LABELS)
    try:
        labels = {int(str(index)): label for index, label in pairs}
    except (ValueError, RecursionError):
        raise ValueError(f"{name} must have whole numbers as its class indices") from None
    if sorted(labels) != list(range(len(pairs))):
        raise ValueError(f"{name} must number its {len(pairs)} labels from 0 without a gap")
    for label in labels.values():
        _require(isinstance(label, str | Real), f"each label in {name}", label, "text")
    return {index: str(labels[index]) for index in range(len(labels))}


def _is_reverse(label2id: Any, id2label: Mapping[int, str]) -> bool:
    """Whether label2id reverses id2label. If classes share a label, the index of any of them will do."""
    if not isinstance(label2id, Mapping) or label2id.keys() != set(id2label.values()):
        return False
    return all(type(index) is int and id2label.get(index) == label for label, index in label2id.items())


def _as_list(name: str, value: Any) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list, not {short(value)}")
    return list(value)


def _require(ok: bool, name: str, value: Any, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {allowed}, not {short(value)}")


def _require_int(name: str, value: Any, low: int, high: int) -> None:
    ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    _require(ok, name, value, f"a whole number from {low} to {high}")


def _require_number(name: str, value: Any, low: float, high: float) -> None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    _require(ok, name, value, f"a number from {low:g} to {high:g}")


def _require_one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    _require(isinstance(value, str) and value in allowed, name, value, f"one of {', '.join(allowed)}")
