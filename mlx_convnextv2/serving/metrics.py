"""Counts and times in Prometheus's text format (version 0.0.4)."""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "mlx_convnextv2_"


class Counter:
    """A number for each combination of labels. It only grows. The labels must have few values."""

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()):
        self.name, self.help, self._labels = _PREFIX + name, help, tuple(labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def add(self, *labels: str, amount: float = 1) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def total(self) -> float:
        with self._lock:
            return sum(self._values.values())

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "counter")
        with self._lock:
            values = sorted(self._values.items())
        for labels, value in values:
            yield f"{self.name}{_braces(zip(self._labels, labels, strict=True))} {_number(value)}"


class Histogram:
    """The number of observations up to each bound, and the sum of all observations."""

    def __init__(self, name: str, help: str, bounds: Sequence[float] = SECONDS):
        self.name, self.help, self._bounds = _PREFIX + name, help, tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def mean(self) -> float:
        """The mean, or 0 without observations."""
        with self._lock:
            count = sum(self._counts)
            return self._sum / count if count else 0.0

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, self.help, "histogram")
        with self._lock:
            counts, total = list(self._counts), self._sum
        running = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
            running += count
            yield f'{self.name}_bucket{{le="{bound}"}} {running}'
        yield f"{self.name}_sum {_number(total)}"
        yield f"{self.name}_count {running}"


class Metrics:
    """The server's metrics."""

    def __init__(self) -> None:
        self.requests = Counter("requests_total", "Requests answered.", ("path", "status"))
        self.refused = Counter("refused_total", "Requests refused, by reason.", ("reason",))
        self.pictures = Counter("pictures_total", "Pictures that went through the model.")
        self.latency = Histogram("request_seconds", "From a request's headers to the end of its answer.")
        self.inference = Histogram("inference_seconds", "The model's time for a batch.")
        self.batch = Histogram("batch_pictures", "Pictures in a batch.", (1, 2, 4, 8, 16, 32))

    def saw_batch(self, pictures: int, seconds: float) -> None:
        self.pictures.add(amount=pictures)
        self.inference.observe(seconds)
        self.batch.observe(pictures)

    def text(self, **gauges: float) -> str:
        """All metrics, and gauges by name."""
        lines: list[str] = []
        for metric in vars(self).values():
            lines += metric.lines()
        resident = resident_bytes()
        values = {**gauges, **({} if resident is None else {"resident_memory_bytes": resident})}
        for name, value in values.items():
            lines += [f"# TYPE {_PREFIX}{name} gauge", f"{_PREFIX}{name} {_number(value)}"]
        return "\n".join(lines) + "\n"


def resident_bytes() -> int | None:
    """The memory that this process holds in bytes, or None if the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _number(value: float) -> str:
    """In full: a counter that is rounded seems to stand still, and then to jump."""
    return str(int(value)) if value == int(value) else repr(value)


def _head(name: str, help: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} {kind}"


def _braces(labels: Any) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in labels]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
