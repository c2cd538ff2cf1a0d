"""What a benchmark finds, as values."""

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
    """The base of the dataclasses below: as JSON, the fields and the properties."""

    def to_json(self) -> dict[str, Any]:
        properties = [name for name in dir(type(self)) if isinstance(getattr(type(self), name), property)]
        values = {**asdict(self), **{name: getattr(self, name) for name in properties}}  # type: ignore[call-overload]
        return {name: None if _is_no_number(value) else value for name, value in values.items()}


def _is_no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)  # JSON has neither NaN nor infinity


@dataclass(frozen=True)
class Contender(Finding):
    """Who runs: how long loading took in seconds, on what it computes, and the versions of its packages."""

    contender: str
    dtype: str
    load_s: float
    device: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Measurement(Finding):
    """A contender's passes over one batch, in a process of its own, in turns with the others.

    Args:
        side: what the images were cut to, in pixels; None is all of them.
        seconds: of a pass over the batch.
        ratio: our time by theirs in the same round.
        peak_bytes, gpu_peak_bytes: the most memory that the process has held; the latter None without a GPU.
        difference: of the logits from ours, as a part of our largest.
        top1_agreement: the part of the images with the same class as ours.
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
        """Whether it answered as we did; top-1 must be equal in float32, where no rounding decides it."""
        close = self.difference <= tolerances.CONTENDER[self.dtype]  # False for NaN
        return close and (self.dtype != "float32" or self.top1_agreement == 1.0)


@dataclass(frozen=True)
class Point(Measurement):
    """A measurement on one of the axes along which time grows: so many images, pixels, or parameters."""

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
    """Whole processes for one image. The ratios are ours by theirs; `agrees`: they name the same class."""

    contender: str
    seconds: Spread
    ratio: Spread
    peak_bytes: int
    memory_ratio: float
    agrees: bool


@dataclass(frozen=True)
class KernelCheck(Finding):
    """One kernel on one shape: how far it is from plain MLX, as a part of the largest magnitude."""

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
    """Who computes an operation on this device, and how long each candidate takes.

    Args:
        batch: images at once; `shape` has fewer where fewer are enough to fill a GPU.
        milliseconds: of a block (of the whole model on a CPU), by candidate; of those that are right here.
        failures: why the others are not.
        rule: who would compute it unmeasured.
        chosen: who does.
        because: why.
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
    """What went wrong with a contender or a kernel, while the others went on."""


class LeftOut(str):
    """Who cannot take part here, and why."""


Result = TypeVar("Result", Measurement, Point, ColdStart, KernelCheck, OperationTiming, TunedOperation)
News = Sequence[Finding | Failure | LeftOut]


@dataclass
class Findings(Generic[Result]):
    """What one benchmark found.

    Args:
        mode: "compare", "cold-start", "scale", "self-check", "ops" or "tune".
        model: the model or the size that was asked for.
        runs: how often each was timed.
        image_size: height and width in pixels, where all images have the same.
        device: what the kernels ran on.
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
