"""Which candidate computes an operation on this device: the fastest of those that are right here.

A static rule names one candidate of each operation. Before its first use it is compared with plain MLX (`prove`), and
plain MLX replaces it if it is wrong. Then all right candidates are timed in turns within a budget (`measure`), and the
fastest computes from then on. The verdicts are kept on this machine (`files.user_cache`) under everything that they
depend on, so nothing is tried twice until one of these things changes.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from importlib.resources import files
from typing import Any

import mlx.core as mx

from .._version import __version__
from ..files import user_cache
from ..messages import one_line
from .proving import prove
from .trials import PLAIN, Operation, Trial, Verdict

VARIABLE = "MLX_CONVNEXTV2_TUNE"
BUDGET = 2.0  # seconds of measuring in a process
_LIVES = 2  # processes that may end while they try a candidate: a user may have killed the first
_ROUNDS, _LEAST_ROUNDS = 7, 3
_CHAIN = 4e-3  # seconds that a chain should take, to make its start negligible


class WrongKernelWarning(UserWarning):
    """A candidate is wrong on this device, and another one computes the operation instead."""


class Tuner:
    """The verdicts of one process. Its methods may be called from any thread, one at a time within `session`.

    Args:
        machine: what a verdict depends on besides the operation; None means `machine()`.
        measures: whether to measure. Candidates are proven in any case.
        again: whether to ignore earlier verdicts, and to measure even if the results cannot be kept.
        budget: seconds for all measurements together.
        clock: returns the time in seconds.
        say: tells a user at a terminal what takes time.
    """

    def __init__(
        self,
        machine: dict[str, str] | None = None,
        *,
        measures: bool = True,
        again: bool = False,
        budget: float = BUDGET,
        clock: Callable[[], float] = time.perf_counter,
        say: Callable[[str], None] | None = None,
    ):
        self._machine = machine
        self._measures = measures
        self._again = again
        self._left = self._budget = budget
        self._clock = clock
        self._say = say or _say
        self.kept = True  # whatever was found so far
        self._verdicts: dict[Operation, Verdict] = {}
        self._failures: list[str] = []
        self._warned = False
        self._alone = False
        self._lock = threading.RLock()

    @property
    def machine(self) -> dict[str, str]:
        if self._machine is None:
            self._machine = machine()
        return self._machine

    @contextmanager
    def session(self) -> Iterator[None]:
        """Call `prove` and `measure` within this context. At its end, one warning reports the failures.

        Two processes never measure at once, and a process that can keep nothing does not measure.
        """
        with self._lock, user_cache.alone() as alone:
            self._alone = alone or self._again
            yield
            if self._failures and not self._warned:
                self._warned = True
                warnings.warn(self._warning(), WrongKernelWarning, stacklevel=2)

    def known(self, trial: Trial) -> Verdict:
        """What is known without trying anything. Within a trace, nothing can be tried."""
        operation = trial.operation
        if operation not in self._verdicts:
            kept = None if self._again else user_cache.read(self._key(operation))
            self._verdicts[operation] = Verdict.of(trial.rule, kept or {}, trial.candidates)
        return self._verdicts[operation]

    def prove(self, trial: Trial) -> Verdict:
        """Find out whether the rule's candidate is right, unless this is known."""
        verdict = self.known(trial)
        self._prove(trial, verdict, (trial.rule,))
        return verdict

    def measure(self, trial: Trial) -> Verdict:
        """Find out which candidate is the fastest, unless this is known or the budget is spent."""
        verdict = self.prove(trial)
        if verdict.settled or not self._measures or not self._alone or self._left <= 0:
            return verdict
        whole_budget = self._left == self._budget
        if whole_budget:
            self._say(f"Measuring the fastest kernels for {self.machine['device']}, once ...")
        start = self._clock()
        deadline = start + self._left
        anew = self._prove(trial, verdict, trial.candidates, deadline)
        right = [name for name in trial.candidates if name == PLAIN or name in verdict.proven]
        if len(right) + len(verdict.failures) == len(trial.candidates):  # otherwise the next process continues
            if len(right) > 1:
                verdict.seconds = self._time(trial, verdict, right, deadline)
            verdict.given_up = not verdict.seconds and (len(right) == 1 or (whole_budget and not anew))
        self._left -= self._clock() - start
        self._keep(trial.operation, verdict)
        return verdict

    def _prove(self, trial: Trial, verdict: Verdict, names: tuple[str, ...], deadline: float = math.inf) -> list[str]:
        """Try the untried candidates until the deadline, and return the ones that were tried."""
        unknown = [name for name in names if name not in (PLAIN, *verdict.proven, *verdict.failures)]
        if not unknown:
            return []
        expected = trial.expected()
        tried: list[str] = []
        try:
            while len(tried) < len(unknown) and not (tried and self._clock() >= deadline):
                name = unknown[len(tried)]
                if verdict.begun.get(name, 0) >= _LIVES and self._alone:
                    reason: str | None = f"{_LIVES} processes ended while they ran it"
                else:
                    with self._noted(trial, verdict, name):
                        reason = prove(partial(trial.results, name), expected, trial.allowed(name))
                if reason is None:
                    verdict.proven.append(name)
                else:
                    self._fail(trial, verdict, name, reason)
                tried.append(name)
        finally:
            self._keep(trial.operation, verdict)
        return tried

    @contextmanager
    def _noted(self, trial: Trial, verdict: Verdict, name: str) -> Iterator[None]:
        """Record that a candidate is being tried: a GPU error in MLX ends the process, and the next one must know."""
        before = verdict.begun.get(name, 0)
        if self._alone:  # otherwise the process that made the note may be alive
            verdict.begun[name] = before + 1
            self._keep(trial.operation, verdict)
        try:
            yield
        finally:  # also after an exception, such as Ctrl-C's
            verdict.begun.pop(name, None)

    def _time(self, trial: Trial, verdict: Verdict, names: list[str], deadline: float) -> dict[str, float]:
        """The median seconds of one link of each of these candidates; empty if the time was too short."""
        clock, (least, most) = self._clock, trial.links
        chains: dict[str, Callable[[], Any]] = {}
        for name in sorted(names, key=lambda name: name != verdict.choice):  # the first sets their length
            try:
                if not chains:
                    shortest = trial.chain(name, least)
                    shortest()
                    took = _timed(shortest, clock) / least
                    links = max(least, min(most, math.ceil(_CHAIN / max(took, 1e-9))))
                chain = trial.chain(name, links)
                chain()  # to warm up, and to compile
                chains[name] = chain
            except Exception as error:
                if name == PLAIN or isinstance(error, MemoryError) or "allocate" in str(error):
                    raise
                self._fail(trial, verdict, name, one_line(error))
            if clock() >= deadline:
                return {}
        times: list[dict[str, float]] = []
        while len(times) < _ROUNDS and (clock() < deadline or len(times) < _LEAST_ROUNDS):
            times.append({name: _timed(chain, clock) / links for name, chain in chains.items()})
        return {name: sorted(own[name] for own in times)[len(times) // 2] for name in names if name in chains}

    def _fail(self, trial: Trial, verdict: Verdict, name: str, reason: str) -> None:
        verdict.failures[name] = reason
        self._failures.append(f"{trial.operation} by {name}: {reason}")

    def _warning(self) -> str:
        more = f", and {len(self._failures) - 1} more like it" if len(self._failures) > 1 else ""
        return (
            f"{self._failures[0]}{more}. So it is not used on this device, {self.machine['device']}: the results are "
            "right, but may come later. Please report this, with what `python -m mlx_convnextv2.benchmark self-check` "
            "prints, as an issue of mlx_convnextv2"
        )

    def _key(self, operation: Operation) -> dict[str, Any]:
        return {**self.machine, **asdict(operation)}

    def _keep(self, operation: Operation, verdict: Verdict) -> None:
        value = asdict(verdict)
        del value["rule"]
        self.kept = user_cache.write(self._key(operation), value) and self.kept


def _timed(run: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def _say(message: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        print(message, file=sys.stderr, flush=True)


def measuring() -> bool | None:
    """What MLX_CONVNEXTV2_TUNE asks for: "0" (False) measures nothing, "1" (True) measures on a CPU too; else None.

    Raises:
        ValueError: it has another value.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE} must be 0 or 1, not {value!r}")
    return value == "1" if value else None


@cache
def shared() -> Tuner:
    """The tuner of this process, which gives one warning and has one budget."""
    return Tuner(measures=measuring() is not False)


def machine() -> dict[str, str]:
    """What a verdict depends on: the device, the system, MLX, this package and the text of its kernels."""
    info = mx.device_info()
    return {
        "device": str(info.get("device_name", "an unknown device")),
        "architecture": str(info.get("architecture", "")),
        "system": f"{platform.system()} {platform.release()}",
        "mlx": mx.__version__,  # type: ignore[attr-defined]
        "tf32": os.environ.get("MLX_ENABLE_TF32", ""),
        "package": __version__,
        "kernels": _digest(),
    }


@cache
def _digest() -> str:
    """A digest of the kernels' text and of the modules that launch them."""
    folder = files(__package__)
    launchers = (folder / name for name in ("gpu.py", "gpu_backward.py", "candidates.py", "trainable.py"))
    texts = [*(folder / "kernels").iterdir(), *launchers]
    contents = sorted((text.name, text.read_bytes()) for text in texts if text.is_file())
    return hashlib.sha256(repr(contents).encode()).hexdigest()
