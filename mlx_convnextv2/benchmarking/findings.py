"""The results of a benchmark, as values."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from ..ops import tolerances


@dataclass(frozen=True)
class Spread:
    """The median, least and greatest of several runs."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


class Finding:
    """The base of the dataclasses below. Their JSON has the fields and the properties."""

    def to_json(self) -> dict[str, Any]:
        properties = [name for name in dir(type(self)) if isinstance(getattr(type(self), name), property)]
        values = {**asdict(self), **{name: getattr(self, name) for name in properties}}  # type: ignore[call-overload]
        return {name: None if _is_no_number(value) else value for name, value in values.items()}


def _is_no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)  # JSON has neither NaN nor infinity


@dataclass(frozen=True)
class Contender(Finding):
    """A contender: its loading time in seconds, its device, and the versions of its packages."""

    contender: str
    dtype: str
    load_s: float
    device: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Measurement(Finding):
    """A contender's passes over one batch, in a process of its own, in turns with the others.

    Args:
        side: the side that the images were cut to, in pixels; None for whole images.
        seconds: the time of a pass over the batch.
        ratio: our time divided by theirs in the same round.
        peak_bytes, gpu_peak_bytes: the process's peak memory; gpu_peak_bytes is None without a GPU.
        difference: the difference of the logits from ours, relative to our largest.
        top1_agreement: the share of images with the same class as ours.
    """

    contender: str
    dtype: str
    batch: int
    side: int | None
    seconds: Spread
    ratio: Spread
    peak_bytes: int
    gpu_peak_bytes: int | None
    difference: float
    top1_agreement: float

    @property
    def images_per_s(self) -> float:
        return self.batch / self.seconds.median

    @property
    def agrees(self) -> bool:
        """Whether it answered as we did. In float32, where rounding decides no class, top-1 must be equal."""
        close = self.difference <= tolerances.CONTENDER[self.dtype]  # False for NaN
        return close and (self.dtype != "float32" or self.top1_agreement == 1.0)


@dataclass(frozen=True)
class Point(Measurement):
    """A measurement on one of the axes along which time grows: images, pixels or parameters."""

    size: str
    axis: str
    amount: int


@dataclass(frozen=True)
class Growth(Finding):
    """Time grows as the axis to the power of the exponent."""

    contender: str
    axis: str
    exponent: float


@dataclass(frozen=True)
class ColdStart(Finding):
    """Whole processes for one image. Ratios are ours divided by theirs. `agrees`: they name the same class."""

    contender: str
    seconds: Spread
    ratio: Spread
    peak_bytes: int
    memory_ratio: float
    agrees: bool


@dataclass(frozen=True)
class KernelCheck(Finding):
    """One kernel on one shape: its difference from plain MLX, relative to the largest magnitude."""

    kernel: str
    shape: tuple[int, ...]
    dtype: str
    difference: float

    @property
    def passed(self) -> bool:
        return self.difference <= tolerances.KERNEL[self.dtype]  # False for NaN


@dataclass(frozen=True)
class OperationTiming(Finding):
    """One operation on one shape, in milliseconds: plain MLX, compiled by MLX, and our kernels (None without a GPU)."""

    operation: str
    shape: tuple[int, ...]
    dtype: str
    plain: float
    compiled: float
    kernel: float | None
    chosen: str


@dataclass(frozen=True)
class TunedOperation(Finding):
    """The candidate that computes an operation on this device, and the time of each candidate.

    Args:
        batch: images at once. `shape` has fewer if fewer are enough to fill a GPU.
        milliseconds: the time of a block (on a CPU, of the whole model) with each candidate that is correct here.
        failures: what is wrong with the other candidates.
        rule: the candidate that the rule takes without measuring.
        chosen: the candidate that was chosen.
        because: the reason for the choice.
    """

    operation: str
    batch: int
    shape: tuple[int, ...]
    dtype: str
    milliseconds: dict[str, float]
    failures: dict[str, str]
    rule: str
    chosen: str
    because: str


class Failure(str):
    """What went wrong with a contender or a kernel. The others went on."""


class LeftOut(str):
    """A contender that cannot take part here, and why."""


Result = TypeVar("Result", Measurement, Point, ColdStart, KernelCheck, OperationTiming, TunedOperation)
News = Sequence[Finding | Failure | LeftOut]


@dataclass
class Findings(Generic[Result]):
    """The results of one benchmark.

    Args:
        mode: "compare", "cold-start", "scale", "self-check", "ops" or "tune".
        model: the requested model or size.
        runs: how often each contender or operation was timed.
        image_size: height and width in pixels, if all images have the same.
        device: the device of the kernels.
    """

    mode: str
    model: str
    runs: int | None = None
    image_size: tuple[int, int] | None = None
    device: str | None = None
    system: str = field(default_factory=platform.system)
    machine: str = field(default_factory=platform.machine)
    contenders: list[Contender] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    growth: list[Growth] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
